"""Reports and scores of estimators, whichever way they were fitted."""

import os
import pickle
import shutil
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sklearn_excb import ExCBEstimator, report_baselines, reporting
from sklearn_excb.exceptions import BaselineWarning, SkippedImageWarning
from sklearn_excb.fitting.untrained import untrained_network
from sklearn_excb.training import teacher_outputs
from sklearn_excb.training.history import MEANINGS
from tests import published_files
from tests.small_runs import DIGITS, OF_ROWS, small

ROWS = DIGITS.reshape(len(DIGITS), -1)
BASELINES = ("k-means on the same embeddings", "untrained network, k-means")


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(DIGITS)


def module():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


def frozen(**parameters):
    return small(backbone=module(), freeze_backbone=True, epochs=1, **parameters)


def published(folder):
    torch.save(published_files.excb("resnet18", K=3, width=32), folder / "published.pth")
    return ExCBEstimator.from_checkpoint(folder / "published.pth")


def loaded(fitted, folder, **parts):
    fitted.save(folder / "fit")
    return ExCBEstimator.load(folder / "fit", **parts)


def state_of_a_run(folder):
    small(epochs=1, checkpoint_dir=folder / "states").fit(DIGITS)
    return ExCBEstimator.load(next((folder / "states").glob("step*")))


def one_image_is_broken(folder):
    return small(epochs=1, on_error="skip").fit([*DIGITS[:-1], "no file"])


