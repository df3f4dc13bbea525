"""Settling: centroids move to where plain inference is balanced; projections stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.preprocessing import normalize

from evaluation import cluster_occupancy
from sklearn_excb import ExCBEstimator
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training import settling
from sklearn_excb.training.settling import are_distinct, settle, settling_sample

K = 12
FACTS = Facts(n_samples=600, kind="rows", shape=(0, 0), n_channels=16)
PARAMETERS = ExCBEstimator(K=K, size_tolerance=1.0).get_params()
SETTINGS = resolve(PARAMETERS, FACTS, has_batch_norm=True)


@pytest.fixture
def rows():
    """Unit rows about four directions."""
    X, _ = make_blobs(600, centers=4, n_features=16, cluster_std=2.0, random_state=0)
    return normalize(X).astype(np.float32)


def effective(rows, centroids):
    labels = (rows @ centroids.numpy().T).argmax(axis=1)
    return cluster_occupancy(labels, K).effective_clusters


def test_clusters_become_even(rows):
    centroids = torch.nn.functional.normalize(
        torch.randn(K, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert effective(rows, centroids) < 0.6 * K
    settled = settle(rows, centroids, SETTINGS, seed=0)
    kmeans = KMeans(K, n_init=1, random_state=0).fit_predict(rows)
    by_kmeans = cluster_occupancy(kmeans, K).effective_clusters
    assert effective(rows, settled.centroids) >= max(0.9 * K, by_kmeans - 0.02 * K)
    np.testing.assert_allclose(settled.centroids.norm(dim=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(
        settled.labels_before, (rows @ centroids.numpy().T).argmax(axis=1)
    )


def test_a_pass_at_equal_sizes_is_one_of_spherical_kmeans(rows, monkeypatch):
    monkeypatch.setattr(settling, "PARTS", 1)
    centroids = torch.from_numpy(rows[:K].copy())
    settled = settle(rows, centroids, replace(SETTINGS, settle_passes=1), seed=0)
    labels = (rows @ rows[:K].T).argmax(axis=1)
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(K)])
    np.testing.assert_allclose(settled.centroids.numpy(), normalize(means), atol=1e-5)


def test_a_centroid_without_rows_stays(rows, monkeypatch):
    monkeypatch.setattr(settling, "PARTS", 1)
    centroids = torch.from_numpy(rows[:K].copy())
    centroids[3] = -torch.from_numpy(rows.mean(axis=0))
    settled = settle(rows, centroids, replace(SETTINGS, settle_passes=1), seed=0)
    torch.testing.assert_close(settled.centroids[3], centroids[3])


def test_two_calls_agree(rows):
    centroids = torch.from_numpy(rows[:K].copy())
    first, second = (settle(rows, centroids, SETTINGS, seed=3).centroids for _ in range(2))
    assert torch.equal(first, second)


def test_many_images_are_sampled_evenly():
    np.testing.assert_array_equal(settling_sample(7, 2), np.arange(7))
    sample = settling_sample(2_000_000, 10)
    assert len(sample) == 500_000
    assert (sample[0], sample[-1]) == (0, 1_999_999)
    assert set(np.diff(sample)) <= {3, 4, 5}
    assert len(settling_sample(2_000_000, 65_536)) == 20 * 65_536


def test_projections_that_are_one_direction_are_left_alone(rows):
    assert are_distinct(rows)
    nearly = normalize(rows[:1] + 0.01 * rows).astype(np.float32)
    assert not are_distinct(nearly)
    images = np.random.default_rng(0).random((40, 8, 8))
    excb = ExCBEstimator(K=4, epochs=1, batch_size=8, random_state=0).fit(images)
    assert not are_distinct(excb.transform(images))
    last = excb.history_[-1]
    assert last["effective_clusters"] == last["effective_clusters_unsettled"]


def test_only_the_centroids_of_a_fit_settle():
    X, _ = make_blobs(300, centers=4, n_features=8, random_state=0)
    params = {"K": 15, "epochs": 4, "head_width": 64, "random_state": 0}
    as_trained = ExCBEstimator(**params, settle_passes=0).fit(X)
    settled = ExCBEstimator(**params).fit(X)
    np.testing.assert_array_equal(as_trained.transform(X), settled.transform(X))
    before, after = as_trained.history_[-1], settled.history_[-1]
    assert after["effective_clusters"] > before["effective_clusters"] + 1
    assert before["effective_clusters_unsettled"] == before["effective_clusters"]
    assert after["effective_clusters_unsettled"] == before["effective_clusters"]
    np.testing.assert_array_equal(settled.labels_, settled.predict(X))


@pytest.mark.parametrize("balancing", ["centering", "sinkhorn", "none"])
def test_rivals_settle_only_if_asked(balancing):
    rival = ExCBEstimator(K=K, balancing=balancing)
    assert resolve(rival.get_params(), FACTS, has_batch_norm=True).settle_passes == 0
    X, _ = make_blobs(100, centers=4, n_features=8, random_state=0)
    rival.set_params(epochs=1, settle_passes=2, random_state=0).fit(X)
    assert np.isfinite(rival.cluster_centers_).all()
