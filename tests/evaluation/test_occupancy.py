"""Occupancy against hand-written loops, and what its display draws."""

from dataclasses import FrozenInstanceError
from math import exp, log

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation import OccupancyDisplay, cluster_occupancy

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


labelings = st.integers(1, 30).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), min_size=1, max_size=90))
)


@given(labelings)
def test_measures_equal_their_definitions(case):
    n_clusters, labels = case
    found = cluster_occupancy(labels, n_clusters)
    counts = [labels.count(each) for each in range(n_clusters)]
    n = len(labels)
    entropy = -sum(c / n * log(c / n) for c in counts if c)
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert found.counts.tolist() == counts
    assert found.empty_fraction == pytest.approx(counts.count(0) / n_clusters)
    assert found.largest_relative_size == pytest.approx(max(counts) * n_clusters / n)
    assert found.entropy == pytest.approx(entropy / log(n_clusters) if n_clusters > 1 else 1)
    assert found.effective_clusters == pytest.approx(exp(entropy))
    assert found.gini == pytest.approx(differences / (2 * n_clusters * n))


@given(labelings)
def test_measures_stay_in_their_ranges(case):
    n_clusters, labels = case
    found = cluster_occupancy(labels, n_clusters)
    balanced = len(set(found.counts.tolist())) == 1
    assert 0 <= found.entropy <= 1
    assert 0 <= found.gini < 1
    assert (found.gini == 0) == balanced
    assert 1 <= found.effective_clusters <= n_clusters
    assert found.largest_relative_size * (1 + 1e-12) >= 1
    assert 0 <= found.empty_fraction < 1
    assert found.relative_sizes.sum() == pytest.approx(n_clusters)


@given(labelings, st.randoms())
def test_order_of_images_and_names_of_clusters_do_not_matter(case, random):
    n_clusters, labels = case
    names = list(range(n_clusters))
    random.shuffle(names)
    first = cluster_occupancy(labels, n_clusters)
    second = cluster_occupancy([names[each] for each in reversed(labels)], n_clusters)
    assert first.gini == second.gini
    assert first.entropy == pytest.approx(second.entropy)
    assert first.largest_relative_size == second.largest_relative_size


def test_extremes():
    balanced = cluster_occupancy(np.arange(100) % 10, 10)
    assert (balanced.gini, balanced.empty_fraction, balanced.largest_relative_size) == (0, 0, 1)
    assert balanced.entropy == pytest.approx(1)
    collapsed = cluster_occupancy(np.full(100, 3), 10)
    assert (collapsed.entropy, collapsed.effective_clusters) == (0, 1)
    assert (collapsed.gini, collapsed.empty_fraction) == pytest.approx((0.9, 0.9))
    assert collapsed.largest_relative_size == 10


def test_skipped_images_are_left_out_and_counted():
    found = cluster_occupancy([-1, 0, 2, -1, 2], 3)
    assert (found.n_samples, found.n_skipped, found.n_clusters) == (3, 2, 3)
    assert found.counts.tolist() == [1, 0, 2]


def test_the_result_is_frozen_and_its_counts_read_only():
    found = cluster_occupancy([0, 1], 2)
    with pytest.raises(FrozenInstanceError):
        found.gini = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        found.counts[0] = 5


@pytest.mark.parametrize(
    ("labels", "n_clusters", "message"),
    [
        ([0, 3], 3, "labels hold 3 with n_clusters=3, expected ids below n_clusters"),
        ([0, -2], 3, "labels holds -2, expected ids of at least 0, or -1"),
        ([-1, -1], 3, "All 2 labels are -1"),
        ([], 3, "labels is empty"),
        ([0], 0, "n_clusters=0, expected an integer of at least 1"),
        ([0.5], 3, "expected integer cluster ids"),
        ([0], 10**12, "n_clusters=10{12}, expected at most 16777216 clusters"),
        ([[0], [0, 1]], 3, "rows differ in length, or some are None"),
        (
            np.array([2**64 - 1], np.uint64),
            3,
            "holds 18446744073709551615, expected ids of at most",
        ),
        ([2**64], 3, "expected integer cluster ids"),
        ([True], 3, "expected integer cluster ids"),
        ([2**62], 2**63, "expected at most 16777216 clusters"),
        ([[0, 1]], 3, r"labels has shape \(1, 2\), expected \(n_samples,\)"),
    ],
)
def test_bad_input_is_explained(labels, n_clusters, message):
    with pytest.raises(ValueError, match=message):
        cluster_occupancy(labels, n_clusters)


def texts(ax):
    return [each.get_text() for each in ax.texts]


def test_display_draws_sizes_descending_with_the_optimum_and_the_empty_region():
    labels = [0] * 6 + [1] * 3 + [3]
    display = OccupancyDisplay.from_predictions(labels, 5, name="model")
    ax = display.ax_
    assert ax.get_yscale() == "log"
    assert display.figure_ is ax.figure
    x, y = display.lines_[0].get_data()
    np.testing.assert_array_equal(x, [0, 1, 2, 3])
    np.testing.assert_allclose(y, [3.0, 1.5, 0.5, 0.5])
    assert ax.get_xlim() == (0, 5)
    assert any(np.all(np.asarray(line.get_ydata()) == 1) for line in ax.lines)
    assert "optimal size 1" in texts(ax)
    assert "40.0 % empty" in texts(ax)
    (region,) = ax.patches
    assert region.get_x() == 3
    assert region.get_width() == 2
    (legend,) = [each.get_text() for each in ax.get_legend().get_texts()]
    assert legend == "model: 40.0 % empty, largest 3.0"
    display.figure_.canvas.draw()


