"""The estimator: scikit-learn's own checks on rows, the same contracts on images, bad input."""

import copy
import pickle
import subprocess
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import (
    check_clustering,
    check_fit_idempotent,
    parametrize_with_checks,
)

from sklearn_excb import ExCBEstimator
from sklearn_excb.networks.backbones import SMALL as SMALL_NETWORKS
from sklearn_excb.settings.parameter_names import _ELSEWHERE
from sklearn_excb.settings.ranges import CONSTRAINTS
from sklearn_excb.settings.recipes import RECIPES
from sklearn_excb.settings.validation import check_columns, check_parameters
from tests.tiers import others_slow

DIGITS = load_digits()
IMAGES = (DIGITS.images[:120] / 16).astype(np.float32)
SMALL = {"K": 6, "epochs": 2, "batch_size": 32, "n_local": 2, "head_width": 16, "random_state": 0}
OF_IMAGES = {"image_size": 12, "local_size": 8}


def history(excb):
    """Entries with NaN as text, since NaN is not equal to itself."""
    return [{k: str(v) for k, v in entry.items()} for entry in excb.history_]


def small(**parameters):
    return ExCBEstimator(**(SMALL | OF_IMAGES | parameters))


def small_of_rows(**parameters):
    return ExCBEstimator(**(SMALL | parameters))


@pytest.fixture(scope="module")
def fitted():
    return small().fit(IMAGES)


@parametrize_with_checks(
    [ExCBEstimator(K=3, epochs=5, batch_size=64, n_local=0, head_width=8, settle_passes=2)],
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [ExCBEstimator(K=3, backbone="mlp", epochs=5, batch_size=64, n_local=0, head_width=8)]
)
def test_scikit_learns_checks_of_hidden_layers(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check_clustering, check_fit_idempotent])
def test_scikit_learns_checks_of_what_the_defaults_learn(check):
    check("ExCBEstimator", ExCBEstimator())


def test_rows_find_blobs():
    X, y = make_blobs(300, centers=3, n_features=5, random_state=0)
    labels = ExCBEstimator(K=3, epochs=10, random_state=0).fit_predict(X)
    assert adjusted_rand_score(y, labels) > 0.9


def test_fitted_attributes(fitted):
    assert fitted.labels_.shape == (120,)
    assert fitted.labels_.dtype == np.int64
    np.testing.assert_array_equal(fitted.labels_, fitted.predict(IMAGES))
    np.testing.assert_allclose(np.linalg.norm(fitted.cluster_centers_, axis=1), 1, rtol=1e-5)
    assert fitted.cluster_centers_.shape == (6, 256)
    counts = np.bincount(fitted.labels_, minlength=6)
    np.testing.assert_allclose(fitted.relative_cluster_sizes_, counts * 6 / 120)
    assert [entry["epoch"] for entry in fitted.history_] == [0, 1, 2]
    assert fitted.resolved_params_["K"] == 6
    assert "auto" not in fitted.resolved_params_.values()
    assert fitted.resolved_params_["random_state"] == 0
    assert fitted.image_shape_ == (8, 8)
    assert fitted.n_channels_ == 1
    assert not hasattr(fitted, "n_features_in_")


def test_embeddings(fitted):
    projection = fitted.transform(IMAGES)
    assert projection.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(projection, axis=1), 1, rtol=1e-5)
    labels = (projection @ fitted.cluster_centers_.T).argmax(axis=1)
    np.testing.assert_array_equal(labels, fitted.labels_)
    try:
        fitted.embedding = "similarity"
        similarity = fitted.transform(IMAGES)
        np.testing.assert_allclose(similarity, projection @ fitted.cluster_centers_.T, atol=1e-5)
        assert len(fitted.get_feature_names_out()) == 6
        fitted.embedding = "backbone"
        assert fitted.transform(IMAGES).shape == (120, len(fitted.get_feature_names_out()))
    finally:
        fitted.embedding = "projection"


def test_batch_composition_changes_nothing(fitted):
    whole = fitted.transform(IMAGES)
    order = np.random.default_rng(0).permutation(120)
    np.testing.assert_allclose(fitted.transform(IMAGES[order]), whole[order], rtol=0, atol=1e-5)
    for i in (0, 7, 119):
        np.testing.assert_allclose(
            fitted.transform(IMAGES[i : i + 1])[0], whole[i], rtol=0, atol=1e-5
        )


