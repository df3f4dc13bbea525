"""Clustering scores, against definitions written as loops."""

from dataclasses import FrozenInstanceError
from itertools import permutations
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

from evaluation import clustering_scores


def brute_accuracy(true, pred):
    """Best share of matched images over every one-to-one assignment of clusters to classes."""
    classes, clusters = sorted(set(true)), sorted(set(pred))
    size = max(len(classes), len(clusters))
    classes += [None] * (size - len(classes))
    best = 0
    for order in permutations(classes):
        match = dict(zip(clusters, order, strict=False))
        best = max(best, sum(match[p] == t for t, p in zip(true, pred, strict=True)))
    return best / len(true)


def loop_purity(true, pred):
    right = 0
    for cluster in set(pred):
        members = [t for t, p in zip(true, pred, strict=True) if p == cluster]
        right += max(members.count(each) for each in set(members))
    return right / len(true)


def loop_nmi(true, pred):
    n = len(true)

    def entropy(labels):
        shares = [labels.count(each) / n for each in set(labels)]
        return -sum(p * log(p) for p in shares)

    mean = (entropy(true) + entropy(pred)) / 2
    joint = list(zip(true, pred, strict=True))
    mutual = entropy(true) + entropy(pred) - entropy(joint)
    return mutual / mean if mean > 1e-12 else 1.0


labelings = st.integers(1, 25).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
        st.lists(st.integers(0, 5), min_size=n, max_size=n),
    )
)


@settings(max_examples=40)
@given(labelings)
def test_scores_equal_their_definitions(labels):
    true, pred = labels
    scores = clustering_scores(true, pred)
    assert scores.accuracy == pytest.approx(brute_accuracy(true, pred))
    assert scores.purity == pytest.approx(loop_purity(true, pred))
    assert scores.nmi == pytest.approx(loop_nmi(true, pred), abs=1e-9)
    assert scores.accuracy <= scores.purity + 1e-12
    assert (scores.n_samples, scores.n_skipped) == (len(true), 0)


@settings(max_examples=80)
@given(labelings)
def test_scores_equal_those_of_sklearn(labels):
    scores = clustering_scores(*labels)
    expected = {
        "nmi": metrics.normalized_mutual_info_score(*labels),
        "ami": metrics.adjusted_mutual_info_score(*labels),
        "ari": metrics.adjusted_rand_score(*labels),
        "homogeneity": metrics.homogeneity_score(*labels),
        "completeness": metrics.completeness_score(*labels),
        "v_measure": metrics.v_measure_score(*labels),
    }
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize(("n_classes", "n_clusters"), [(12, 900), (60, 60), (700, 9), (1, 30)])
def test_large_tables_equal_sklearn_and_the_dense_matching(n_classes, n_clusters):
    rng = np.random.default_rng(0)
    true = rng.integers(0, n_classes, 4000)
    related = true * max(1, n_clusters // n_classes) % n_clusters
    pred = np.where(rng.random(4000) < 0.5, related, rng.integers(0, n_clusters, 4000))
    scores = clustering_scores(true, pred)
    table = metrics.cluster.contingency_matrix(true, pred)
    matched = table[linear_sum_assignment(table, maximize=True)].sum()
    assert scores.accuracy == matched / 4000
    assert scores.ami == pytest.approx(metrics.adjusted_mutual_info_score(true, pred), abs=1e-8)


def test_mutual_information_by_chance_does_not_show_its_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.geometric(0.1, 500), rng.geometric(0.05, 500)
    monkeypatch.setattr("evaluation.clusters.scores._BLOCK", 7)
    expected = metrics.adjusted_mutual_info_score(*labels)
    assert clustering_scores(*labels).ami == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("true", "pred"),
    [
        ([0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2]),
        ([0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 1]),
        ([0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 3, 3]),
    ],
)
def test_chance_level_of_purity_is_its_mean_over_every_order_of_the_images(true, pred):
    purities = [loop_purity(order, pred) for order in permutations(true)]
    error = np.std(purities) / np.sqrt(400)  # 400 draws
    assert clustering_scores(true, pred).purity_chance == pytest.approx(
        np.mean(purities), abs=4 * error
    )


def test_chance_level_of_purity_in_its_extremes():
    assert clustering_scores([0, 1, 2], [2, 1, 0]).purity_chance == 1  # every image apart
    assert clustering_scores([0, 0, 1], [4, 4, 4]).purity_chance == pytest.approx(2 / 3)
    assert clustering_scores([5, 5, 5], [0, 1, 1]).purity_chance == 1


