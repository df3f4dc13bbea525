"""Linear probes, against plain torch loops, scikit-learn's logistic regression and its top-k."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from evaluation import LinearProbe, linear_probe_scores
from evaluation.probes.heads import resolve_device, score_heads, train_heads
from evaluation.probes.settings import Scaling
from evaluation.probes.stratified import few_shot, hold_out

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x.astype(np.float32), y, test_size=500, random_state=0)


def blobs(n, d, n_classes, seed, spread=1.5):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n_classes, d))[y] + spread * rng.normal(size=(n, d)), y


def torch_loop(rows, y, n_classes, rate, *, epochs, batch_size, weight_decay, seed):
    """One head, by torch's own modules: SGD, momentum .9, a cosine an epoch, weights from zero."""
    layer = torch.nn.Linear(rows(1).shape[1], n_classes).to(rows(1).dtype)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    groups = [
        {"params": [layer.weight], "weight_decay": weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(1, epochs + 1):
        x = rows(epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for start in range(0, len(x), batch_size):
            some = torch.from_numpy(order[start : start + batch_size])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[some]), y[some]).backward()
            optimizer.step()
        schedule.step()
    return layer.weight.detach(), layer.bias.detach()


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_each_head_goes_the_way_it_goes_alone(dtype, tolerance, fresh, weight_decay):
    x, y = blobs(150, 9, 4, 0)
    x, y = torch.from_numpy(x).to(dtype), torch.from_numpy(y)

    def rows(epoch):
        return x + 0.3 * epoch * torch.roll(x, epoch, 0) if fresh else x

    how = {"epochs": 12, "batch_size": 32, "weight_decay": weight_decay, "seed": 3}
    rates = (0.001, 0.02, 0.4)
    heads = train_heads(rows, y, 4, rates, device=CPU, **how)
    for i, rate in enumerate(rates):
        weight, bias = torch_loop(rows, y, 4, rate, **how)
        torch.testing.assert_close(heads.weights[i], weight, atol=tolerance, rtol=0)
        torch.testing.assert_close(heads.biases[i], bias, atol=tolerance, rtol=0)


def test_scores_of_heads_are_those_of_each_alone(monkeypatch):
    x, y = blobs(90, 5, 3, 1)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    heads = train_heads(
        lambda _: x, y, 3, (0.01, 0.1), epochs=3, batch_size=30, weight_decay=0, seed=0, device=CPU
    )
    monkeypatch.setattr("evaluation.probes.heads._BLOCK", 6 * 7)  # parts of seven rows
    accuracy, loss = score_heads(heads, x, y)
    for i in range(2):
        logits = x @ heads.weights[i].T + heads.biases[i]
        assert accuracy[i] == pytest.approx(float((logits.argmax(1) == y).double().mean()))
        assert loss[i] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)))


def test_sgd_is_the_protocol_on_the_rows_that_are_kept(digits):
    # Everything around the heads: the split, the scale of the rates, and the choice.
    train, test, y, _ = digits
    rates = (0.0001, 0.02, 0.004)
    probe = LinearProbe(
        "sgd", learning_rates=rates, epochs=8, batch_size=200, standardize=False, random_state=5
    ).fit(train, y)
    seed = int(np.random.RandomState(5).randint(2**31))
    kept, held = hold_out(y, 0.1, np.random.default_rng(seed))
    accuracies = []
    decisions = []
    for rate in rates:
        weight, bias = torch_loop(
            lambda _: torch.from_numpy(train[kept]),
            torch.from_numpy(y[kept]),
            10,
            rate * 200 / 256,
            epochs=8,
            batch_size=200,
            weight_decay=0,
            seed=seed,
        )
        logits = train[held] @ weight.numpy().T + bias.numpy()
        accuracies.append(np.mean(logits.argmax(axis=1) == y[held]))
        decisions.append(test @ weight.numpy().T + bias.numpy())
    np.testing.assert_allclose(probe.validation_scores_, accuracies)
    best = int(np.argmax(accuracies))
    assert accuracies.count(accuracies[best]) == 1  # so the choice is known
    assert probe.learning_rate_ == rates[best]
    np.testing.assert_allclose(probe.decision_function(test), decisions[best], atol=2e-3)