def test_results_go_where_they_are_wanted(fitted, tmp_path):
    labels = np.lib.format.open_memmap(tmp_path / "labels.npy", "w+", np.int64, (len(IMAGES),))
    assert fitted.predict(IMAGES, out=labels) is labels
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), fitted.labels_)
    rows = np.empty((len(IMAGES), 256), np.float32)
    assert fitted.transform(IMAGES, out=rows) is rows
    np.testing.assert_array_equal(rows, fitted.transform(IMAGES))
    read_only = np.empty(len(IMAGES), np.int64)
    read_only.flags.writeable = False
    for bad in (labels[1:], labels.astype(np.int32), list(labels), read_only):
        with pytest.raises(ValueError, match=r"out=.* writeable array of shape .* int64.*memmap"):
            fitted.predict(IMAGES, out=bad)


def test_two_fits_with_one_seed_are_identical_and_leave_global_state_alone():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what is tested
    expected = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    first, second = small().fit(IMAGES), small().fit(IMAGES)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])  # noqa: NPY002
    np.testing.assert_array_equal(first.cluster_centers_, second.cluster_centers_)
    np.testing.assert_array_equal(first.transform(IMAGES), second.transform(IMAGES))
    assert history(first) == history(second)
    other = small(random_state=1).fit(IMAGES)
    assert not np.array_equal(first.cluster_centers_, other.cluster_centers_)


