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


@pytest.mark.parametrize("size", [1e160, 1e306])
def test_rows_too_large_to_square_are_refused(size):
    with pytest.raises(ValueError, match=r"their squares overflow\. Rescale X"):
        ExCBEstimator(K=3).fit(size * (ROWS + 9))


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
    groups = excb.predict(X, n_clusters=4)
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