def test_chance_level_of_purity_is_accurate_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 10, 1000), rng.integers(0, 50, 1000)
    chances = []
    for _ in range(8):
        order = rng.permutation(1000)
        chances.append(clustering_scores(true[order], pred).purity_chance)
    assert np.std(chances) < 0.0005
    assert clustering_scores(true, pred) == clustering_scores(true, pred)


def test_one_class_or_one_cluster():
    scores = clustering_scores([3, 3, 3, 3], [0, 0, 1, 2])
    assert (scores.homogeneity, scores.purity, scores.purity_chance) == (1, 1, 1)
    assert (scores.completeness, scores.nmi, scores.ami, scores.ari) == (0, 0, 0, 0)
    scores = clustering_scores([0, 0, 1, 2], [3, 3, 3, 3])
    assert (scores.homogeneity, scores.completeness, scores.ami) == (0, 1, 0)
    assert (scores.purity, scores.purity_chance, scores.accuracy) == (0.5, 0.5, 0.5)
    both = clustering_scores([0, 0], [1, 1])
    assert (both.nmi, both.ami, both.ari, both.v_measure, both.accuracy) == (1, 1, 1, 1, 1)


@settings(max_examples=30)
@given(labelings, st.permutations(range(6)))
def test_names_of_clusters_and_classes_do_not_matter(labels, renaming):
    true, pred = labels
    renamed = clustering_scores([f"class {each}" for each in true], [renaming[p] for p in pred])
    plain = clustering_scores(true, pred)
    for name in ("nmi", "ami", "ari", "accuracy", "purity"):
        assert getattr(renamed, name) == pytest.approx(getattr(plain, name), abs=1e-9)


def test_a_perfect_clustering_scores_one():
    scores = clustering_scores(["b", "b", "a", "c"], [0, 0, 9, 4])
    assert (scores.nmi, scores.ami, scores.ari) == pytest.approx((1, 1, 1))
    assert (scores.accuracy, scores.purity) == (1, 1)


def test_chance_adjusted_scores_are_about_zero_for_random_labels():
    rng = np.random.default_rng(0)
    scores = clustering_scores(rng.integers(0, 10, 2000), rng.integers(0, 100, 2000))
    assert abs(scores.ami) < 0.02
    assert abs(scores.ari) < 0.02
    assert scores.nmi > 0.04  # not adjusted: rises with the number of clusters


def test_images_of_unmatched_clusters_count_as_wrong():
    scores = clustering_scores([0, 0, 0, 0], [0, 0, 1, 2])
    assert scores.accuracy == 0.5
    assert scores.purity == 1


def test_skipped_images_are_left_out_and_counted():
    scores = clustering_scores([0, 1, 0, 1, 7], [3, 2, -1, 2, -1])
    expected = clustering_scores([0, 1, 1], [3, 2, 2])
    assert (scores.n_samples, scores.n_skipped) == (3, 2)
    assert (scores.accuracy, scores.nmi) == (expected.accuracy, expected.nmi)


def test_a_class_called_minus_one_is_a_class():
    assert clustering_scores([-1, -1, 0], [0, 0, 1]).n_samples == 3


def test_classes_that_look_like_measurements_do_not_warn():
    assert clustering_scores([0.5, 1.5, 0.5], [0, 1, 0]).accuracy == 1


def test_the_result_is_frozen():
    with pytest.raises(FrozenInstanceError):
        clustering_scores([0], [0]).nmi = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("true", "pred", "message"),
    [
        ([0, 1], [0], "true has 2 rows and pred has 1"),
        ([], [], "true is empty"),
        ([0, 1], [-1, -1], r"All 2 predicted labels are -1 \(skipped\)"),
        ([0, 1], [-2, 0], "pred holds -2, expected ids of at least 0, or -1"),
        ([0, 1], [0.0, 1.0], "pred has dtype float64, expected integer cluster ids"),
        ([0, 1], ["a", "b"], "expected integer cluster ids"),
        ([[0, 1], [1, 0]], [0, 1], r"true has shape \(2, 2\)"),
        ([np.nan, np.nan], [0, 1], "All 2 classes in true are None or NaN"),
    ],
)
def test_bad_input_is_explained(true, pred, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores(true, pred)