def test_dropout_and_drop_path_are_seeded_too():
    backbone = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.LazyLinear(8), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(8)
    )
    backbone(torch.zeros(2, 1, 12, 12))
    first, second = (
        small(backbone=backbone, n_local=0).fit(IMAGES).cluster_centers_ for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_the_number_of_threads_that_read_changes_nothing():
    as_list = list(IMAGES)
    first, second = (small(n_jobs=n).fit(as_list).transform(as_list) for n in (1, 3))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("how", others_slow(["pickle", "joblib", "save"]))
def test_what_is_written_predicts_the_same_in_another_process(fitted, tmp_path, how):
    images, file = tmp_path / "images.npy", tmp_path / "estimator"
    np.save(images, IMAGES)
    read = {
        "pickle": f"import pickle; e = pickle.load(open({str(file)!r}, 'rb'))",
        "joblib": f"import joblib; e = joblib.load({str(file)!r})",
        "save": f"from sklearn_excb import ExCBEstimator as E; e = E.load({str(file)!r})",
    }[how]
    if how == "pickle":
        file.write_bytes(pickle.dumps(fitted))
    elif how == "joblib":
        joblib.dump(fitted, file)
    else:
        fitted.save(file)
    out = tmp_path / "out.npy"
    script = (
        f"{read}\nimport numpy as np\nnp.save({str(out)!r}, e.transform(np.load({str(images)!r})))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    np.testing.assert_allclose(np.load(out), fitted.transform(IMAGES), rtol=0, atol=1e-6)


def test_pickling_leaves_the_network_where_others_use_it(fitted, monkeypatch):
    teacher, moved, cpu = fitted._fitted.teacher, [], torch.Tensor.cpu
    before = {name: id(of) for name, of in [*teacher.named_parameters(), *teacher.named_buffers()]}
    monkeypatch.setattr(torch.Tensor, "cpu", lambda of: (moved.append(id(of)), cpu(of))[1])
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda *_: pytest.fail("the network was moved"))
    for write in (pickle.dumps, copy.deepcopy):
        write(fitted)
        after = [*teacher.named_parameters(), *teacher.named_buffers()]
        assert {name: id(of) for name, of in after} == before
    assert len(moved) == 2 * len(before)
    state = fitted._fitted.__getstate__()["teacher"].state_dict()  # no copy on the CPU
    for name, of in teacher.state_dict().items():
        assert state[name].data_ptr() == of.data_ptr()


def test_a_missing_device_means_the_cpu_after_fit_and_an_error_before(fitted):
    missing = next(
        d for d in ("cuda", "mps", "xpu") if d not in str(torch.accelerator.current_accelerator())
    )
    with pytest.raises(ValueError, match="is not on this machine, which has cpu"):
        small(device=missing).fit(IMAGES)
    elsewhere = pickle.loads(pickle.dumps(fitted)).set_params(device=missing)
    with pytest.warns(UserWarning, match="Inference continues on the CPU"):
        labels = elsewhere.predict(IMAGES)
    np.testing.assert_array_equal(labels, fitted.labels_)


def test_save_and_load_keep_everything(fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = ExCBEstimator.load(tmp_path)
    assert loaded.get_params() == fitted.get_params()
    np.testing.assert_array_equal(loaded.labels_, fitted.labels_)
    np.testing.assert_array_equal(loaded.cluster_centers_, fitted.cluster_centers_)
    assert history(loaded) == history(fitted)
    assert loaded.resolved_params_ == fitted.resolved_params_
    assert loaded.image_shape_ == fitted.image_shape_


def test_load_refuses_what_it_does_not_know(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match="No saved estimator"):
        ExCBEstimator.load(tmp_path / "nothing")
    fitted.save(tmp_path)
    file = tmp_path / "estimator.json"
    file.write_text(file.read_text().replace('"format": 9', '"format": 99'))
    with pytest.raises(ValueError, match=r"has format 99, .* reads formats 7 to 9"):
        ExCBEstimator.load(tmp_path)


def test_a_backbone_of_ones_own_is_asked_for_when_loading(tmp_path):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
    X = np.random.default_rng(0).standard_normal((40, 8))
    excb = small_of_rows(backbone=module, K=3).fit(X)
    excb.save(tmp_path)
    with pytest.raises(ValueError, match=r"backbone of your own, Sequential.*backbone=module"):
        ExCBEstimator.load(tmp_path)
    loaded = ExCBEstimator.load(tmp_path, backbone=module)
    np.testing.assert_array_equal(loaded.predict(X), excb.labels_)


def test_clone_copies_parameters_and_nothing_learned(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "labels_")


def test_pipeline_and_grid_search():
    y = DIGITS.target[:120]
    pipeline = make_pipeline(small(embedding="backbone"), RidgeClassifier())
    assert pipeline.fit(IMAGES, y).score(IMAGES, y) > 0.3
    search = GridSearchCV(pipeline, {"excbestimator__K": [4, 8]}, cv=2).fit(IMAGES, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_[0].resolved_params_["K"] in (4, 8)

    def scorer(estimator, X, y):
        return normalized_mutual_info_score(y, estimator.predict(X))

    search = GridSearchCV(small(), {"K": [4, 8]}, scoring=scorer, cv=2).fit(IMAGES, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_set_output_gives_a_frame(fitted):
    frame = clone(fitted).set_output(transform="pandas").fit_transform(IMAGES)
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns[1] == "excbestimator1"


@pytest.mark.parametrize("in_pipeline", [False, True], ids=["alone", "in a pipeline"])
def test_a_frame_keeps_its_index(in_pipeline):
    rows = IMAGES[:60].reshape(60, -1)
    X = pd.DataFrame(rows, index=[f"row {i}" for i in range(60)]).add_prefix("pixel ")
    excb = small_of_rows(n_local=0)
    steps = make_pipeline(StandardScaler(), excb) if in_pipeline else excb
    steps.set_output(transform="pandas").fit(X)
    for some in (X, X.iloc[5:9], X.iloc[::-1]):
        pd.testing.assert_index_equal(steps.transform(some).index, some.index)
    pd.testing.assert_index_equal(steps.fit_transform(X).index, X.index)


def test_weights_of_samples_are_refused_by_name():
    X, weights = IMAGES[:60].reshape(60, -1), np.ones(60)
    excb = small_of_rows()
    pipeline = make_pipeline(StandardScaler(), excb)
    for call in (
        lambda: excb.fit(X, sample_weight=weights),
        lambda: excb.partial_fit(X, sample_weight=weights),
        lambda: excb.fit_predict(X, sample_weight=weights),
        lambda: pipeline.fit(X, excbestimator__sample_weight=weights),
    ):
        with pytest.raises(TypeError, match="sample_weight"):
            call()
    with config_context(enable_metadata_routing=True):
        asking = StandardScaler().set_fit_request(sample_weight=True)
        make_pipeline(asking, clone(excb)).fit(X, sample_weight=weights)


def test_epoch_zero_is_the_untrained_network(fitted):
    excb = small(epochs=0).fit(IMAGES)
    assert len(excb.history_) == 1
    assert excb.predict(IMAGES).shape == (120,)
    assert fitted.history_[0].keys() == fitted.history_[2].keys()
    assert history(fitted)[0] == history(excb)[0]
    empty = (fitted.relative_cluster_sizes_ == 0).mean()
    assert fitted.history_[-1]["empty_fraction"] == empty
    assert np.isnan(fitted.history_[1]["empty_fraction"])


def test_a_run_without_a_seed_can_be_repeated():
    excb = small(random_state=None, epochs=1).fit(IMAGES)
    again = small(random_state=excb.resolved_params_["random_state"], epochs=1).fit(IMAGES)
    np.testing.assert_array_equal(excb.cluster_centers_, again.cluster_centers_)


def test_a_run_that_diverges_stops_and_loses_nothing():
    excb = small(epochs=0).fit(IMAGES)
    labels = excb.labels_
    with pytest.raises(
        FloatingPointError, match=r"diverged in epoch 1 .* Lower learning_rate, now 1e\+09"
    ):
        excb.set_params(epochs=4, learning_rate=1e9, warmup_epochs=0).fit(IMAGES)
    assert excb.labels_ is labels


def test_rows_far_from_zero_keep_their_digits():
    X, y = make_blobs(200, centers=3, n_features=5, random_state=0)
    labels = ExCBEstimator(K=3, epochs=10, random_state=0).fit_predict(X + 1.7e9)
    assert adjusted_rand_score(y, labels) > 0.9


@pytest.mark.parametrize("n_jobs", [-1, None, 2])
def test_n_jobs_as_scikit_learn_takes_them(n_jobs):
    assert small(n_jobs=n_jobs, epochs=1).fit(list(IMAGES)).resolved_params_["n_jobs"] >= 1


def test_numbers_of_numpy_are_saved_too(tmp_path):
    excb = small(K=np.int64(3), epochs=np.int64(1), teacher_temperature=np.float32(0.04))
    excb.set_params(weight_decay=(np.float32(0.1), np.float32(0.2))).fit(IMAGES).save(tmp_path)
    np.testing.assert_array_equal(ExCBEstimator.load(tmp_path).labels_, excb.labels_)


def test_tied_weights_are_saved_too(tmp_path):
    linear = torch.nn.Linear(8, 8)
    module = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(8), linear)
    X = np.random.default_rng(0).standard_normal((40, 8))
    excb = small_of_rows(backbone=module, K=3, epochs=1).fit(X)
    excb.save(tmp_path)
    loaded = ExCBEstimator.load(tmp_path, backbone=module)
    np.testing.assert_array_equal(loaded.predict(X), excb.labels_)
    with pytest.raises(ValueError, match=r"do not fit the backbone"):
        ExCBEstimator.load(tmp_path, backbone=torch.nn.Linear(8, 8))


def test_files_are_named(tmp_path):
    from PIL import Image

    for i, image in enumerate(IMAGES[:20]):
        Image.fromarray((image * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    excb = small(K=2, epochs=0, batch_size=8).fit(tmp_path)
    assert [name.rsplit("/", 1)[1] for name in excb.sample_names_[:3]] == [
        "0.png",
        "1.png",
        "2.png",
    ]
    assert excb.n_channels_ == 3
    excb.save(tmp_path / "run")
    loaded = ExCBEstimator.load(tmp_path / "run")
    np.testing.assert_array_equal(loaded.sample_names_, excb.sample_names_)
    assert not hasattr(excb.fit(IMAGES), "sample_names_")


def test_colour_lists_of_any_size_and_uint8():
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (20 + i % 5, 30, 3), dtype=np.uint8) for i in range(24)]
    excb = small(K=3, batch_size=8).fit(photos)
    assert excb.n_channels_ == 3
    assert excb.transform(photos).shape == (24, 256)


def test_images_with_five_channels():
    X = np.random.default_rng(0).random((24, 16, 16, 5))
    assert small(K=3, batch_size=8).fit(X).predict(X).shape == (24,)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"K": 500},
            r"K=500 exceeds n_samples=120, .* needs at least one sample. Lower K",
        ),
        ({"K": 1}, r"K=1 cannot be used: it must be 'auto' or an integer >= 2"),
        ({"K": 2.5}, r"K=2.5 cannot be used"),
        ({"n_global": 1}, r"n_global=1 cannot be used: it must be an integer >= 2"),
        ({"epochs": -1}, r"epochs=-1"),
        ({"teacher_temperature": 0.0}, r"a number in \[1e-06, 1e\+06\]"),
        ({"size_momentum": 1.0}, r"a number in \[0, 1\)"),
        ({"weight_decay": -0.1}, r"or a pair of them: the first and the last"),
        ({"balancing": "cubic"}, r"one of 'linear', 'exponential'"),
        ({"embedding": "logits"}, r"one of 'projection', 'backbone', 'similarity'"),
        ({"optimizer": "lars"}, r"'auto' or one of 'sgd', 'adamw'"),
        ({"backbone": "resnet51"}, r"Did you mean .*resnet50"),
        ({"device": "cud"}, r"Unknown device 'cud'. Did you mean 'cuda'"),
        ({"device": "gpu"}, r"Unknown device 'gpu'. Did you mean 'cuda'"),
        ({"device": "cpu:3"}, r"'cpu:3' is not on this machine"),
        ({"image_size": 224}, r"more than four times. Lower image_size to 32"),
        ({"image_size": 32, "local_size": 40}, r"local_size=40 exceeds image_size=32"),
    ],
)
def test_bad_parameters_get_a_clear_error_and_lose_nothing(parameters, message):
    excb = small(epochs=0).fit(IMAGES)
    before = dict(vars(excb))
    excb.set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        excb.fit(IMAGES)
    after = {k: v for k, v in vars(excb).items() if k not in parameters}
    assert after == {k: v for k, v in before.items() if k not in parameters}


