"""The contact sheet: which images it shows, in which order, and how it sets them."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from evaluation import ContactSheetDisplay

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def flat(*values, size=8):
    """Gray images of one value each: a cell of the sheet tells which image it holds."""
    return np.repeat(np.array(values, np.uint8), size * size).reshape(-1, size, size)


def cells(display, n_images):
    """Gray value at the centre of every cell."""
    height, width = display.canvas.shape[:2]
    rows = len(display.rows)
    y = ((np.arange(rows) + 0.5) * height / rows).astype(int)
    x = ((np.arange(n_images) + 0.5) * width / n_images).astype(int)
    return display.canvas[np.ix_(y, x)][..., 0].tolist()


def test_rows_by_size_and_images_by_score():
    images = flat(10, 20, 30, 40, 50, 60)
    display = ContactSheetDisplay.from_predictions(
        images, [4, 2, 2, -1, 2, 4], scores=[0.1, 0.5, 0.9, 1.0, 0.7, 0.3], n_images=3
    )
    assert display.rows == [2, 4]
    assert display.counts == [3, 2]
    assert display.chosen == [[2, 4, 1], [5, 0]]
    assert cells(display, 3) == [[30, 50, 20], [60, 10, 255]]
    assert display.ax_.get_title(loc="left") == "2 clusters"
    assert display.figure_ is display.ax_.figure
    np.testing.assert_array_equal(display.image_.get_array(), display.canvas)
    written = [each.get_text() for each in display.ax_.texts]
    assert written == ["2", "3 images", "4", "2 images"]
    display.figure_.canvas.draw()


def test_rows_by_label_on_the_axes_given():
    _, ax = plt.subplots()
    display = ContactSheetDisplay.from_predictions(
        flat(1, 2, 3), [5, 5, 0], order="label", n_images=1, random_state=0, ax=ax
    )
    assert display.rows == [0, 5]
    assert display.ax_ is ax
    assert "1 image" in [each.get_text() for each in ax.texts]


def test_more_clusters_than_rows_are_spread_over_the_sizes():
    sizes = np.arange(30, 0, -1)
    labels = np.repeat(np.arange(30), sizes)
    images = np.zeros((len(labels), 4, 4), np.uint8)
    display = ContactSheetDisplay.from_predictions(images, labels, n_images=2, random_state=0)
    assert display.ax_.get_title(loc="left") == "24 of 30 clusters"
    assert len(set(display.rows)) == 24
    assert (display.counts[0], display.counts[-1]) == (30, 1)
    few = ContactSheetDisplay.from_predictions(images, labels, n_clusters=3, random_state=0)
    assert few.counts[0] == 30
    assert few.counts[-1] == 1
    assert few.ax_.get_title(loc="left") == "3 of 30 clusters"


def test_one_cluster_is_singular():
    display = ContactSheetDisplay.from_predictions(flat(1), [0])
    assert display.ax_.get_title(loc="left") == "1 cluster"


def test_without_scores_images_are_a_reproducible_random_draw():
    images, labels = np.zeros((50, 4, 4), np.uint8), np.zeros(50, int)
    first, again, other = (
        ContactSheetDisplay.from_predictions(images, labels, random_state=seed).chosen
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first[0])) == 12


def test_gray_is_gray_and_color_is_color():
    color = np.zeros((1, 6, 6, 3), np.uint8)
    color[..., 0], color[..., 2] = 200, 100
    canvas = ContactSheetDisplay.from_predictions(color, [0], n_images=1).canvas
    assert (canvas == [200, 0, 100]).all(axis=2).sum() == 36
    for gray in (flat(90, size=6), flat(90, size=6)[..., None]):
        canvas = ContactSheetDisplay.from_predictions(gray, [0], n_images=1).canvas
        assert (canvas == 90).all(axis=2).sum() == 36


def test_floats_booleans_and_transparency():
    def center(image):
        canvas = ContactSheetDisplay.from_predictions([image], [0], n_images=1).canvas
        return canvas[canvas.shape[0] // 2, canvas.shape[1] // 2].tolist()

    assert center(np.full((8, 8), 0.5)) == [128] * 3
    assert center(np.zeros((8, 8), bool)) == [0] * 3
    assert center(np.zeros((8, 8, 4))) == [255] * 3
    assert center(Image.new("RGBA", (8, 8), (0, 0, 0, 0))) == [255] * 3
    assert center(Image.new("L", (8, 8), 70)) == [70] * 3


def test_images_of_any_size_are_letter_boxed_whole():
    wide, tall = Image.new("RGB", (300, 100), (255, 0, 0)), np.zeros((40, 20, 3), np.uint8)
    display = ContactSheetDisplay.from_predictions([wide, tall], [0, 0], scores=[2, 1], n_images=2)
    height, width = display.canvas.shape[:2]
    assert width == 2 * height
    red = (display.canvas == [255, 0, 0]).all(axis=2)
    ys, xs = np.nonzero(red)
    assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx(3, abs=0.1)
    ys, xs = np.nonzero((display.canvas == 0).all(axis=2))
    assert (np.ptp(ys) + 1) / (np.ptp(xs) + 1) == pytest.approx(2, abs=0.1)


def test_only_the_images_shown_are_read():
    class Lazy:
        def __init__(self):
            self.read = []

        def __len__(self):
            return 1000

        def __getitem__(self, i):
            self.read.append(i)
            return np.zeros((4, 4), np.uint8)

    images = Lazy()
    ContactSheetDisplay.from_predictions(
        images, np.arange(1000) % 4, n_images=5, scores=np.arange(1000)
    )
    assert len(images.read) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0]}, "2 images and 1 labels, expected one label per image"),
        ({"labels": [-1, -1]}, "All 2 labels are -1"),
        ({"labels": [-3, 0]}, "labels holds -3"),
        ({"scores": [1.0]}, "scores has 1 rows and labels has 2"),
        ({"scores": [1.0, np.nan]}, "scores holds NaN"),
        ({"order": "color"}, "order='color', expected one of 'size', 'label'"),
        ({"n_images": 0}, "n_images=0, expected an integer of at least 1"),
        ({"n_clusters": 0}, "n_clusters=0, expected an integer of at least 1"),
        ({"images": np.zeros((2, 3, 8, 8), np.uint8)}, r"Image \d has shape \(3, 8, 8\)"),
        ({"images": np.full((2, 4, 4), 200.0)}, r"values in \[200, 200\], expected floats in \[0"),
        ({"images": np.full((2, 4, 4), np.nan)}, "expected floats in"),
        ({"images": np.zeros((2, 4, 4), np.int64)}, "has dtype int64, expected uint8"),
    ],
)
def test_bad_input_is_explained(changes, message):
    arguments = {"images": flat(1, 2), "labels": [0, 0], "random_state": 0} | changes
    with pytest.raises(ValueError, match=message):
        ContactSheetDisplay.from_predictions(**arguments)