def test_of_equal_accuracies_the_lower_loss_is_chosen():
    x, y = blobs(400, 6, 2, 0, spread=0.01)  # every rate gets all of them right
    probe = LinearProbe("sgd", learning_rates=(0.1, 0.3, 0.01), random_state=0).fit(x, y)
    assert probe.validation_scores_.tolist() == [1, 1, 1]
    assert probe.learning_rate_ == 0.3


def test_a_single_rate_holds_nothing_out(digits):
    train, test, y, _ = digits
    probe = LinearProbe("sgd", learning_rates=0.01, epochs=3, random_state=0).fit(train, y)
    assert probe.learning_rate_ == 0.01
    assert np.isnan(probe.validation_scores_).tolist() == [True]
    # a refit of the chosen rate is this fit
    both = LinearProbe(
        "sgd", learning_rates=(0.01, 0.01), epochs=3, refit=True, random_state=0
    ).fit(train, y)
    assert both.learning_rate_ == 0.01
    assert both.validation_scores_.shape == (2,)
    np.testing.assert_allclose(both.decision_function(test), probe.decision_function(test))


def test_rows_of_one_each_are_chosen_by_themselves():
    x = np.eye(4)
    probe = LinearProbe("sgd", random_state=0).fit(x, list("abcd"))
    assert probe.predict(x).tolist() == list("abcd")


@pytest.mark.parametrize("n_classes", [2, 3])
def test_standardised_features_are_undone_in_the_weights(n_classes):
    x, y = blobs(300, 5, n_classes, 2)
    x = x * [1, 100, 0.01, 1, 1] + [0, 5000, 0, 3, 0]
    x[:, 4] = 7  # constant
    scaled = StandardScaler().fit_transform(x)
    for solver in ("sgd", "lbfgs"):
        probe = LinearProbe(solver, standardize=True, random_state=0)
        by_hand = clone(probe).set_params(standardize=False).fit(scaled, y)
        found = probe.fit(x, y).decision_function(x)
        np.testing.assert_allclose(found, by_hand.decision_function(scaled), atol=1e-4)
        assert probe.coef_.shape == (n_classes if n_classes > 2 else 1, 5)


def test_scaling_in_blocks_is_scikit_learns(monkeypatch):
    monkeypatch.setattr("evaluation.probes.settings._BLOCK", 20)
    x = blobs(101, 6, 2, 0)[0].astype(np.float32) + 1000
    rival = StandardScaler().fit(x.astype(np.float64))
    scaling = Scaling.of(x)
    rows = np.array([100, 3, 3])
    expected = rival.transform(x.astype(np.float64))
    np.testing.assert_allclose(scaling(x, np.float64), expected, atol=1e-10)
    np.testing.assert_allclose(scaling(x, np.float64, rows), expected[rows], atol=1e-10)


@pytest.mark.parametrize("C", [0.01, 1.0])
@pytest.mark.parametrize("n_classes", [2, 10])
def test_lbfgs_is_logistic_regression(digits, C, n_classes):
    train, test, y, y_test = digits
    few = y < n_classes
    rival = LogisticRegression(C=C, max_iter=1000).fit(train[few], y[few])
    probe = LinearProbe(C=C).fit(train[few], y[few])
    assert probe.solver_ == "lbfgs"
    np.testing.assert_allclose(probe.coef_, rival.coef_, rtol=0, atol=1e-7)
    np.testing.assert_allclose(probe.intercept_, rival.intercept_, rtol=0, atol=1e-7)
    some = y_test < n_classes
    np.testing.assert_array_equal(probe.predict(test[some]), rival.predict(test[some]))
    np.testing.assert_allclose(
        probe.predict_proba(test[some]), rival.predict_proba(test[some]), atol=1e-5
    )


def test_sgd_comes_near_logistic_regression(digits):
    train, test, y, y_test = digits
    probe = LinearProbe("sgd", learning_rates=0.03, random_state=0).fit(train, y)
    scaler = StandardScaler().fit(train)
    rival = LogisticRegression(max_iter=1000).fit(scaler.transform(train), y)
    assert probe.score(test, y_test) >= rival.score(scaler.transform(test), y_test) - 0.01
    assert probe.n_iter_ == 100