HUGE = [10**31, -(10**31), 10**400, 1e308, -1e308, float("inf"), float("nan")]


@pytest.mark.parametrize("name", sorted(set(CONSTRAINTS) - {"verbose"}))
@pytest.mark.parametrize("value", HUGE, ids=lambda value: f"{str(value)[:5]}")
def test_no_parameter_takes_any_number(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.* cannot be used: it must be "):
        check_parameters(ExCBEstimator().get_params() | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1e-45),
        ("learning_rate", 1e-320),
        ("weight_decay", 1e6),
        ("warmup_epochs", 2**31 - 1),
        ("teacher_temperature", 1e-6),
        ("teacher_temperature", 1e6),
        ("student_temperature", 1e-6),
        ("student_temperature", 1e6),
        ("size_momentum", 1 - 1e-16),
        ("batch_size", 2**31 - 1),
        ("micro_batch", 2**31 - 1),
        ("n_jobs", 4096),
        ("n_jobs", -4096),
        ("random_state", 2**32 - 1),
    ],
)
def test_the_ends_of_ranges_are_fitted(name, value):
    few = small_of_rows(**({"K": 3, "n_local": 0, "batch_size": 20, "epochs": 1} | {name: value}))
    with warnings.catch_warnings(action="ignore"):
        labels = few.fit_predict(IMAGES[:40].reshape(40, -1))
    assert set(labels) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (DIGITS.images, r"run from 0 to 16.*X / 16"),
        (np.full((30, 8, 8), np.nan), "NaN or infinite"),
        (np.full((30, 8, 8), "a", dtype=object), "type object cannot be used"),
        ([np.zeros((8, 8)), np.zeros((8, 8, 3))] * 10, "mixed channel counts"),
    ],
)
def test_bad_data_gets_a_clear_error_and_loses_nothing(X, message):
    excb = small(epochs=0).fit(IMAGES)
    before = dict(vars(excb))
    with pytest.raises(ValueError, match=message):
        excb.fit(X)
    assert vars(excb) == before


