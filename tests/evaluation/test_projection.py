"""Projections: reproducible, neighbours kept; and what their display draws."""

import sys
import warnings

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness

from evaluation import Projection, ProjectionDisplay, project
from evaluation.probes.stratified import draw_rows
from tests.tiers import others_slow

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# What umap-learn says while it is imported; hidden unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [90, 45, 15])
    return (3 * np.eye(3, 16)[y] + 0.4 * rng.normal(size=(150, 16))).astype(np.float32), y


UMAP = pytest.param("umap", marks=pytest.mark.slow)  # Numba compiles it in each process


@pytest.mark.parametrize("method", ["tsne", UMAP])
def test_projection_is_reproducible_and_keeps_neighbours(blobs, method):
    x, _ = blobs
    first = project(x, method, random_state=3)
    again = project(x, method, random_state=3)
    np.testing.assert_array_equal(first.coordinates, again.coordinates)
    assert first.coordinates.shape == (150, 2)
    assert first.coordinates.dtype == np.float32
    assert first.indices.dtype == np.int64
    assert np.isfinite(first.coordinates).all()
    assert first.method == method
    assert first.backend == {"tsne": "openTSNE", "umap": "umap"}[method]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert trustworthiness(unit, first.coordinates, n_neighbors=10) > 0.8


def test_cosine_ignores_the_length_of_rows(blobs):
    x, _ = blobs
    longer = x * np.float32(2.0) ** np.arange(150)[:, None].clip(max=40)
    plain, scaled = (project(each, random_state=0, perplexity=10) for each in (x, longer))
    np.testing.assert_array_equal(plain.coordinates, scaled.coordinates)
    raw = project(x, metric="euclidean", random_state=0, perplexity=10)
    assert not np.array_equal(raw.coordinates, plain.coordinates)