def test_auto_goes_by_size_and_by_views(digits, monkeypatch):
    train, _, y, _ = digits
    monkeypatch.setattr("evaluation.probes.classifier._SMALL", train.size * 10 - 1)
    assert LinearProbe(epochs=1).fit(train, y).solver_ == "sgd"
    monkeypatch.setattr("evaluation.probes.classifier._SMALL", train.size * 10)
    assert LinearProbe(epochs=1).fit(train, y).solver_ == "lbfgs"
    views = LinearProbe(epochs=1).fit_views(lambda _, rows: train[rows], train, y)
    assert views.solver_ == "sgd"


def test_views_of_the_same_rows_are_a_fit(digits):
    train, test, y, _ = digits
    asked = []

    def views(epoch, rows):
        asked.append((epoch, rows))
        return train[rows]

    probe = LinearProbe("sgd", epochs=4, random_state=0).fit_views(views, train, y)
    same = LinearProbe("sgd", epochs=4, random_state=0).fit(train, y)
    np.testing.assert_allclose(probe.decision_function(test), same.decision_function(test))
    assert [epoch for epoch, _ in asked] == [1, 2, 3, 4]
    assert len(asked[0][1]) == len(train) - round(0.1 * len(train))  # held-out ones are not asked


def test_the_same_seed_gives_the_same_probe(digits):
    train, _, y, _ = digits
    first, again, other = (
        LinearProbe("sgd", epochs=2, random_state=seed).fit(train, y).coef_ for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4


def test_probe_is_pickled_and_searched(digits):
    train, test, y, _ = digits
    search = GridSearchCV(LinearProbe("lbfgs"), {"C": [1e-4, 1]}, cv=2).fit(train[:200], y[:200])
    best = search.best_estimator_
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(best)).predict(test), best.predict(test)
    )


@parametrize_with_checks([LinearProbe(), LinearProbe("sgd", epochs=30, learning_rates=(0.01, 0.1))])
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "adam"}, "solver='adam', expected one of 'auto', 'lbfgs', 'sgd'"),
        ({"C": 0}, "C=0, expected a finite number above 0"),
        ({"max_iter": 0}, "max_iter=0, expected an integer"),
        ({"epochs": 0}, "epochs=0, expected an integer"),
        ({"batch_size": 2.5}, "batch_size=2.5, expected an integer"),
        ({"learning_rates": ()}, "learning_rates is empty"),
        ({"learning_rates": (0.1, -1)}, "learning_rates=-1, expected a finite number above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"weight_decay": 1e39}, r"weight_decay=1e\+39, expected a number from 0 to 1e\+06"),
        ({"random_state": 2**40}, "random_state=1099511627776, expected None, an integer from 0"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0, expected a share"),
        ({"validation_fraction": 0}, "validation_fraction=0, expected a share"),
        ({"standardize": "yes"}, "standardize='yes', expected True, False or 'auto'"),
        ({"solver": "sgd", "device": "gpu0"}, "device='gpu0' cannot be used"),
    ],
)
def test_probe_explains_bad_parameters(changes, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(**changes).fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_probe_explains_bad_rows(solver):
    probe = LinearProbe(solver)
    with pytest.raises(ValueError, match="one class only, 3"):
        probe.fit(np.eye(3), [3, 3, 3])
    with pytest.raises(ValueError, match="NaN"):
        probe.fit([[1, np.nan], [1, 2]], [0, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        probe.fit(np.eye(3), [0, 1])
    with pytest.raises(ValueError, match="Unknown label type"):
        probe.fit(np.eye(3), [0.5, 1.2, 3.3])


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (lambda _, rows: np.ones((len(rows), 3)), r"views\(1, rows\) has shape \(9, 3\)"),
        (lambda _, rows: np.ones((4, 2)), r"has shape \(4, 2\), expected \(9, 2\)"),
        (lambda _, rows: np.full((len(rows), 2), np.nan), r"views\(1, rows\) holds NaN"),
        (lambda _, rows: np.ones(len(rows)), r"expected \(rows, features\)"),
    ],
)
def test_bad_views_are_explained(views, message):
    x, y = blobs(10, 2, 2, 0)
    with pytest.raises(ValueError, match=message):
        LinearProbe(epochs=2).fit_views(views, x, y)


def test_lbfgs_refuses_views():
    with pytest.raises(ValueError, match="cannot train on views"):
        LinearProbe("lbfgs").fit_views(lambda _, rows: rows, np.eye(2), [0, 1])


def test_a_run_in_which_every_rate_diverges_is_told():
    x, y = blobs(60, 3, 3, 0)
    probe = LinearProbe("sgd", learning_rates=(1e38, 1e37), standardize=False)
    with pytest.raises(FloatingPointError, match=r"Lower learning_rates"):
        probe.fit(x * 1e3, y)


def test_a_rate_that_diverges_is_not_chosen():
    x, y = blobs(60, 3, 3, 0, spread=0.1)
    rates = (1e38, 0.1)
    probe = LinearProbe("sgd", learning_rates=rates, standardize=False).fit(x * 100, y)
    assert probe.learning_rate_ == 0.1
    assert np.isfinite(probe.coef_).all()


def test_devices_by_name():
    assert resolve_device("cpu") == CPU
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert resolve_device("auto") in (CPU, accelerator)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=8),
    st.floats(0.001, 0.999),
    st.integers(0, 2**31),
)
def test_draws_are_stratified(counts, fraction, seed):
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    few = few_shot(codes, fraction, np.random.default_rng(seed))
    found = np.bincount(codes[few], minlength=len(counts))
    assert len(np.unique(few)) == len(few) == max(len(counts), round(fraction * len(codes)))
    assert found.min() >= 1
    kept, held = hold_out(codes, fraction, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(len(codes)))
    assert np.bincount(codes[kept], minlength=len(counts)).min() >= 1
    wanted = max(1, round(fraction * len(codes)))
    assert len(held) == min(wanted, len(codes) - len(counts))
    if (
        fraction * np.array(counts) >= 1
    ).all():  # no class needs help: each has its share, to a row
        np.testing.assert_array_less(np.abs(found - fraction * np.array(counts)), 1.5)


