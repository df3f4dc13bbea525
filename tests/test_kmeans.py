"""Spherical k-means against scikit-learn's KMeans and by its own definition."""

import numpy as np
import pytest

from sklearn_excb.method import kmeans
from sklearn_excb.method.kmeans import most_start_rows, spherical_kmeans


def blobs(n_clusters=4, n_each=50, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.eye(n_clusters, 8, dtype=np.float32)
    rows = np.repeat(centres, n_each, axis=0) + 0.1 * rng.standard_normal((n_clusters * n_each, 8))
    return (rows * rng.uniform(0.5, 5, (len(rows), 1))).astype(np.float32)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_is_a_fixed_point_of_assignment_and_mean():
    rows = unit(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    start = spherical_kmeans(rows, 12, seed=0, n_iterations=500)
    labels = (rows @ start.unit.T).argmax(axis=1)
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(12)])
    np.testing.assert_allclose(start.means, means, atol=1e-5)
    np.testing.assert_allclose(start.unit, unit(means), atol=1e-5)


def test_finds_what_scikit_learns_kmeans_finds():
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rows = blobs()
    ours = [
        (unit(rows) @ spherical_kmeans(rows, 4, seed=seed).unit.T).argmax(axis=1)
        for seed in range(10)
    ]
    theirs = KMeans(4, n_init=10, random_state=0).fit_predict(unit(rows))
    assert max(adjusted_rand_score(theirs, labels) for labels in ours) == 1


def test_the_best_of_several_starts_is_as_good_as_scikit_learns():
    from sklearn.cluster import KMeans

    rows = unit(np.random.default_rng(0).standard_normal((600, 5)).astype(np.float32))
    theirs = unit(KMeans(12, n_init=10, random_state=0).fit(rows).cluster_centers_)

    def similarity(centroids):
        return (rows @ centroids.T).max(axis=1).mean()

    one, best = (spherical_kmeans(rows, 12, seed=0, n_starts=n).unit for n in (1, 10))
    assert similarity(best) >= similarity(theirs) - 5e-3
    assert similarity(best) >= similarity(one)


@pytest.mark.parametrize("n_clusters", [2, 40, 200])
def test_no_cluster_starts_empty(n_clusters):
    rows = blobs()  # 200 rows in 4 tight blobs: 40 random starts lose some on the way
    start = spherical_kmeans(rows, n_clusters, seed=1)
    assert start.unit.shape == (n_clusters, 8)
    np.testing.assert_allclose(np.linalg.norm(start.unit, axis=1), 1, atol=1e-5)
    assert len(np.unique(start.unit.round(5), axis=0)) == n_clusters


def test_identical_rows_are_no_trouble():
    start = spherical_kmeans(np.ones((10, 3), np.float32), 4, seed=0)
    assert np.isfinite(start.unit).all()


def test_is_a_function_of_its_seed():
    rows = blobs()
    first, again, other = (spherical_kmeans(rows, 7, seed=s).unit for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_there_are_rows_for_every_cluster_however_many():
    assert most_start_rows(65_536) == 500_000
    assert most_start_rows(10**6) >= 10**6


def test_blocks_on_an_accelerator_say_what_the_search_of_the_cpu_says(monkeypatch):
    rows = unit(np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32))
    expected = spherical_kmeans(rows, 12, seed=0)
    monkeypatch.setattr(kmeans, "_AT_ONCE", 64)
    monkeypatch.setattr(
        kmeans, "nearest_centroids", lambda *of: kmeans._in_blocks(*of[:2], kmeans.CPU)
    )
    found = spherical_kmeans(rows, 12, seed=0)
    np.testing.assert_allclose(found.unit, expected.unit, atol=1e-6)
    np.testing.assert_allclose(found.means, expected.means, atol=1e-6)