def test_sklearn_stands_in_for_opentsne(blobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    x, _ = blobs
    found = project(x[:40], random_state=0)
    assert found.backend == "sklearn"
    np.testing.assert_array_equal(found.coordinates, project(x[:40], random_state=0).coordinates)


def test_three_dimensions(blobs):
    assert project(blobs[0][:30], n_components=3, random_state=0).coordinates.shape == (30, 3)


@pytest.mark.parametrize(
    ("method", "n"),
    [*(("tsne", n) for n in (4, 5, 12, 25)), *others_slow(("umap", n) for n in (12, 4, 5, 25))],
)
def test_few_rows_lower_the_number_of_neighbours(blobs, method, n):
    found = project(blobs[0][:n], method, random_state=0)
    assert found.coordinates.shape == (n, 2)
    assert np.isfinite(found.coordinates).all()


def test_the_global_generator_is_left_alone(blobs):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    project(blobs[0][:20], max_samples=10, random_state=0)
    project(blobs[0][:20], max_samples=10)
    assert np.random.random() == expected  # noqa: NPY002


def test_a_random_state_advances_from_call_to_call(blobs):
    generator = np.random.RandomState(0)
    draws = [project(blobs[0], max_samples=20, random_state=generator).indices for _ in range(2)]
    assert not np.array_equal(*draws)


def test_subsample_is_reproducible_ascending_and_without_repeats(blobs):
    x, _ = blobs
    found = project(x, max_samples=40, random_state=1)
    assert len(found.indices) == len(found.coordinates) == 40
    assert (np.diff(found.indices) > 0).all()
    np.testing.assert_array_equal(found.indices, project(x, max_samples=40, random_state=1).indices)
    assert len(project(x, max_samples=1000, random_state=0).indices) == 150


def test_subsample_keeps_the_shares_of_classes(blobs):
    x, y = blobs
    names = np.array(["many", "some", "few"])[y]
    found = project(x, max_samples=50, y=names, random_state=0)
    for name, share in {"many": 0.6, "some": 0.3, "few": 0.1}.items():
        # Off by one at most: a place is set aside for each class before the rest is shared out.
        assert abs((names[found.indices] == name).sum() - 50 * share) <= 1


def test_rows_of_skipped_images_are_left_out(blobs):
    x, y = blobs
    holes = x.copy()
    holes[::10] = np.nan
    there = np.flatnonzero(np.arange(150) % 10)
    found = project(holes, random_state=0, perplexity=5)
    np.testing.assert_array_equal(found.indices, there)
    expected = project(x[there], random_state=0, perplexity=5)
    np.testing.assert_array_equal(found.coordinates, expected.coordinates)
    few = project(holes, max_samples=30, y=y, random_state=0)
    assert len(few.indices) == 30
    assert set(few.indices) <= set(there)
    assert set(y[few.indices]) == {0, 1, 2}
    display = ProjectionDisplay.from_predictions(few, y)
    np.testing.assert_array_equal(display.labels, y[few.indices])


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_quotas_fill_the_places_and_keep_every_class(counts, data):
    counts = np.array(counts)
    wanted = data.draw(st.integers(1, int(counts.sum())))
    y = np.repeat(np.arange(len(counts)), counts)
    drawn = draw_rows(len(y), wanted, y, np.random.default_rng(0))
    assert len(np.unique(drawn)) == len(drawn)
    quotas = np.bincount(y[drawn], minlength=len(counts))
    assert quotas.sum() == wanted
    assert (quotas <= counts).all()
    assert (quotas >= (wanted >= len(counts))).all()


ALIKE = "The embeddings are all alike"
ONE = "The embeddings have one feature"
DEGENERATE = {
    "zeros": (np.zeros((30, 5)), ALIKE),
    "one direction": (np.outer(np.arange(1.0, 31), [1, 2, 3]), ALIKE),
    "one feature": (np.arange(30.0)[:, None] ** 2, ONE),
    "one feature of one sign": (np.full((30, 1), 3.0), ALIKE),
    "one huge feature": (np.linspace(-1, 1, 30)[:, None] * 1.7e308, ONE),
}


@pytest.mark.parametrize("n_components", [1, 2, 3])
@pytest.mark.parametrize("method", ["tsne", UMAP])
@pytest.mark.parametrize("case", DEGENERATE)
def test_embeddings_without_neighbourhoods_lie_on_a_line(case, method, n_components):
    x, message = DEGENERATE[case]
    with pytest.warns(UserWarning, match=message):
        found = project(x, method, n_components=n_components, random_state=0)
    assert found.coordinates.shape == (30, n_components)
    assert np.isfinite(found.coordinates).all()
    assert len(np.unique(found.coordinates[:, 0])) == 30
    assert not found.coordinates[:, 1:].any()
    if message == ONE:
        assert (np.argsort(found.coordinates[:, 0]) == np.argsort(x[:, 0])).all()
    assert found.method == found.backend == "none"


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("exponent", [-1030, -140, 140, 1000])
def test_units_do_not_matter(blobs, metric, exponent):
    x = blobs[0][::3].astype(np.float64)
    plain = project(x, metric=metric, random_state=0)
    other = project(np.ldexp(x, exponent), metric=metric, random_state=0)
    if exponent > -1000:  # no digit is lost
        np.testing.assert_array_equal(other.coordinates, plain.coordinates)
    assert np.isfinite(other.coordinates).all()


@pytest.mark.parametrize("n_features", [1, 2])
def test_more_dimensions_than_features(n_features):
    x = np.random.default_rng(0).normal(size=(30, n_features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = project(x, n_components=3, random_state=0)
    assert np.isfinite(found.coordinates).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pca"}, "method='pca', expected one of 'tsne', 'umap'"),
        ({"metric": "l1"}, "metric='l1', expected one of"),
        ({"n_components": 4}, "n_components=4, expected 1, 2 or 3"),
        ({"perplexity": 0}, "perplexity=0, expected a finite number above 0"),
        ({"n_neighbors": 1}, "n_neighbors=1, expected an integer of at least 2"),
        ({"max_samples": 3}, "max_samples=3, expected an integer of at least 4"),
        ({"y": [0]}, "embeddings has 6 rows and y has 1"),
        ({"embeddings": np.eye(3)}, "embeddings have 3 rows, expected at least 4"),
        ({"embeddings": np.ones(9)}, "expected .rows, features."),
        ({"embeddings": np.full((9, 2), np.nan)}, "embeddings have 0 rows that are not NaN"),
        ({"embeddings": [[1, 2]] * 7 + [[1, np.nan]]}, "embeddings holds NaN .*first in row 7"),
    ],
)
def test_bad_input_is_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        project(**({"embeddings": np.eye(6)} | changes))


def test_missing_umap_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"method=\"umap\" needs .*sklearn-excb\[eval\]"):
        project(np.eye(6), "umap")