def test_images_and_rows_are_not_mixed_up(fitted):
    with pytest.raises(ValueError, match=r"X holds 2-D rows, but .* was fitted on images"):
        fitted.predict(IMAGES.reshape(120, -1))
    rows = small_of_rows().fit(IMAGES.reshape(120, -1))
    with pytest.raises(ValueError, match=r"X holds images, but .* was fitted on 2-D rows"):
        rows.predict(IMAGES)
    with pytest.raises(ValueError, match=r"with 3 channels.*fitted on images with 1"):
        fitted.predict(np.zeros((4, 8, 8, 3)))


def test_what_was_meant_is_told_by_its_shape(fitted):
    rows = small_of_rows(epochs=0).fit(IMAGES.reshape(120, -1))
    colour = small(epochs=0).fit(np.stack([IMAGES] * 3, axis=-1))
    for estimator, X, meant in [
        (fitted, IMAGES[0], r"X\[None\]"),
        (fitted, IMAGES[:5].reshape(5, 64), r"8 x 8, pass X\.reshape\(-1, 8, 8\)"),
        (fitted, np.zeros((5, 10)), "Features need an estimator"),
        (fitted, [0.5, 0.5], "Features need an estimator"),
        (colour, np.zeros((5, 192)), r"8 x 8 x 3, pass X\.reshape\(-1, 8, 8, 3\)"),
        (colour, np.zeros((30, 40, 3)), r"like one image, but .* as 30 gray.*X\[None\]"),
        (fitted, np.zeros((28, 28, 1)), r"like one image, but .* as 28 gray.*X\[None\]"),
        (fitted, pd.DataFrame(np.zeros((5, 64))), r"np\.asarray\(X\)\.reshape\(-1, 8, 8\)"),
        (colour, torch.zeros(3, 30, 40), r"X\.permute\(1, 2, 0\)\[None\]"),
        (colour, np.zeros((3, 30, 40)), r"X\.transpose\(1, 2, 0\)\[None\]"),
        (rows, IMAGES[:5], r"X\.reshape\(len\(X\), -1\)"),
        (rows, np.zeros((5, 9, 9)), r"rows \(n, 64\)"),
    ]:
        with pytest.raises(ValueError, match=meant):
            estimator.predict(X)
    with pytest.raises(ValueError, match=r"like one image.*X\[None\] for one.*X\[\.\.\., None\]"):
        small().fit(np.zeros((30, 40, 3)))
    with pytest.raises(ValueError, match=r"like one image.*X\.permute\(1, 2, 0\)\[None\]"):
        small().fit(torch.zeros(3, 30, 40))


