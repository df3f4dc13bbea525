"""Views of rows: noise of the size of a cluster, in whatever units the rows are."""

import numpy as np
import pytest
from scipy.stats import chi
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator
from sklearn_excb.views.row_views import (
    constant_feature,
    neighborhood_radius,
    row_recipe,
    row_statistics,
)

ROWS = np.random.default_rng(0).standard_normal((600, 7)) * np.arange(1, 8)


def load(rows):
    return lambda indices: rows[indices]


def test_one_scale_for_all_features():
    mean, scale = row_statistics(load(ROWS + 5), len(ROWS))
    np.testing.assert_allclose(mean, ROWS.mean(axis=0) + 5)
    assert scale == pytest.approx(np.sqrt(ROWS.var(axis=0).mean()))
    assert row_statistics(load(np.ones((9, 3))), 9)[1] == 1.0


def learned(X, how):
    few = {"K": 4, "epochs": 1, "batch_size": 60, "head_width": 8, "n_local": 0, "devices": 1}
    excb = ExCBEstimator(**few, random_state=0, **how).fit(X)
    return excb.labels_, excb.predict(X), excb.transform(X), excb.linkage_


@pytest.mark.parametrize("how", [{}, {"backbone": "mlp"}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "powers"),
    [
        (np.float64, [-1010, -700, -500, -340, -120, -47, -1, 3, 60, 127, 333, 510, 700, 1019]),
        (np.float32, [-115, -47, 3, 60, 124]),
        (np.float16, [-3, 9]),
    ],
    ids=["double", "single", "half"],
)
def test_nothing_depends_on_the_unit_of_rows(dtype, powers, how):
    centers = 0.1 * ROWS[:120] + np.repeat(np.eye(4, 7), 30, axis=0)
    X = (centers.round(3) + 2.0**-7).astype(dtype)  # no value is next to zero
    X[np.abs(X) < 2.0**-10] = 2.0**-7
    expected = learned(X, how)
    assert len(set(expected[0])) == 4
    for power in powers:
        scaled = np.ldexp(X, power)
        assert np.array_equal(np.ldexp(scaled, -power), X)
        for found, at_one in zip(learned(scaled, how), expected, strict=True):
            np.testing.assert_array_equal(found, at_one, err_msg=f"at 2**{power}")


@pytest.mark.parametrize("unit", [5e-324 * 2**20, 1e-310, 1e-14, 1e150, 1e306])
def test_rows_of_any_unit_are_clustered(unit):
    X, y = make_blobs(120, centers=4, n_features=5, cluster_std=0.2, random_state=0)
    labels = ExCBEstimator(K=4, epochs=2, random_state=0).fit_predict(X * unit)
    assert normalized_mutual_info_score(y, labels) > 0.95


@pytest.mark.parametrize("constant", [1e15 / 3, 1.7e18, -1e30 / 3])
def test_a_constant_far_from_zero_hides_no_other_feature(constant):
    X, y = make_blobs(60, centers=4, n_features=8, cluster_std=0.2, random_state=0)
    rows = np.column_stack([np.full(60, constant), X])
    mean, scale = row_statistics(load(rows), 60)
    np.testing.assert_array_equal(rows[:, 0] - mean[0], 0)
    assert scale == pytest.approx(np.sqrt(rows[:, 1:].var(axis=0).sum() / 9))
    labels = ExCBEstimator(K=4, epochs=2, random_state=0).fit_predict(rows)
    assert normalized_mutual_info_score(y, labels) > 0.95


@pytest.mark.parametrize("unit", [1e-320, 1e-30, 1.0, 1e300])
def test_rows_without_spread_have_the_scale_of_their_size(unit):
    rows = np.full((9, 3), unit)
    assert row_statistics(load(rows), 9)[1] == pytest.approx(unit)
    assert constant_of(rows) == 1.0
    assert row_statistics(load(rows * 0), 9)[1] == 1.0


@pytest.mark.parametrize("n_clusters", [2, 30, 600])
def test_the_radius_is_that_of_half_a_cluster(n_clusters):
    queries = ROWS[np.linspace(0, 599, 64).round().astype(int)]
    n_neighbors = max(1, round(600 / (2 * n_clusters)))
    neighbors = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(ROWS)  # and the row itself
    expected = np.median(neighbors.kneighbors(queries)[0][:, -1])
    assert neighborhood_radius(load(ROWS), 600, n_clusters) == pytest.approx(expected, rel=1e-6)


def test_noise_does_not_depend_on_units():
    small, large = (
        row_recipe(load(rows), 600, n_clusters=30, n_global=2, n_local=2)
        for rows in (ROWS, 1000 * ROWS - 3)
    )
    assert large.noise == pytest.approx(small.noise, rel=1e-6)
    assert 0.1 < small.noise < 2


def constant_of(rows):
    recipe = row_recipe(load(rows), len(rows), n_clusters=3, n_global=2, n_local=0)
    return constant_feature(load(rows), len(rows), recipe)


@pytest.mark.parametrize("n_features", [1, 2, 50])
def test_the_constant_feature_is_three_interquartile_ranges_of_the_lengths(n_features):
    rows = 7 + 3 * np.random.default_rng(0).standard_normal((20_000, n_features))
    low, high = chi(n_features).ppf([0.25, 0.75])
    assert constant_of(rows) == pytest.approx(3 * (high - low), rel=0.05)


def test_the_constant_feature_is_never_next_to_nothing():
    assert constant_of(np.full((203, 3), 0.1)) == 1.0  # whose mean is off by rounding
    assert constant_of(np.array([[-1.0], [1.0]] * 20)) == pytest.approx(0.1)


@pytest.mark.slow
def test_one_row_far_away_is_one_row():
    X, y = make_blobs(400, centers=8, n_features=8, random_state=0)
    X[0] *= 300
    labels = ExCBEstimator(K=8, random_state=0).fit_predict(X)
    assert normalized_mutual_info_score(y, labels) > 0.9


def test_rows_that_differ_in_length_alone_are_told_apart():
    lengths = np.repeat([1.0, 2.0, 3.0, 4.0], 30) + 0.01 * np.random.default_rng(0).random(120)
    X = lengths[:, None] * [3.0, 4.0]
    labels = ExCBEstimator(K=4, epochs=20, random_state=0).fit_predict(X)
    assert normalized_mutual_info_score(np.repeat(range(4), 30), labels) == 1.0


@pytest.mark.slow
def test_groups_of_rows_that_differ_in_length_alone():
    X = np.arange(240.0)[:, None] // 60 + 0.05 * np.random.default_rng(0).standard_normal((240, 1))
    excb = ExCBEstimator(K=12, random_state=0).fit(X)
    groups = excb.predict(X, n_groups=4)
    assert normalized_mutual_info_score(np.repeat(range(4), 60), groups) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("X", "y"),
    [
        load_digits(return_X_y=True),
        make_blobs(500, centers=25, n_features=8, random_state=0),
    ],
    ids=["digits", "blobs"],
)
def test_rows_are_balanced_and_not_torn_apart(X, y):
    excb = ExCBEstimator(random_state=0).fit(X)
    K = excb.resolved_params_["K"]
    kmeans = KMeans(K, n_init=1, random_state=0).fit_predict(X)
    ours, theirs = (
        (cluster_occupancy(labels, K).effective_clusters, normalized_mutual_info_score(y, labels))
        for labels in (excb.labels_, kmeans)
    )
    assert ours[0] >= theirs[0] - 0.02 * K
    assert ours[1] >= theirs[1] - 0.02