def points(n):
    return np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)


def test_display_names_classes_on_the_points():
    labels = np.repeat(["cat", "dog"], 20)
    display = ProjectionDisplay.from_predictions(points(40), labels, title="pets")
    ax = display.ax_
    assert display.figure_ is ax.figure
    assert [each.get_text() for each in display.texts_] == ["cat", "dog"]
    assert ax.get_title(loc="left") == "pets"
    assert len(display.scatter_.get_offsets()) == 40
    assert len(np.unique(display.scatter_.get_facecolors()[:, :3], axis=0)) == 2
    assert ax.get_aspect() == 1
    assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
    display.figure_.canvas.draw()


def test_display_gives_each_point_the_color_of_its_label():
    xy = points(30)
    labels = np.arange(30) % 3
    display = ProjectionDisplay.from_predictions(xy, labels)
    colors = {}
    for place, color in zip(
        display.scatter_.get_offsets(), display.scatter_.get_facecolors(), strict=True
    ):
        label = labels[np.argmin(((xy - place) ** 2).sum(axis=1))]
        colors.setdefault(int(label), set()).add(tuple(color))
    assert [len(each) for each in colors.values()] == [1, 1, 1]
    assert len(set.union(*colors.values())) == 3


def test_display_has_a_legend_on_request_and_uses_the_axes_given():
    _, ax = plt.subplots()
    display = ProjectionDisplay.from_predictions(points(9), np.arange(9) % 3, names="legend", ax=ax)
    assert display.ax_ is ax
    assert [each.get_text() for each in ax.get_legend().get_texts()] == ["0", "1", "2"]
    assert display.texts_ == []
    display.figure_.canvas.draw()


def test_many_clusters_have_colors_of_their_own_and_no_names():
    display = ProjectionDisplay.from_predictions(points(80), np.arange(80))
    assert display.texts_ == []
    assert display.ax_.get_legend() is None
    assert len(np.unique(display.scatter_.get_facecolors(), axis=0)) == 80


def test_skipped_images_are_gray():
    display = ProjectionDisplay.from_predictions(points(3), [-1, 0, 1])
    colors = display.scatter_.get_facecolors()[:, :3]
    assert (colors.max(axis=1) - colors.min(axis=1) < 0.06).sum() == 1


def test_display_takes_a_projection_with_labels_of_all_rows_or_of_the_points():
    indices = np.array([1, 4, 7])
    projection = Projection(points(3), indices, "tsne", "openTSNE")
    labels = np.arange(9) * 10
    for given_labels in (labels, labels[indices]):
        display = ProjectionDisplay.from_predictions(projection, given_labels)
        np.testing.assert_array_equal(display.labels, [10, 40, 70])


@pytest.mark.parametrize(
    ("coordinates", "labels", "names", "message"),
    [
        (np.ones((3, 5)), [0, 1, 2], "auto", "coordinates have 5 columns, expected 2"),
        (np.ones((3, 2)), [0, 1], "auto", "2 labels for 3 points, expected one each"),
        (np.ones((3, 2)), [0, 1, 2], "all", "names='all', expected one of"),
        (
            Projection(np.ones((2, 2), np.float32), np.array([0, 8]), "tsne", "sklearn"),
            [0, 1, 2],
            "auto",
            "3 labels for 2 points",
        ),
    ],
)
def test_display_explains_bad_input(coordinates, labels, names, message):
    with pytest.raises(ValueError, match=message):
        ProjectionDisplay.from_predictions(coordinates, labels, names=names)


class Read:
    """A sequence of flat gray images that remembers which were read."""

    def __init__(self, n, shape=(6, 6)):
        self.n, self.shape, self.read = n, shape, []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.read.append(i)
        return np.full(self.shape, i % 256, np.uint8)