def test_gray_images_may_be_as_narrow_as_there_are_channels():
    narrow = np.random.default_rng(0).random((50, 9, 3))
    excb = small(epochs=0, n_channels=1).fit(narrow)
    np.testing.assert_array_equal(excb.predict(narrow), excb.labels_)
    assert excb.image_shape_ == (9, 3)
    wide = small(epochs=0).fit(IMAGES)
    with pytest.raises(ValueError, match=r"X\[\.\.\., None\] for 50 gray images"):
        wide.predict(narrow)
    assert wide.predict(narrow[..., None]).shape == (50,)


def test_one_thing_is_not_a_collection():
    picture = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(TypeError, match=r"X is one image \(Image\).*\[X\]"):
        small().fit(picture)
    with pytest.raises(TypeError, match=r"dict \('a', 'b'\), not .*\[\*X.values\(\)\]"):
        small().fit({"a": picture, "b": picture})
    with pytest.raises(
        TypeError, match=r"dict \('train', 'test'\), not .* one of its values, X\['train'\]"
    ):
        small().fit({"train": [picture] * 9, "test": [picture] * 9})
    with pytest.raises(ValueError, match="empty"):
        small().fit({})
    for one in (IMAGES[:1], [picture]):
        with pytest.raises(ValueError, match="X holds one sample, but clustering needs"):
            ExCBEstimator().fit(one)


def test_what_only_images_have_is_refused_for_rows():
    with pytest.raises(ValueError, match=r"image_size=64 is for images, but X holds 2-D rows"):
        small_of_rows(image_size=64).fit(IMAGES.reshape(120, -1))


def test_not_fitted_yet():
    from sklearn.exceptions import NotFittedError

    for method in ("predict", "transform"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(ExCBEstimator(), method)(IMAGES)
    with pytest.raises(NotFittedError):
        ExCBEstimator().save("nowhere")


def test_recipes_by_name():
    excb = ExCBEstimator.from_recipe("paper-vit-s16", K=100)
    assert (excb.K, excb.epochs, excb.backbone) == (100, 800, "vit_small_patch16_224")
    with pytest.raises(
        ValueError, match=r"Unknown recipe 'paper-resnet'. Did you mean 'paper-resnet50'"
    ):
        ExCBEstimator.from_recipe("paper-resnet")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n_clusters", 10, r"no parameter 'n_clusters': the number of clusters is K, so use K=10"),
        ("max_iter", 5, r"use epochs=5"),
        ("epoch", 5, r"use epochs=5"),
        ("lr", 0.1, r"use learning_rate=0.1"),
        ("xyz", 0, r"no parameter 'xyz': see help\(ExCBEstimator\)"),
    ],
)
def test_parameters_by_other_names_are_explained(name, value, message):
    for create in (ExCBEstimator, partial(ExCBEstimator.from_recipe, "tiny")):
        with pytest.raises(TypeError, match=message):
            create(**{name: value})
    for setting in (ExCBEstimator().set_params, clone(ExCBEstimator()).set_params):
        with pytest.raises(ValueError, match=message):
            setting(**{name: value})


