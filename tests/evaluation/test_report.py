import base64
import io
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation import Projection, review_clusters, write_report
from evaluation.output_files import check_writable, replacing
from evaluation.report.charts import history_charts
from evaluation.report.images import make_thumbnails
from tests.evaluation.small_report import HOSTILE, K, digits


def data_of(path):
    text = path.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    return json.loads(found, parse_constant=not_json)


def not_json(constant):
    raise AssertionError(f"browsers cannot read {constant}")


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<"))


def test_what_is_in_the_file(written):
    summary = written.summary
    text = written.path.read_text(encoding="utf-8")
    assert summary.path == written.path
    assert summary.n_bytes == written.path.stat().st_size < 400_000
    assert (summary.n_images, summary.n_shown, summary.n_skipped) == (599, 599, 1)
    assert not re.search(r"(?:https?:)?//[a-z]", text.split('id="data"')[0].replace("// ", ""))
    assert "Digits &lt;3" in text
    assert "<img" not in text
    assert "1 more could not be used" in text
    assert HOSTILE in data_of(written.path)["names"]
    review = review_clusters(written.given["embeddings"], written.given["labels"], K)
    assert summary.suspects == tuple(review.suspects)
    assert summary.suspects[0] == 3


def test_the_same_input_gives_the_same_file(written, tmp_path):
    write_report(tmp_path / "again.html", **written.given)
    assert (tmp_path / "again.html").read_bytes() == written.path.read_bytes()


def test_arrays_alone_are_enough(tmp_path):
    found = digits(40)
    summary = write_report(
        tmp_path / "a.html", embeddings=found.data, labels=np.arange(40) % 3, random_state=1
    )
    assert summary.n_shown == 40
    data = data_of(summary.path)
    assert data["names"][3] == "image 3"
    assert "thumbnails" not in data


def test_what_the_curves_are_is_said_by_whoever_knows(tmp_path):
    history = [{"epoch": i, "val_loss": 1.0 - i, "once": 1.0 if i else None} for i in range(2)]
    given = {"embeddings": np.eye(4), "labels": [0, 0, 1, 1], "history": history}
    meanings = {"val_loss": "of what <is> held out", "once": "not on a chart"}
    write_report(tmp_path / "a.html", history_meanings=meanings, **given)
    text = (tmp_path / "a.html").read_text()
    assert "<dt>val loss</dt><dd>of what &lt;is&gt; held out</dd>" in text
    assert "not on a chart" not in text


def test_what_is_odd_has_positions(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (60, 16, 16, 3), np.uint8)
    images[20] = images[7]
    images[5], images[30] = 0, rng.integers(254, 256, (16, 16, 3))  # black, and white with noise
    rows = np.ones((60, 4)) + rng.normal(0, 0.01, (60, 4))  # all alike: no neighbour tells
    rows[50], rows[20] = -1, rows[7]
    summary = write_report(
        tmp_path / "a.html", embeddings=rows, labels=np.arange(60) % 3, images=images
    )
    assert set(summary.outliers[:2]) <= {5, 30, 50}
    assert {5, 30, 50} <= set(summary.outliers)
    assert len(summary.outliers) == 24
    assert (7, 20) in summary.duplicates
    assert data_of(summary.path)["outliers"] == list(summary.outliers)


def test_a_baseline_has_a_number_of_clusters_of_its_own(written):
    text = written.path.read_text(encoding="utf-8")
    row = re.search(r"by chance</th>(.*?)</tr>", text)[1]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:2] == ["5", "0.0 %"]


def test_labels_of_a_baseline_may_be_a_tuple(tmp_path):
    summary = write_report(
        tmp_path / "a.html", embeddings=np.eye(4), labels=[0, 0, 1, 1], baseline={"b": (0, 1, 2, 3)}
    )
    assert "<td>4</td>" in summary.path.read_text()


def test_an_unknown_class_of_a_skipped_image_is_no_matter(tmp_path):
    y = ["a", None, "b", "b", "b"]
    rows = np.insert(np.eye(4), 1, np.nan, axis=0)
    summary = write_report(tmp_path / "a.html", embeddings=rows, labels=[0, -1, 1, 1, 1], y=y)
    assert (summary.n_images, summary.n_skipped) == (4, 1)


def test_names_are_taken_in_their_order(tmp_path):
    names = pd.Series(["a", "b", "c", "d"], index=[3, 2, 1, 0])
    summary = write_report(
        tmp_path / "a.html", embeddings=np.eye(4), labels=[0, 0, 1, 1], names=names
    )
    assert data_of(summary.path)["names"] == ["a", "b", "c", "d"]


def test_images_that_are_all_the_same(tmp_path):
    with pytest.warns(UserWarning, match="all alike"):
        summary = write_report(
            tmp_path / "a.html",
            embeddings=np.zeros((9, 3)),
            labels=np.arange(9) % 2,
            images=np.zeros((9, 8, 8)),
            title="",
        )
    assert "<title>Clusters</title>" in summary.path.read_text()


