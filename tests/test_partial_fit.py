"""partial_fit: on digits sorted by class and shuffled, and what a call may and may not change."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError

from evaluation import cluster_occupancy, knn_accuracy
from sklearn_excb import ExCBEstimator
from sklearn_excb.exceptions import DivergedError, ImageError
from sklearn_excb.fitting import run
from sklearn_excb.training.optimizer import Plan, TeacherRates
from sklearn_excb.views import reservoir
from sklearn_excb.views.reservoir import Reservoir

X, Y = load_digits(return_X_y=True)
DIGITS = (X.reshape(-1, 8, 8) / 16).astype(np.float32)
SMALL = {"K": 6, "batch_size": 16, "n_local": 0, "head_width": 16, "random_state": 0, "n_jobs": 1}


def small(**parameters):
    return ExCBEstimator(**(SMALL | parameters))


def learned(excb):
    weights = excb._fitted.teacher.state_dict()
    return {name: weight.cpu().numpy().copy() for name, weight in weights.items()}


def assert_same(excb, other):
    ours, theirs = (of if isinstance(of, dict) else learned(of) for of in (excb, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight, theirs[name], err_msg=name)


@pytest.fixture
def begun():
    return small().partial_fit(DIGITS[:40])


def test_each_call_learns_and_predicts(begun):
    first = learned(begun)
    assert begun.transform(DIGITS[:5]).shape == (5, 256)
    assert set(begun.predict(DIGITS[:50])) <= set(range(6))
    begun.partial_fit(DIGITS[40:80])
    changed = [name for name, weight in learned(begun).items() if (weight != first[name]).any()]
    assert len(changed) > len(first) / 2
    np.testing.assert_array_equal(
        begun.cluster_centers_, begun._fitted.teacher.centroids.unit().numpy()
    )
    assert begun.resolved_params_["batch_size"] == 16
    assert begun.linkage_.shape == (5, 4)
    with pytest.raises(NotFittedError, match="without training samples"):
        begun.labels_  # noqa: B018 - that is what raises


def test_is_a_function_of_seed_and_calls(begun):
    again = small().partial_fit(DIGITS[:40])
    assert_same(again, begun)
    elsewhere = small().partial_fit(list(DIGITS[:40]))
    for excb in (again, elsewhere, begun):
        torch.rand(3)
        excb.partial_fit(DIGITS[40:70])
    assert_same(again, begun)
    other = small(random_state=1).partial_fit(DIGITS[:40])
    assert not np.array_equal(other.cluster_centers_, small().partial_fit(DIGITS[:40]))


def test_history_has_an_entry_a_nominal_epoch():
    excb = small()
    for first in range(0, 280, 40):  # an epoch is 117 samples, in 7 steps of 16
        excb.partial_fit(DIGITS[first : first + 40])
    # 3 steps of 16, then 5 of 8 new ones and as many that came before
    assert [entry["epoch"] for entry in excb.history_] == list(range((3 + 6 * 5) // 7 + 2))
    assert np.isfinite([entry["loss"] for entry in excb.history_[1:]]).all()


@pytest.mark.parametrize("rows", [False, True], ids=["images", "rows"])
def test_pickled_it_goes_on_bit_for_bit(rows):
    data = DIGITS.reshape(len(DIGITS), -1) if rows else DIGITS
    excb = small().partial_fit(data[:40])
    again, copied = pickle.loads(pickle.dumps(excb)), copy.deepcopy(excb)
    for one in (excb, again, copied):
        one.partial_fit(data[40:80])
    assert_same(again, excb)
    assert_same(copied, excb)
    assert json.dumps(again.history_) == json.dumps(excb.history_)


def test_a_pickle_of_an_accelerator_predicts_where_there_is_none(begun):
    begun._online.device = torch.device("cuda")
    again = pickle.loads(pickle.dumps(begun))
    assert again._online.device == torch.device("cpu")
    assert again.predict(DIGITS[:5]).shape == (5,)


def test_saved_and_loaded_it_goes_on(begun, tmp_path):
    begun.save(tmp_path / "saved")
    loaded = ExCBEstimator.load(tmp_path / "saved")
    before = learned(loaded)
    loaded.partial_fit(DIGITS[40:80])
    assert not np.array_equal(loaded.cluster_centers_, before["centroids.weight"])
    assert loaded.predict(DIGITS[:9]).shape == (9,)


@pytest.mark.parametrize("warm", [False, True])
def test_after_a_fit_it_goes_on_from_there(warm):
    excb = small(epochs=2, warm_start=warm).fit(DIGITS[:120])
    before, history = excb.transform(DIGITS[:30]), excb.history_
    kept = excb._fitted.state
    excb.partial_fit(DIGITS[120:122])
    assert json.dumps(excb.history_[: len(history)]) == json.dumps(history)
    after = excb.transform(DIGITS[:30])
    assert 0 < np.abs(after - before).max() < 0.5  # it is not begun anew
    assert excb._online._run.step == (7 * 2 + 1 if warm else 1)
    assert (kept is not None) == warm
    excb.set_params(warm_start=False).fit(DIGITS[:120])
    np.testing.assert_array_equal(excb.transform(DIGITS[:30]), before)  # fit begins anew


def test_what_a_fit_was_told_holds():
    excb = small(epochs=1).fit(DIGITS[:40])
    with pytest.raises(ValueError, match=r"learning_rate was .*, now 3\.0.*anew with a clone"):
        excb.set_params(learning_rate=3.0).partial_fit(DIGITS[40:80])
    excb.set_params(learning_rate="auto", epochs=7).partial_fit(DIGITS[40:80])


def test_clones_know_nothing(begun):
    with pytest.raises(NotFittedError):
        clone(begun).predict(DIGITS)


def test_a_call_that_fails_is_undone(begun):
    before, n_kept = learned(begun), len(begun._online.reservoir)
    again = copy.deepcopy(begun)

    def breaking():
        yield from DIGITS[40:70]
        yield b"no image"

    with pytest.raises(ImageError):
        begun.partial_fit(list(breaking()))
    for wrong in (np.zeros((20, 8, 8, 3)), np.zeros((20, 64)), np.full((20, 8, 8), 7.0)):
        with pytest.raises(ValueError, match=r"fitted on|in \[0, 1\]|range"):
            begun.partial_fit(wrong)
    assert_same(begun, before)
    assert len(begun._online.reservoir) == n_kept
    assert_same(begun.partial_fit(DIGITS[40:80]), again.partial_fit(DIGITS[40:80]))


def test_a_divergence_is_undone(begun, monkeypatch):
    before = learned(begun)
    again = copy.deepcopy(begun)
    real = run.train

    def diverging(networks, *args, **more):
        for report in real(networks, *args, **more):
            loss = report.outcome.loss._replace(total=report.outcome.loss.total * torch.nan)
            yield report._replace(outcome=report.outcome._replace(loss=loss))

    with monkeypatch.context() as patched:
        patched.setattr(run, "train", diverging)
        with pytest.raises(DivergedError, match="this call of partial_fit is undone"):
            begun.partial_fit(DIGITS[40:80])
    assert_same(begun, before)
    assert_same(begun.partial_fit(DIGITS[40:80]), again.partial_fit(DIGITS[40:80]))


def test_images_that_cannot_be_used_are_skipped():
    images = [*DIGITS[:20], b"no image", *DIGITS[20:40]]
    excb = small(on_error="skip")
    with pytest.warns(UserWarning, match="1 of 41"):
        excb.partial_fit(images)
    assert [image.index for image in excb.skipped_] == [20]
    assert_same(excb, small().partial_fit(list(DIGITS[:40])))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"K": 41}, "fewer than K=41.*Pass at least K samples"),
        ({"checkpoint_dir": "run"}, "writes no checkpoints"),
        ({"devices": 2}, "in one process"),
        ({"precision": "8"}, "precision"),
    ],
)
def test_what_it_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        small(**parameters).partial_fit(DIGITS[:40])


def test_parameters_stay_as_they_were(begun):
    with pytest.raises(ValueError, match=r"K was 6, now 7.*anew with a clone"):
        begun.set_params(K=7).partial_fit(DIGITS[40:80])
    begun.set_params(K=6, n_jobs=2, verbose=0, embedding="backbone").partial_fit(DIGITS[40:80])


def test_without_an_end_rates_stay_after_the_warm_up():
    plan, ending = Plan(10, 100, endless=True), Plan(10, 100)
    excb = small().partial_fit(DIGITS[:40])
    settings = excb._online.model.settings
    momenta = [TeacherRates.of(settings, step, plan).momentum for step in (0, 50, 10**6)]
    assert momenta == [settings.teacher_momentum] * 3
    assert TeacherRates.of(settings, 100, ending).momentum == 1
    excb._online._run.step = 10**6
    excb.partial_fit(DIGITS[40:60])
    rates = {group["lr"] for group in excb._online._run.optimizer.param_groups}
    assert rates == {settings.learning_rate}


def test_a_reservoir_is_a_uniform_sample():
    counts = np.zeros(40)
    for seed in range(400):
        kept = Reservoir(8, seed)
        for first in range(0, 40, 5):
            kept.offer([np.array([number]) for number in range(first, first + 5)])
        counts[np.concatenate(kept.draw(0, 8))] += 1
    assert counts.sum() == 400 * 8
    # binomial of 400 and .2: mean 80, deviation 8
    assert np.abs(counts - 80).max() < 4 * 8


def test_a_reservoir_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(reservoir, "_MOST_BYTES", 10_000)
    kept = Reservoir(10**6, 0)
    kept.offer([np.full(1000, number, np.uint8) for number in range(50)])
    assert len(kept) == 10
    drawn = [int(sample[0]) for sample in kept.draw(0, 10)]
    assert max(drawn) >= 10


def test_a_reservoir_stays_bounded_where_samples_grow(monkeypatch):
    monkeypatch.setattr(reservoir, "_MOST_BYTES", 10_000)
    kept = Reservoir(100, 0)
    kept.offer([np.zeros(100, np.uint8)] * 100)
    kept.offer([np.zeros(1000, np.uint8)] * 2000)
    assert sum(sample.nbytes for sample in kept.draw(0, 100)) <= 10_000
    assert 5 <= len(kept) <= 10


def test_fewer_samples_than_half_a_batch():
    begun = small(batch_size=64).partial_fit(DIGITS[:20])
    assert len(begun.predict(DIGITS[:20])) == 20
    with pytest.raises(NotFittedError, match=r"no labels_.* from partial_fit.*Use predict"):
        _ = begun.labels_


def test_after_a_fit_what_is_new_is_of_its_seed():
    first, second = (small(epochs=1).fit(DIGITS[:60]) for _ in range(2))
    before = torch.get_rng_state()
    first.partial_fit(DIGITS[60:90])
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert_same(first, second.partial_fit(DIGITS[60:90]))


def stream(excb, order, n_passes, size=100):
    """Digits in an order, some passes, in parts."""
    for n in range(n_passes):
        images = DIGITS[order(n)]
        for first in range(0, len(images), size):
            excb.partial_fit(images[first : first + size])
    return excb


@pytest.mark.slow
def test_classes_that_come_one_after_another_keep_clusters_in_use():
    """Sorted by class, then shuffled: with half the passes each."""
    held_out = np.arange(len(DIGITS)) % 5 == 0
    train = np.flatnonzero(~held_out)
    by_class = train[np.argsort(Y[train], kind="stable")]
    excb = ExCBEstimator(K=74, batch_size=64, image_size=16, random_state=0)
    stream(excb, lambda n: by_class, 2)
    after_sorted = cluster_occupancy(excb.predict(DIGITS[train]), 74)
    assert after_sorted.empty_fraction < 0.1
    stream(excb, lambda n: np.random.default_rng(n).permutation(train), 3)
    found = cluster_occupancy(excb.predict(DIGITS[train]), 74)
    assert found.empty_fraction < 0.02
    assert found.effective_clusters > 0.85 * 74
    excb.set_params(embedding="backbone")
    rows, others = excb.transform(DIGITS[train]), excb.transform(DIGITS[held_out])
    assert knn_accuracy(rows, Y[train], others, Y[held_out]) > 0.95


@pytest.mark.parametrize("asked", [True, False])
def test_calls_go_on_whether_or_not_something_was_asked_between_them(asked):
    excb, rows = small(warm_start=True), DIGITS.reshape(-1, 64)
    of_rows = small().partial_fit(rows[:40])
    for first in (0, 40, 80):
        excb.partial_fit(DIGITS[first : first + 40])
        if asked:
            excb.predict(DIGITS[:5])
            of_rows.predict(rows[:5])
    assert (excb.image_shape_, excb.n_channels_) == ((8, 8), 1)
    assert "auto" not in excb.resolved_params_.values()
    assert excb.predict(DIGITS[:5]).shape == (5,)
    of_rows.partial_fit(rows[40:80])
    with pytest.raises(ValueError, match="expecting 64 features"):
        of_rows.partial_fit(rows[:40, :9])
    anew = small(warm_start=True, epochs=1).fit(DIGITS[:40])
    np.testing.assert_array_equal(excb.set_params(epochs=1).fit(DIGITS[:40]).labels_, anew.labels_)