def test_display_compares_models_on_the_axes_given():
    _, ax = plt.subplots()
    models = {"even": np.arange(12) % 6, "poor": np.zeros(12, int)}
    display = OccupancyDisplay.from_predictions(models, 6, ax=ax)
    assert display.ax_ is ax
    assert len(display.lines_) == 2
    assert display.lines_[0].get_color() != display.lines_[1].get_color()
    legend = [each.get_text() for each in ax.get_legend().get_texts()]
    assert legend == ["even: 0.0 % empty, largest 1.0", "poor: 83.3 % empty, largest 6.0"]
    assert len(ax.patches) == 1  # no empty region for the even one
    display.figure_.canvas.draw()


def test_display_compares_models_with_different_numbers_of_clusters():
    models = {"few": [0, 0, 0, 1], "many": np.arange(4) % 3}
    numbers = {"many": 8, "few": 4}
    display = OccupancyDisplay.from_predictions(models, numbers)
    ax = display.ax_
    assert ax.get_xlim() == (0, 1)
    assert ax.get_xlabel() == "Share of the clusters, largest first"
    np.testing.assert_allclose(display.lines_[0].get_xdata(), [0, 0.25, 0.5])
    np.testing.assert_allclose(display.lines_[0].get_ydata(), [3, 1, 1])
    np.testing.assert_allclose(display.lines_[1].get_xdata(), [0, 0.125, 0.25, 0.375])
    np.testing.assert_allclose(display.lines_[1].get_ydata(), [4, 2, 2, 2])
    starts = [(each.get_x(), each.get_width()) for each in ax.patches]
    np.testing.assert_allclose(starts, [(0.5, 0.5), (0.375, 0.625)])
    legend = [each.get_text() for each in ax.get_legend().get_texts()]
    assert legend == [
        "few: K = 4, 50.0 % empty, largest 3.0",
        "many: K = 8, 62.5 % empty, largest 4.0",
    ]
    display.figure_.canvas.draw()
    assert "60 %" in [each.get_text() for each in ax.get_xticklabels()]


def test_display_draws_what_was_measured():
    measured = {"a": cluster_occupancy([0, 1, 1], 2), "b": cluster_occupancy([0, 0, 2], 3)}
    display = OccupancyDisplay.from_occupancies(measured)
    expected = OccupancyDisplay.from_predictions({"a": [0, 1, 1], "b": [0, 0, 2]}, {"a": 2, "b": 3})
    for one, other in zip(display.lines_, expected.lines_, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
        assert one.get_label() == other.get_label()
    _, ax = plt.subplots()
    single = OccupancyDisplay.from_occupancies(measured["a"], name="a", ax=ax)
    assert single.ax_ is ax
    assert single.lines_[0].get_label() == "a: 0.0 % empty, largest 1.3"


@pytest.mark.parametrize(
    ("occupancies", "name", "message"),
    [
        ({}, None, "occupancies is an empty mapping"),
        ({"a": [0, 1]}, None, "hold list for 'a', expected an Occupancy"),
        ({"a": cluster_occupancy([0], 1)}, "b", "name='b' was given with a mapping"),
    ],
)
def test_display_of_measures_explains_bad_input(occupancies, name, message):
    with pytest.raises(ValueError, match=message):
        OccupancyDisplay.from_occupancies(occupancies, name=name)


def test_the_two_mappings_must_be_of_the_same_models():
    with pytest.raises(ValueError, match=r"labels are of \['a'\] and n_clusters of \['b'\]"):
        OccupancyDisplay.from_predictions({"a": [0]}, {"b": 1})
    with pytest.raises(ValueError, match="n_clusters came as a mapping with the labels of one"):
        OccupancyDisplay.from_predictions([0], {"a": 1})


def test_display_can_be_drawn_again():
    display = OccupancyDisplay.from_predictions([0, 1], 2)
    first = display.ax_
    assert display.plot() is display
    assert display.ax_ is not first


def test_small_shares_are_not_rounded_to_nothing():
    labels = np.arange(9_999)
    display = OccupancyDisplay.from_predictions(labels, 10_000)
    assert "< 0.1 % empty" in texts(display.ax_)


@pytest.mark.parametrize(
    ("labels", "name", "message"),
    [
        ({}, None, "labels is an empty mapping"),
        ({"a": [0]}, "b", "name='b' was given with a mapping"),
        ({"a": [5]}, None, "labels hold 5 with n_clusters=2"),
    ],
)
def test_display_explains_bad_input(labels, name, message):
    with pytest.raises(ValueError, match=message):
        OccupancyDisplay.from_predictions(labels, 2, name=name)


def test_missing_matplotlib_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r'Plotting needs .* "sklearn-excb\[eval\]"'):
        OccupancyDisplay.from_predictions([0], 1)