NORMAL = np.random.default_rng(0).normal(size=(50, 4))
DEGENERATE = {
    "huge": NORMAL * 1e200,
    "at the end of float64": NORMAL * 1e307,
    "tiny": NORMAL * 1e-200,
    "subnormal": NORMAL * 1e-320,
    "of every size": NORMAL * 10.0 ** np.linspace(-307, 307, 50)[:, None],
    "one feature": NORMAL[:, :1],
    "one feature, huge": NORMAL[:, :1] * 1e307,
    "one feature of one value": np.ones((50, 1)),
    "two features": NORMAL[:, :2],
    "zeros": np.zeros((50, 4)),
    "one direction": np.outer(np.arange(1, 51), NORMAL[0]),
    "nearly one direction": NORMAL[:1] + NORMAL * 1e-9,
    "two directions": NORMAL[np.arange(50) % 2],
    "all but one alike": np.where(np.arange(50)[:, None], NORMAL[:1], -NORMAL[:1]),
    "single precision": (NORMAL * 1e38).astype(np.float32),
    "half precision": (NORMAL * 1e4).astype(np.float16),
    "integers": (NORMAL * 2**60).astype(np.int64),
    "booleans": NORMAL > 0,
}


@pytest.mark.filterwarnings("ignore:The embeddings")
@pytest.mark.parametrize("kind", DEGENERATE)
def test_a_page_of_any_embeddings_is_finite(kind, tmp_path):
    x = DEGENERATE[kind]
    summary = write_report(tmp_path / "a.html", embeddings=x, labels=np.arange(50) % 3)
    data = data_of(summary.path)
    for name in ("typicality", "doubt", "tightness", "clusterDoubt"):
        assert np.isfinite(unpacked(data[name], np.float32)).all()
    places = np.stack([unpacked(data[axis], np.uint16) for axis in "xy"])
    assert np.ptp(places) > 60_000
    assert not re.search(r"\b(nan|inf)\b", summary.path.read_text())


EXTREMES = [1e308, -1e308, 5e-324, 10**400, -(10**400), float("inf"), float("nan"), None, "a", 1, 1]


@pytest.mark.parametrize("name", ["size", "epoch"])
def test_charts_of_any_numbers_are_finite(name):
    for some in ([3e307, -1e308], [1e308, 1e308, 1], [5e-324, 0], [1e16, 1e16 + 2], EXTREMES):
        history = [{"loss": 1.0, name: value} for value in some]
        drawn = "".join(svg for _, svg, _ in history_charts(history))
        assert "<svg" in drawn
        assert not re.search(r"\b(nan|inf)\b", drawn)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_images(n, tmp_path):
    found = digits(n)
    summary = write_report(
        tmp_path / "a.html",
        embeddings=found.data,
        labels=np.zeros(n, int),
        images=found.images,
        linkage=np.empty((0, 4)),
    )
    assert summary.n_shown == n


def test_of_many_images_the_typical_the_odd_and_a_draw_are_shown(tmp_path):
    found = digits(600)
    labels = np.random.default_rng(0).integers(0, 20, 600)

    class Images:
        def __len__(self):
            return 600

        def __getitem__(self, index):
            return found.images[index]

    summary = write_report(
        tmp_path / "a.html", embeddings=found.data, labels=labels, images=Images(), max_images=100
    )
    assert (summary.n_images, summary.n_shown) == (600, 100)
    data = data_of(summary.path)
    shown = {int(name.split()[1]) for name in data["names"]}
    review = review_clusters(found.data, labels, images=Images())
    assert summary.outliers == tuple(review.outliers(24))
    for cluster in range(20):  # two places for each of twenty
        typical = np.argsort(np.where(labels == cluster, -review.typicality, np.inf))[:2]
        assert shown.issuperset(typical.tolist())
    assert shown.issuperset(review.outliers(24).tolist())
    assert len(data["outliers"]) == 24


def test_thumbnails_are_the_images_and_small_ones_keep_every_pixel():
    found = digits(100)
    thumbnails = make_thumbnails(found.images, np.arange(1, 100))
    assert (thumbnails.tile, len(thumbnails.sheets), thumbnails.exact) == (8, 1, True)
    sheet = Image.open(io.BytesIO(base64.b64decode(thumbnails.sheets[0]))).convert("RGB")
    for row, image in enumerate(found.images[1:]):
        x, y = row % thumbnails.columns * 8, row // thumbnails.columns * 8
        shown = np.asarray(sheet.crop((x, y, x + 8, y + 8)))
        assert np.array_equal(shown[..., 0], np.round(image * 255))