@pytest.mark.parametrize("n", [1, 2, 40, 200])
@pytest.mark.parametrize("wanted", [1, 7, 30])
def test_thumbnails_are_the_nearest_of_their_cells_and_do_not_overlap(n, wanted):
    xy, images = points(n) * [3, 1], Read(n)
    display = ProjectionDisplay.from_predictions(
        xy, np.zeros(n, int), images=images, n_thumbnails=wanted
    )
    shown = display.thumbnail_indices_.tolist()
    assert 1 <= len(shown) <= wanted
    assert images.read == shown
    boxes = np.array([each.get_extent() for each in display.thumbnails_])
    centers = np.stack([boxes[:, :2].mean(axis=1), boxes[:, 2:].mean(axis=1)], axis=1)
    side = (boxes[0, 1] - boxes[0, 0]) / 0.9
    for picture, i, center in zip(display.thumbnails_, shown, centers, strict=True):
        assert (picture.get_array() == i).all()
        inside = (np.abs(xy - center) <= side / 2 + 1e-9).all(axis=1)
        distances = np.where(inside, ((xy - center) ** 2).sum(axis=1), np.inf)
        assert inside[i]
        assert distances[i] == pytest.approx(distances.min())
    for i in range(len(boxes)):
        apart = np.abs(centers[i] - np.delete(centers, i, axis=0)).max(axis=1)
        assert (apart >= side * (1 - 1e-6)).all()
    # Every point lies in a cell that shows one.
    gaps = np.abs(xy[:, None] - centers).max(axis=2).min(axis=1)
    assert (gaps <= side / 2 * (1 + 1e-6)).all()
    low, high = np.transpose([display.ax_.get_xlim(), display.ax_.get_ylim()])
    assert (low <= xy.min(axis=0)).all()
    assert (high >= xy.max(axis=0)).all()
    assert (boxes[:, [0, 2]] >= low).all()
    assert (boxes[:, [1, 3]] <= high).all()
    display.figure_.canvas.draw()


def test_thumbnails_fill_the_places():
    rng = np.random.default_rng(0)
    display = ProjectionDisplay.from_predictions(
        rng.random((3000, 2)), np.zeros(3000, int), images=Read(3000, (2, 2)), n_thumbnails=100
    )
    assert len(display.thumbnails_) == 100


def test_thumbnails_keep_their_proportions_and_take_the_colors_of_their_labels():
    display = ProjectionDisplay.from_predictions(
        np.array([[0.0, 0], [4, 4]]), ["a", "b"], images=Read(2, (5, 10)), n_thumbnails=2
    )
    for each in display.thumbnails_:
        left, right, bottom, top = each.get_extent()
        assert (right - left) / (top - bottom) == pytest.approx(2)
    frames = [each.get_edgecolor() for each in display.ax_.patches]
    order = display.thumbnail_indices_
    names = {each.get_text(): each.get_color() for each in display.texts_}
    for i, frame in zip(order, frames, strict=True):
        np.testing.assert_allclose(frame[:3], np.array(names["ab"[i]])[:3] / 0.62)


def test_thumbnails_of_a_projection_with_images_of_all_rows_or_of_the_points():
    indices = np.array([1, 4, 7])
    projection = Projection(points(3), indices, "tsne", "openTSNE")
    for images, expected in ((Read(9), {1, 4, 7}), (Read(3), {0, 1, 2})):
        display = ProjectionDisplay.from_predictions(projection, np.arange(3), images=images)
        assert set(images.read) == expected
        assert {int(each.get_array().max()) for each in display.thumbnails_} == expected
    display = ProjectionDisplay.from_predictions(projection, np.arange(3))
    assert display.thumbnails_ == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": Read(2)}, "2 images for 3 points, expected one each"),
        ({"n_thumbnails": 0}, "n_thumbnails=0, expected an integer of at least 1"),
        ({"images": Read(3, (2, 3, 8))}, r"Image \d has shape \(2, 3, 8\)"),
        ({"coordinates": [[0, 0], [1, np.nan], [1, 1]]}, "coordinates holds NaN"),
    ],
)
def test_thumbnails_explain_bad_input(changes, message):
    arguments = {"coordinates": points(3), "labels": [0, 1, 2], "images": Read(3)} | changes
    with pytest.raises(ValueError, match=message):
        ProjectionDisplay.from_predictions(**arguments)