NOISE = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
ROUTES = {
    "images": (lambda _: small(epochs=1).fit(DIGITS), DIGITS),
    "fewer images": (lambda _: small(epochs=1).fit(DIGITS), DIGITS[:5]),
    "larger images": (lambda _: small(epochs=1).fit(DIGITS), DIGITS.repeat(9, 1).repeat(9, 2)),
    "a list": (lambda _: small(epochs=1).fit([*DIGITS]), [*DIGITS]),
    "an image skipped": (one_image_is_broken, [*DIGITS[:-1], "no file"]),
    "rows": (lambda _: small(epochs=1, **OF_ROWS).fit(ROWS), ROWS),
    "rows and a backbone": (lambda _: small(epochs=1, backbone="mlp", **OF_ROWS).fit(ROWS), ROWS),
    "a module": (lambda _: small(backbone=module(), epochs=1).fit(DIGITS), DIGITS),
    "a frozen module": (lambda _: frozen().fit(DIGITS), DIGITS),
    "no epochs": (lambda _: small(epochs=0).fit(DIGITS), DIGITS),
    "a stream": (lambda _: small(epochs=1, steps_per_epoch=2).fit(Stream()), DIGITS),
    "partial_fit": (lambda _: small().partial_fit(DIGITS), DIGITS),
    "partial_fit of rows": (lambda _: small(**OF_ROWS).partial_fit(ROWS), ROWS),
    "with checkpoints": (lambda at: small(epochs=1, checkpoint_dir=at / "c").fit(DIGITS), DIGITS),
    "a state of a run": (state_of_a_run, DIGITS),
    "loaded": (lambda at: loaded(small(epochs=1).fit(DIGITS), at), DIGITS),
    "loaded rows": (lambda at: loaded(small(epochs=1, **OF_ROWS).fit(ROWS), at), ROWS),
    "loaded, frozen": (lambda at: loaded(frozen().fit(DIGITS), at, backbone=module()), DIGITS),
    "pickled": (lambda _: pickle.loads(pickle.dumps(small(epochs=1).fit(DIGITS))), DIGITS),
    "published": (published, NOISE),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_of_a_fit_has_its_report(route, tmp_path, monkeypatch):
    fit, X = ROUTES[route]
    if route == "published":  # inference fills batches up to 32 images, for the last bits
        monkeypatch.setattr(teacher_outputs, "_MULTIPLE", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the fit
        excb = fit(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkippedImageWarning)
        labels = excb.predict(X)
        summary = reporting.report(excb, X, tmp_path / "report.html")
        np.testing.assert_array_equal(excb.predict(X), labels)  # the fit is as it was
    assert summary.n_images + summary.n_skipped == len(X)
    page = summary.path.read_text()
    assert all(name in page for name in BASELINES)


@pytest.mark.parametrize(
    ("parameters", "X"),
    [
        ({}, DIGITS),
        ({"batch_size": 60, "micro_batch": 8}, DIGITS),
        (OF_ROWS, ROWS),
        ({"backbone": "mlp", **OF_ROWS}, ROWS),
        ({"backbone": module()}, DIGITS),
        ({"backbone": module(), "freeze_backbone": True}, DIGITS),
    ],
)
def test_the_untrained_network_is_that_of_no_epochs(parameters, X):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        excb = small(**parameters).fit(X)
        expected = small(**parameters).set_params(epochs=0, settle_passes=0).fit(X)
    source = excb._open_indexed(X)
    network = untrained_network(
        excb._fitted, source, pretrained=False, seed=0, device=torch.device("cpu"), n_jobs=1
    )
    projections, labels = excb._project_and_label(source, network)
    np.testing.assert_array_equal(projections, expected.transform(X))
    np.testing.assert_array_equal(labels, expected.labels_)


def test_baselines_do_not_depend_on_the_default_dtype(tmp_path, request):
    excb = small(epochs=1).fit(DIGITS)
    expected = reporting.report(excb, DIGITS, tmp_path / "expected.html")
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BaselineWarning)
        found = reporting.report(excb, DIGITS, tmp_path / "found.html")
    assert all(name in found.path.read_text() for name in BASELINES)
    assert found.n_bytes == expected.n_bytes


@pytest.mark.parametrize("failing", ["untrained_network", "spherical_kmeans"])
def test_a_baseline_that_fails_costs_its_column_alone(failing, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    excb = small(epochs=1).fit(DIGITS)
    monkeypatch.setattr(report_baselines, failing, fail)
    with pytest.warns(BaselineWarning, match=r"lacks the baseline .*: out of memory") as told:
        summary = reporting.report(excb, DIGITS, tmp_path / "report.html")
    assert [name in summary.path.read_text() for name in BASELINES].count(False) == len(told)


def test_each_warning_of_a_report_comes_once(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(DIGITS):
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "phone.heic").write_bytes(b"not read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        excb = small(epochs=1, on_error="skip").fit(folder)
    y = [str(i % 2) for i in range(61)]
    for use in (
        lambda: reporting.report(excb, folder, tmp_path / "report.html", y=y),
        lambda: reporting.evaluate(excb, folder, y),
        lambda: reporting.infer(excb, folder),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            use()
        kinds = [warning.category.__name__ for warning in told]
        assert sorted(kinds) == ["SkippedImageWarning", "UnreadPicturesWarning"]


def test_reports_leave_the_estimator_as_it_is_at_every_moment(tmp_path, monkeypatch):
    """So that other threads may use it meanwhile."""
    excb = small(epochs=1).fit(DIGITS)
    changed = []

    class Watched(ExCBEstimator):
        def __setattr__(self, name, value):
            changed.append(name)
            super().__setattr__(name, value)

    excb.__class__ = Watched
    y = np.arange(len(DIGITS)) % 3
    reporting.report(excb, DIGITS, tmp_path / "report.html", y=y)
    reporting.evaluate(excb, DIGITS, y, DIGITS, y)
    assert set(changed) <= {"_linkage"}  # made once, when it is first asked for


def collections(folder):
    """One collection in many of the forms that fit takes."""
    pixels = (DIGITS[:20] * 255).astype(np.uint8)
    pictures = [Image.fromarray(image) for image in pixels]
    (folder / "photos").mkdir()
    for i, picture in enumerate(pictures):
        picture.save(folder / "photos" / f"{i:02}.png")
    files = sorted((folder / "photos").iterdir())
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for file in files:
            tar.add(file, file.name)
    return {
        "array": pixels,
        "array of 16 bits": pixels.astype(np.uint16) * 257,
        "tensor": torch.from_numpy(pixels),
        "list of arrays": [*pixels],
        "pictures": pictures,
        "bytes": [file.read_bytes() for file in files],
        "labelled": [(image, 0) for image in pixels],
        "dicts": [{"image": picture, "label": 0} for picture in pictures],
        "array of objects": np.array([str(file) for file in files], object),
        "folder": folder / "photos",
        "archive": folder / "photos.tar",
        "archives": [folder / "photos.tar"],
        "absolute and relative paths": [*files[:10], *map(os.path.relpath, files[10:])],
        "one folder above the other": [*files[:19], shutil.copy(files[19], folder / "19.png")],
        "one image of many": [*files[:19], files[0]],
    }


def test_reports_take_every_collection_that_fit_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, X in collections(tmp_path).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            excb = small(epochs=0).fit(X)
        assert reporting.report(excb, X, "report.html").n_images == 20, kind
        groups = reporting.near_duplicates(excb, X, tolerance=1e-6)
        copies = [[0, 19]] if kind == "one image of many" else []
        assert [group.tolist() for group in groups] == copies, kind


def test_duplicates_have_the_positions_of_the_collection():
    """Whatever was skipped."""
    X = [*DIGITS[:20], "no file", DIGITS[3], None, DIGITS[7]]
    with pytest.warns(SkippedImageWarning):
        excb = small(epochs=0, on_error="skip").fit(X)
    with pytest.warns(SkippedImageWarning, match="2 of 24"):
        groups = reporting.near_duplicates(excb, X, tolerance=1e-6)
    assert [group.tolist() for group in groups] == [[3, 21], [7, 23]]
    rows = np.concatenate([ROWS, ROWS[4:5]])
    excb = small(epochs=0, **OF_ROWS).fit(rows)
    groups = reporting.near_duplicates(excb, rows, threshold=0.999_999)
    assert [group.tolist() for group in groups] == [[4, 60]]


def test_every_figure_of_a_training_is_explained():
    entry = small(epochs=1).fit(DIGITS).history_[-1]
    assert entry.keys() - {"epoch"} == MEANINGS.keys()