def test_thumbnails_of_photos_keep_their_shape_and_fill_several_sheets():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (200, 100 + i % 3, 3), np.uint8) for i in range(300)]
    thumbnails = make_thumbnails(images, np.arange(300))
    assert (thumbnails.tile, thumbnails.columns, thumbnails.per_sheet) == (128, 16, 256)
    assert not thumbnails.exact
    assert len(thumbnails.sheets) == 2
    assert set(thumbnails.heights) == {128}
    assert set(thumbnails.widths) == {64, 65}


def test_photos_that_had_to_be_shrunk_far_are_photos_still(monkeypatch):
    """Kept to the last bit, they would take several times the room."""
    monkeypatch.setattr("evaluation.report.images._BUDGET", 10_000)
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (100, 100, 3), np.uint8) for _ in range(300)]
    thumbnails = make_thumbnails(images, np.arange(300))
    assert (thumbnails.tile, thumbnails.exact) == (32, False)


def test_charts_of_a_history():
    history = [
        {"epoch": e, "loss": 3 - e, "projector_loss": 2.5 - e, "size": e, "size_plain": 2 * e,
         "once": 1.0 if e else float("nan"), "never": None}
        for e in range(3)
    ]  # fmt: skip
    charts = history_charts(history[:2])
    assert [(title, lines) for title, _, lines in charts] == [
        ("Loss", ["loss", "projector loss"]),
        ("Size", ["size", "size plain"]),
    ]
    assert "loss from 3 to 2; projector loss from 2.5 to 1.5" in charts[0][1]
    assert history_charts(history[:1]) == []


def never(*_, **__):
    raise AssertionError("worked before everything was checked")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": [None] * 600}, "All 600 classes in y are None or NaN"),
        ({"labels": [0, 1]}, "600 rows and labels has 2"),
        ({"names": ["a"]}, "names has 1"),
        ({"images": np.zeros((3, 8, 8))}, "images has 3"),
        ({"y": [1, 2]}, "y has 2"),
        ({"linkage": np.zeros((3, 4))}, r"linkage has shape \(3, 4\)"),
        ({"baseline": {"other": [0]}}, "labels of 'other' has 1"),
        ({"labels": [-1] * 600, "n_clusters": None}, "All 600 labels are -1"),
        ({"linkage": np.full((69, 4), np.nan)}, r"linkage .* holds NaN or infinity"),
        ({"max_images": 2}, "max_images=2"),
        ({"n_clusters": 3}, "n_clusters=3"),
        ({"baseline": {"other": [-1] * 600}}, "labels of 'other' are -1"),
        ({"projection": Projection(np.zeros((1, 2)), np.array([7]), "", "")}, "skipped"),
        (
            {"projection": Projection(np.zeros((1, 2)), np.array([999]), "", "")},
            "not among the 600",
        ),
        ({"projection": Projection(np.zeros((1, 2)), np.arange(2), "", "")}, r"\(1, 2\) and 2"),
        ({"projection": Projection(np.full((1, 2), np.nan), np.arange(1), "", "")}, "two finite"),
        ({"projection": Projection(np.zeros((0, 2)), np.arange(0), "", "")}, "at least one image"),
    ],
)
def test_what_does_not_fit_together(written, changed, message, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.report.review_clusters", never)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "a.html", **{**written.given, **changed})
    assert not list(tmp_path.iterdir())


def test_whether_it_can_be_written_is_tried_first(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.report.report.review_clusters", never)
    given = {"embeddings": np.eye(4), "labels": [0, 1, 2, 3]}
    with pytest.raises(IsADirectoryError, match="expected a file"):
        write_report(tmp_path, **given)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_report(tmp_path / "a" / "b.html", **given)
    with pytest.raises(OSError, match="proc"):
        write_report("/proc/report.html", **given)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_report(tmp_path / "pipe", **given)


def test_a_link_and_files_of_like_names_stay_what_they_are(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real.html", tmp_path / "report.html"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    mine = tmp_path / "report.html.partial"
    mine.write_text("mine")
    summary = write_report(link, embeddings=np.eye(5), labels=[0, 1, 2, 3, 4])
    assert link.is_symlink()
    assert summary.path == target.resolve()
    assert "<!doctype html>" in target.read_text()
    assert target.stat().st_mode & 0o777 == 0o640
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in target.parent.iterdir()) == ["real.html"]


@pytest.mark.parametrize("letter", ["x", "é", "写", "\U0001f40d", "\udcff"])
@pytest.mark.parametrize("n_bytes", [5, 99, 101, 233, 250, 255])
def test_a_name_may_be_as_long_as_names_can_be(letter, n_bytes, tmp_path):
    length = len(os.fsencode(letter))
    stem = letter * ((n_bytes - 5) // length) + "x" * ((n_bytes - 5) % length)
    path = tmp_path / f"{stem}.html"
    assert len(os.fsencode(path.name)) == max(n_bytes, 5)
    with replacing(check_writable(path)) as beside:
        beside.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_report(path, embeddings=np.eye(5), labels=[0, 1, 2, 3, 4])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
