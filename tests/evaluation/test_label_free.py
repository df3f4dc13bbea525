"""Label-free scores, against loops over every pair of images."""

import sys
from dataclasses import FrozenInstanceError
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_score

from evaluation import Projection, label_free_scores, project, stability

# What umap-learn says while it is imported; hidden unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")


def loop_purity(x, labels, k):
    """Share of each image's k most similar others with its label, mean; lowest index first."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = []
    for i in range(len(x)):
        others = sorted((-float(unit[i] @ unit[j]), j) for j in range(len(x)) if j != i)
        shares.append(np.mean([labels[j] == labels[i] for _, j in others[:k]]))
    return np.mean(shares)


def rows(n, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize("backend", ["faiss", "torch"])
@pytest.mark.parametrize("k", [1, 4, 59])
def test_neighborhood_purity_equals_a_loop(backend, k, monkeypatch):
    monkeypatch.setattr("evaluation.clusters.label_free._TOGETHER", 25)
    x, labels = rows(60), np.random.default_rng(1).integers(0, 4, 60)
    scores = label_free_scores(x, labels, n_neighbors=k, silhouette=False, backend=backend)
    assert scores.neighborhood_purity == pytest.approx(loop_purity(x, labels, k))
    assert (scores.n_samples, scores.n_neighbors, scores.n_clusters) == (60, k, 4)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=25), st.data())
def test_chance_and_limit_equal_their_definitions(labels, data):
    n, k = len(labels), data.draw(st.integers(1, len(labels) - 1))
    scores = label_free_scores(rows(n), labels, n_neighbors=k, silhouette=False)
    # Any other image is as likely a neighbour as the next one.
    pairs = [labels[i] == labels[j] for i, j in combinations(range(n), 2)]
    assert scores.neighborhood_purity_chance == pytest.approx(np.mean(pairs))
    best = np.mean([min(k, labels.count(each) - 1) / k for each in labels])
    assert scores.neighborhood_purity_limit == pytest.approx(best)
    assert scores.neighborhood_purity <= scores.neighborhood_purity_limit + 1e-12


def test_silhouette_is_the_mean_of_its_definition(monkeypatch):
    xy, kept = rows(20, 2).astype(np.float32), np.arange(1, 41, 2)
    monkeypatch.setattr(
        "evaluation.clusters.label_free.project",
        lambda *_, **__: Projection(xy, kept, "umap", "umap"),
    )
    labels = np.random.default_rng(0).integers(0, 3, 40)
    values = []
    for i, own in enumerate(labels[kept]):
        means = {}
        for each in (0, 1, 2):
            others = [j for j in range(20) if j != i and labels[kept[j]] == each]
            means[each] = np.mean([np.linalg.norm(xy[i] - xy[j]) for j in others])
        nearest = min(means[each] for each in means if each != own)
        values.append((nearest - means[own]) / max(nearest, means[own]))
    scores = label_free_scores(rows(40), labels, n_neighbors=2)
    assert scores.silhouette_umap == pytest.approx(np.mean(values), abs=1e-6)
    assert scores.n_projected == 20


@pytest.mark.slow
def test_silhouette_is_that_of_the_umap_plane():
    x = np.concatenate([rows(30) * 0.2 + 3 * np.eye(6)[i] for i in range(3)])
    labels = np.repeat([4, 9, 2], 30)
    scores = label_free_scores(x, labels, n_neighbors=5, random_state=3)
    plane = project(x, "umap", random_state=3).coordinates
    assert scores.silhouette_umap == pytest.approx(silhouette_score(plane, labels))
    assert scores.silhouette_umap > 0.5
    assert scores.neighborhood_purity > 0.95
    assert scores.n_projected == 90
    shuffled = np.random.default_rng(0).permutation(labels)
    poor = label_free_scores(x, shuffled, n_neighbors=5, max_samples=40)
    assert poor.silhouette_umap < 0.1
    assert poor.n_projected == 40
    assert abs(poor.neighborhood_purity - poor.neighborhood_purity_chance) < 0.15


def test_one_cluster_only_and_every_image_apart(monkeypatch):
    flat = Projection(rows(12, 2), np.arange(12), "umap", "umap")  # UMAP itself takes long to start
    monkeypatch.setattr("evaluation.clusters.label_free.project", lambda *_, **__: flat)
    one = label_free_scores(rows(12), np.zeros(12, int), n_neighbors=3)
    assert np.isnan(one.silhouette_umap)
    assert (one.neighborhood_purity, one.neighborhood_purity_chance) == (1, 1)
    apart = label_free_scores(rows(12), np.arange(12), n_neighbors=3)
    assert np.isnan(apart.silhouette_umap)
    assert apart.neighborhood_purity == apart.neighborhood_purity_limit == 0


def test_what_was_skipped_is_left_out_and_counted():
    x, labels = rows(50), np.random.default_rng(1).integers(0, 3, 50)
    other = np.random.default_rng(2).integers(0, 3, 50)
    kept = np.arange(50) % 7 != 0
    expected = label_free_scores(
        x[kept], labels[kept], other_labels=other[kept], n_neighbors=4, silhouette=False
    )
    holes, marked = x.copy(), np.where(kept, labels, -1)
    holes[~kept] = np.nan
    for rows_, labels_ in ((holes, marked), (x, marked), (holes, labels)):
        found = label_free_scores(
            rows_,
            labels_,
            other_labels=np.where(kept, other, -1),
            n_neighbors=4,
            silhouette=False,
        )
        assert (found.n_samples, found.n_skipped) == (kept.sum(), (~kept).sum())
        assert found.neighborhood_purity == expected.neighborhood_purity
        assert found.stability == pytest.approx(expected.stability)


def pair_counting_ari(first, second):
    """The adjusted Rand index, from every pair of images."""
    pairs = list(combinations(range(len(first)), 2))
    a = np.array([first[i] == first[j] for i, j in pairs])
    b = np.array([second[i] == second[j] for i, j in pairs])
    expected = a.sum() * b.sum() / len(pairs)
    return ((a & b).sum() - expected) / ((a.sum() + b.sum()) / 2 - expected)


def test_stability_is_the_adjusted_rand_index():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 40), rng.integers(0, 3, 40)
    second[:20] = first[:20]
    assert stability(first, second) == pytest.approx(pair_counting_ari(first, second))
    assert stability(first, second) == pytest.approx(stability(second, first))
    assert stability(first, (first + 2) % 4) == 1
    assert stability([0, 0, -1, 1], [1, 1, 0, -1]) == 1
    assert np.isnan(
        label_free_scores(rows(9), np.arange(9) % 2, n_neighbors=2, silhouette=False).stability
    )


def test_the_result_is_frozen():
    scores = label_free_scores(rows(5), [0, 0, 1, 1, 1], n_neighbors=1, silhouette=False)
    with pytest.raises(FrozenInstanceError):
        scores.stability = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_neighbors": 6}, "6 images have a label and a row, expected more than n_neighbors=6"),
        ({"labels": [0, 1, 0, 1, -1, -1], "n_neighbors": 4}, "4 images have a label and a row"),
        ({"n_neighbors": 0}, "n_neighbors=0, expected an integer of at least 1"),
        ({"max_samples": 2}, "max_samples=2, expected an integer of at least 4"),
        ({"backend": "gpu"}, "backend='gpu', expected one of"),
        ({"labels": [0, 1]}, "embeddings has 6 rows and labels has 2"),
        ({"labels": [0, 1, 0, 1, 0, -3]}, "labels holds -3"),
        ({"other_labels": [0]}, "labels has 6 rows and other has 1"),
        ({"other_labels": [-1] * 6}, "No image of 6 has a cluster in both fits"),
        (
            {"embeddings": [[1.0, 1], [np.nan, np.nan], [1, np.nan], [1, 1], [1, 2], [2, 1]]},
            r"embeddings holds NaN or infinity \(first in row 2\)",
        ),
    ],
)
def test_bad_input_is_explained(changes, message):
    arguments = {
        "embeddings": rows(6),
        "labels": [0, 1, 0, 1, 0, 1],
        "n_neighbors": 2,
        "silhouette": False,
    } | changes
    with pytest.raises(ValueError, match=message):
        label_free_scores(**arguments)


def test_missing_umap_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match=r"sklearn-excb\[eval\]"):
        label_free_scores(rows(9), np.arange(9) % 2, n_neighbors=2)
