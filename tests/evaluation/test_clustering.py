"""Clustering scores, against definitions written as loops."""

from dataclasses import FrozenInstanceError
from itertools import permutations
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(deadline=None, max_examples=80)
@given(labelings)
def test_scores_equal_their_definitions(labels):
    true, pred = labels
    scores = clustering_scores(true, pred)
    assert scores.accuracy == pytest.approx(brute_accuracy(true, pred))
    assert scores.purity == pytest.approx(loop_purity(true, pred))
    assert scores.nmi == pytest.approx(loop_nmi(true, pred), abs=1e-9)
    assert scores.accuracy <= scores.purity + 1e-12
    assert (scores.n_samples, scores.n_ignored) == (len(true), 0)


@settings(deadline=None, max_examples=30)
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
    assert (scores.n_samples, scores.n_ignored) == (3, 2)
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
        ([0, 1], [-2, 0], "pred holds -2, needed ids from 0 up, or -1"),
        ([0, 1], [0.0, 1.0], "pred has dtype float64, needed integer cluster ids"),
        ([0, 1], ["a", "b"], "needed integer cluster ids"),
        ([[0], [1]], [0, 1], r"true has shape \(2, 1\), needed \(n_samples,\)"),
        ([0.0, np.nan], [0, 1], "true holds NaN"),
    ],
)
def test_bad_input_is_explained(true, pred, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores(true, pred)