def test_every_row_is_drawn_by_a_fraction_of_one():
    codes = np.array([1, 0, 0, 2])
    np.testing.assert_array_equal(few_shot(codes, 1.0, np.random.default_rng(0)), np.arange(4))


def test_draws_depend_on_the_seed():
    codes = np.repeat([0, 1], 50)
    first, again, other = (
        few_shot(codes, 0.1, np.random.default_rng(seed)).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_scores_are_scikit_learns(digits, monkeypatch):
    train, test, y, y_test = digits
    monkeypatch.setattr("evaluation.probes.linear_probe._BLOCK", 10 * 37)
    train = train[:, :20] / 16  # few enough features that top-1 and top-5 are no perfect scores
    test = test[:, :20] / 16
    scores = linear_probe_scores(train, y, test, y_test)
    decision = LogisticRegression(max_iter=1000).fit(train, y).decision_function(test)
    assert scores.top1 == accuracy_score(y_test, decision.argmax(axis=1)) < 1
    assert scores.top5 == top_k_accuracy_score(y_test, decision, k=5) < 1
    assert scores.k == 5
    assert (scores.n_train, scores.n_test, scores.n_classes) == (1297, 500, 10)
    assert (scores.fraction, scores.seeds, scores.solver) == (1.0, (0,), "lbfgs")
    assert np.isnan([scores.top1_std, scores.top5_std, *scores.learning_rates]).all()
    assert (scores.n_skipped_train, scores.n_skipped_test, scores.n_unseen) == (0, 0, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.top1 = 0  # pyright: ignore[reportAttributeAccessIssue]


def test_few_shots_are_averaged_over_seeds(digits):
    train, test, y, y_test = digits
    scores = linear_probe_scores(train, y, test, y_test, fraction=(0.01, 0.1), seeds=(4, 7, 9))
    assert list(scores) == [0.01, 0.1]
    assert scores[0.01].n_train == 13
    of = scores[0.1]
    assert of.n_train == 130
    expected = []
    for seed in (4, 7, 9):
        rows = few_shot(y, 0.1, np.random.default_rng(seed))
        model = LogisticRegression(max_iter=1000).fit(train[rows], y[rows])
        expected.append(model.score(test, y_test))
    np.testing.assert_allclose(of.top1_of_seeds, expected)
    assert of.top1 == pytest.approx(np.mean(expected))
    assert of.top1_std == pytest.approx(np.std(expected, ddof=1))
    assert of.top1 > scores[0.01].top1
    few = linear_probe_scores(train, y, test, y_test, fraction=0.01)
    assert few.seeds == (0, 1, 2, 3, 4)
    assert len(few.top1_of_seeds) == 5


def test_two_classes_have_a_top_two():
    x, y = blobs(60, 3, 2, 0)
    names = np.array(["a", "b"])[y]
    scores = linear_probe_scores(x[:40], names[:40], x[40:], names[40:])
    expected = LogisticRegression().fit(x[:40], names[:40]).score(x[40:], names[40:])
    assert (scores.k, scores.top1, scores.top5) == (2, expected, 1.0)


def test_classes_unseen_in_training_are_wrong_and_counted():
    x, y = blobs(80, 4, 4, 0, spread=0.1)
    seen = y[:60] != 2
    scores = linear_probe_scores(x[:60][seen], y[:60][seen], x[60:], y[60:])
    assert scores.n_unseen == 5
    assert scores.n_classes == 3
    assert scores.top1 == scores.top5 == 0.75
    above = np.where(y[60:] == 3, 9, y[60:])  # a class after all of training's
    assert linear_probe_scores(x[:60], y[:60], x[60:], above).n_unseen == 5


def test_rows_of_skipped_images_are_left_out_and_counted(digits):
    train, test, y, y_test = digits
    expected = linear_probe_scores(
        np.delete(train, [0, 5], 0), np.delete(y, [0, 5]), test[1:], y_test[1:]
    )
    train, test = train.copy(), test.copy()
    train[[0, 5]] = test[0] = np.nan
    scores = linear_probe_scores(train, y, test, y_test)
    assert (scores.n_skipped_train, scores.n_skipped_test) == (2, 1)
    assert (scores.n_train, scores.n_test) == (1295, 499)
    counted = dataclasses.replace(expected, n_skipped_train=2, n_skipped_test=1)
    counted = dataclasses.replace(counted, learning_rates=scores.learning_rates)
    np.testing.assert_equal(dataclasses.asdict(scores), dataclasses.asdict(counted))


def test_views_are_asked_by_places_in_the_whole_array(digits):
    train, test, y, y_test = digits
    train = train.copy()
    train[:3] = np.nan
    asked = []

    def views(epoch, rows):
        asked.append(rows)
        return train[rows]

    how = {"fraction": 0.2, "seeds": 1, "epochs": 3, "solver": "sgd"}
    scores = linear_probe_scores(train, y, test, y_test, views=views, **how)
    assert min(np.min(rows) for rows in asked) >= 3
    plain = linear_probe_scores(train, y, test, y_test, **how)
    assert scores.top1 == plain.top1
    assert scores.learning_rates == plain.learning_rates


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": [0, 1]}, "train has 4 rows and y_train has 2"),
        ({"y_test": [0]}, "test has 4 rows and y_test has 1"),
        ({"y_train": [1, 1, 1, 1]}, "one class only, 1"),
        ({"train": np.full((4, 4), np.nan)}, "train holds NaN only"),
        ({"train": np.diag([1, 1, np.inf, 1])}, r"train holds NaN or infinity .* row 2"),
        ({"test": np.where(np.eye(4) > 0, np.nan, 0)}, r"test holds NaN or infinity .* row 0"),
        ({"test": np.ones((4, 3))}, "train has 4 features and test 3"),
        ({"train": np.ones(4)}, r"train has shape \(4,\), expected \(rows, features\)"),
        ({"test": np.empty((0, 4)), "y_test": []}, "y_test is empty"),
        ({"y_test": list("abab")}, "expected classes named the same way"),
        ({"y_train": [0.5, 1.5, 2.5, 0.1]}, "Unknown label type"),
        ({"fraction": 0}, "fraction=0, expected a share"),
        ({"fraction": 1.5}, "fraction=1.5, expected a share"),
        ({"fraction": ()}, "fraction is an empty sequence"),
        ({"seeds": ()}, "seeds is an empty sequence"),
        ({"seeds": (0, -1)}, "seeds=-1, expected an integer of at least 0"),
        ({"seeds": 2**32}, "seeds=4294967296, expected integers of at most 4294967295"),
        ({"random_state": 0}, "random_state cannot be passed"),
        ({"epochs": -3}, "epochs=-3, expected an integer"),
    ],
)
def test_scores_explain_bad_input(changes, message):
    arguments = {
        "train": np.eye(4),
        "y_train": [0, 1, 0, 1],
        "test": np.eye(4),
        "y_test": [0, 1, 0, 1],
    } | changes
    with pytest.raises(ValueError, match=message):
        linear_probe_scores(**arguments)