def test_names_for_parameters_elsewhere_are_not_parameters_here():
    names = ExCBEstimator().get_params()
    assert not _ELSEWHERE.keys() & names.keys()
    assert set(_ELSEWHERE.values()) <= names.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_valid_parameters_and_backbones_that_exist(name):
    parameters = ExCBEstimator.from_recipe(name).get_params()
    check_parameters(parameters)
    backbone = parameters["backbone"]
    assert backbone in SMALL_NETWORKS or timm.is_model(backbone)
    if parameters["pretrained"]:
        assert timm.is_model_pretrained(backbone)


def test_progress_is_shown_only_when_asked(capfd):
    small(epochs=1).fit(IMAGES)
    assert capfd.readouterr() == ("", "")
    small(epochs=1, verbose=1).fit(IMAGES)
    err = capfd.readouterr().err
    assert "loss" in err
    assert "empty" in err


def test_columns_that_are_no_numbers_are_named():
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 3)), columns=list("abc"))
    named = rows.assign(name="x", when=pd.Timestamp("2026-01-01"))
    with pytest.raises(TypeError, match=r"X\['name'\] holds text.*leave these columns out"):
        ExCBEstimator(K=4, epochs=1).fit(named)
    with pytest.raises(ValueError, match=r"not numeric: when\. Leave them out"):
        ExCBEstimator(K=4, epochs=1).fit(named.drop(columns="name"))
    excb = ExCBEstimator(K=4, epochs=1, random_state=0).fit(named.drop(columns=["name", "when"]))
    assert list(excb.feature_names_in_) == ["a", "b", "c"]
    objects = named.drop(columns=["name", "when"]).astype({"b": object})
    again = ExCBEstimator(K=4, epochs=1, random_state=0).fit(objects)
    np.testing.assert_array_equal(again.labels_, excb.labels_)


class PolarsTable:
    """What is asked of a table of polars: its columns are named otherwise."""

    columns = ("size", "Name")
    dtypes = ("Float64", "String")

    def __getitem__(self, name):
        return ["ab", "c"] if name == "Name" else [1.0, 2.0]


def test_columns_of_other_tables_are_named_too():
    with pytest.raises(ValueError, match="not numeric: Name"):
        check_columns(PolarsTable())


def test_a_table_is_not_taken_for_a_folder(tmp_path):
    file = tmp_path / "embeddings.csv"
    file.write_text("a,b\n1,2\n")
    with pytest.raises(NotADirectoryError, match="Read the table and pass its rows"):
        ExCBEstimator().fit(file)


def test_the_import_leaves_out_what_a_fit_may_not_need():
    code = (
        "import sys; from sklearn_excb import ExCBEstimator; "
        "print([m for m in ('timm', 'torchvision', 'faiss', 'umap', 'matplotlib', 'PIL') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


KINDS_OF_TENSORS = {
    "bfloat16": lambda x: x.bfloat16(),
    "float8": lambda x: x.to(torch.float8_e5m2),
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "parameter": lambda x: torch.nn.Parameter(x.bfloat16()),
    "negative bit": lambda x: torch._neg_view(-x),
    "list of tensors": lambda x: [*x.bfloat16()],
}


@pytest.mark.parametrize("of", ["rows", "images"])
@pytest.mark.parametrize("kind", KINDS_OF_TENSORS)
def test_tensors_of_any_kind_are_taken(kind, of):
    """Their values are 0, 1/4, ..., 1, which every type has."""
    images = np.random.default_rng(0).integers(0, 5, (40, 8, 8)).astype(np.float32) / 4
    x = images.reshape(40, -1) if of == "rows" else images
    tensors = KINDS_OF_TENSORS[kind](torch.from_numpy(x))
    small = {"K": 3, "epochs": 1, "batch_size": 16, "head_width": 16, "random_state": 0}
    excb = ExCBEstimator(**small).fit(tensors)
    expected = ExCBEstimator(**small).fit(x)
    np.testing.assert_array_equal(excb.labels_, expected.labels_)
    np.testing.assert_array_equal(excb.predict(tensors), expected.labels_)
    np.testing.assert_array_equal(excb.transform(tensors), expected.transform(x))
    assert ExCBEstimator(**small).partial_fit(tensors).predict(tensors).shape == (40,)
