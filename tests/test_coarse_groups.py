"""Coarse groups: Ward's tree held to SciPy's and scikit-learn's, and what predict makes of it."""

import copy
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
import sklearn
from scipy.cluster.hierarchy import cut_tree, dendrogram, fcluster, is_valid_linkage, linkage
from sklearn.base import clone
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sklearn_excb import ExCBEstimator
from sklearn_excb.method import ward
from sklearn_excb.training import coarse_groups
from sklearn_excb.training.coarse_groups import cut, group_centroids, merge_tree

IMAGES = (load_digits().images[:150] / 16).astype(np.float32)


def points(K, D=8, seed=0):
    return np.random.default_rng(seed).normal(size=(K, D))


@pytest.fixture(params=["double", "single"])
def precision(request, monkeypatch):
    """Both ways of comparing, whatever K; the tolerance of heights."""
    if request.param == "single":
        monkeypatch.setattr(ward, "_DOUBLES_UP_TO", 0)
    return {"double": 1e-9, "single": 1e-5}[request.param]


@pytest.fixture(scope="module")
def fitted():
    """Too short a fit for a good one; eleven clusters have images."""
    excb = ExCBEstimator(
        K=12, epochs=6, n_local=0, batch_size=50, image_size=12, head_width=64, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return excb.fit(IMAGES)


@pytest.mark.parametrize(("K", "D"), [(2, 3), (3, 1), (60, 2), (400, 16)])
def test_equal_sizes_are_scipys_ward(K, D, precision):
    x = points(K, D)
    tree, expected = merge_tree(x, np.ones(K)), linkage(x, "ward")
    np.testing.assert_array_equal(tree[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_allclose(tree[:, 2], expected[:, 2], rtol=precision)


@pytest.mark.parametrize("power", [-1000, -600, -200, 200, 600, 1000])
@pytest.mark.parametrize("sizes", [np.ones(9), np.arange(9) % 4], ids=["used", "empty"])
def test_the_tree_does_not_depend_on_the_unit(sizes, power):
    x = points(9)
    tree, expected = merge_tree(np.ldexp(x, power), sizes), merge_tree(x, sizes)
    np.testing.assert_array_equal(tree[:, [0, 1, 3]], expected[:, [0, 1, 3]])
    np.testing.assert_array_equal(np.ldexp(tree[:, 2], -power), expected[:, 2])


@pytest.mark.parametrize("power", [-100, -40, 20, 100])
def test_directions_of_features_do_not_depend_on_their_unit(power):
    labels, unit = np.repeat(np.arange(5), 8), np.eye(6, 3, dtype=np.float32)
    sums = points(6, 7).astype(np.float32)
    expected, found = (
        group_centroids(np.ldexp(sums, p), labels, unit, directions=True) for p in (0, power)
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("K", [2, 40, 300])
def test_sizes_are_points_repeated(K, precision):
    x = points(K, 5, seed=1)
    sizes = np.random.default_rng(2).integers(1, 7, K)
    each = np.repeat(np.arange(K), sizes)
    tree, expected = merge_tree(x, sizes), linkage(x[each], "ward")
    assert expected[: -(K - 1), 2].max(initial=0) == 0  # copies are joined first
    np.testing.assert_allclose(tree[:, 2], expected[-(K - 1) :, 2], rtol=precision)
    for k in {1, 2, 1 + K // 3, K // 2, K - 1, K}:
        np.testing.assert_array_equal(cut(tree, k)[each], cut(expected, k))


def test_equal_sizes_are_scikit_learns_partitions():
    x = points(120, 10, seed=3)
    tree = merge_tree(x, np.full(120, 7))
    for k in (2, 5, 11, 60):
        expected = AgglomerativeClustering(k, linkage="ward").fit_predict(x)
        assert adjusted_rand_score(expected, cut(tree, k)) == 1


def test_the_definition_by_hand():
    """Always the pair whose union adds least to the sum of squares, counted one image at a time."""
    x, sizes = points(9, 2, seed=4), np.array([1, 30, 2, 5, 1, 9, 4, 40, 3])
    each = np.repeat(np.arange(9), sizes)

    def spread(members):
        mine = x[each[np.isin(each, members)]]
        return ((mine - mine.mean(axis=0)) ** 2).sum()

    groups = {i: [i] for i in range(9)}
    for i, (a, b, height, n_leaves) in enumerate(merge_tree(x, sizes)):
        added = {
            (p, q): spread(groups[p] + groups[q]) - spread(groups[p]) - spread(groups[q])
            for p in groups
            for q in groups
            if p < q
        }
        assert min(added, key=added.__getitem__) == (a, b)
        assert height == pytest.approx(np.sqrt(2 * added[a, b]))
        groups[9 + i] = groups.pop(a) + groups.pop(b)
        assert len(groups[9 + i]) == n_leaves


@pytest.mark.parametrize(
    ("x", "sizes"),
    [
        (np.eye(30), np.ones(30)),
        (np.zeros((30, 4)), np.arange(1, 31)),
        (np.repeat(np.eye(6), 5, axis=0), np.ones(30)),
        (np.stack(np.divmod(np.arange(64), 8), axis=1) * 0.1, np.ones(64)),
        (1e3 + np.repeat(points(3), 10, axis=0) * 1e-6, np.ones(30)),
    ],
    ids=["all as far", "all in one place", "copies", "a grid", "far from 0"],
)
def test_ties_end_in_a_valid_tree(x, sizes, precision):
    tree = merge_tree(x, sizes)
    assert is_valid_linkage(tree)
    assert (np.diff(tree[:, 2]) >= 0).all()
    for k in range(1, len(x) + 1):
        assert len(np.unique(cut(tree, k))) == k


def test_copies_are_joined_first():
    x = np.repeat(points(7), 4, axis=0)
    np.testing.assert_array_equal(cut(merge_tree(x, np.ones(28)), 7), np.repeat(np.arange(7), 4))


def test_a_hub_near_to_all_does_not_slow_it_down(monkeypatch):
    """All are nearest to the lightest: one pair at a time, and still no K^3."""
    K = 512
    monkeypatch.setattr(ward, "_FEWEST_DISTANCES", 0)
    looked = []
    find = ward.Merging._find
    monkeypatch.setattr(
        ward.Merging, "_find", lambda self, rows: (looked.append(len(rows)), find(self, rows))
    )
    tree = merge_tree(np.eye(K), np.arange(K) + 1.0)
    assert is_valid_linkage(tree)
    assert sum(looked) < 12 * K


def test_a_complete_graph_changes_nothing(monkeypatch, precision):
    x, sizes = points(90, 6, seed=6), np.random.default_rng(6).integers(1, 9, 90)
    monkeypatch.setattr(coarse_groups, "_NEIGHBORS", 89)
    expected = merge_tree(x, sizes)
    for n_left in (1, 30, 89):
        tree = merge_tree(x, sizes, exact_up_to=n_left)
        np.testing.assert_array_equal(tree[:, [0, 1, 3]], expected[:, [0, 1, 3]])
        np.testing.assert_allclose(tree[:, 2], expected[:, 2], rtol=precision)


def test_a_graph_in_parts_is_finished_without_it():
    """Ten groups far from each other, each larger than its graph."""
    rng = np.random.default_rng(7)
    true = np.repeat(np.arange(10), 40)
    x = rng.normal(size=(10, 8))[true] * 50 + rng.normal(size=(400, 8))
    tree = merge_tree(x, rng.integers(1, 9, 400), exact_up_to=1)
    assert is_valid_linkage(tree)
    assert (np.diff(tree[:, 2]) >= 0).all()
    np.testing.assert_array_equal(cut(tree, 10), true)
    exact = merge_tree(x, np.ones(400))
    assert (
        adjusted_rand_score(cut(exact, 4), cut(merge_tree(x, np.ones(400), exact_up_to=20), 4)) == 1
    )


def test_empty_clusters_join_the_nearest_that_is_not():
    x = np.array([[0.0, 0], [5, 0], [0.1, 0], [4, 1], [3.9, 1], [9, 9]])
    sizes = np.array([3, 2, 0, 0, 0, 1])
    tree = merge_tree(x, sizes)
    assert is_valid_linkage(tree)
    assert (tree[:3, 2] == 0).all()
    assert tree[-1, 3] == 6
    np.testing.assert_array_equal(cut(tree, 3), [0, 1, 0, 1, 1, 2])
    np.testing.assert_allclose(
        tree[3:, 2], merge_tree(x[sizes > 0], sizes[sizes > 0])[:, 2], rtol=1e-12
    )
    np.testing.assert_array_equal(cut(merge_tree(x, [0, 0, 0, 1, 0, 0]), 1), np.zeros(6))


def test_scipy_takes_the_tree():
    tree = merge_tree(points(50, seed=5), np.random.default_rng(5).integers(0, 9, 50))
    assert is_valid_linkage(tree)
    assert sorted(dendrogram(tree, no_plot=True)["leaves"]) == list(range(50))
    for k in (2, 7):
        assert adjusted_rand_score(fcluster(tree, k, "maxclust"), cut(tree, k)) == 1
        assert adjusted_rand_score(cut_tree(tree, k).ravel(), cut(tree, k)) == 1


def test_cuts_are_nested_and_numbered_by_the_lowest_leaf():
    tree = merge_tree(points(40), np.ones(40))
    np.testing.assert_array_equal(cut(tree, 40), np.arange(40))
    np.testing.assert_array_equal(cut(tree, 1), np.zeros(40))
    for k in range(2, 41):
        fine, coarse = cut(tree, k), cut(tree, k - 1)
        assert len(np.unique(np.stack([fine, coarse]), axis=1).T) == k
        firsts = np.unique(fine, return_index=True)[1]
        assert (np.diff(firsts) > 0).all()


@pytest.mark.parametrize(
    ("centroids", "sizes", "message"),
    [
        (np.zeros((3, 2)), [1, 1], r"shape \(3, 2\) and sizes have shape \(2,\)"),
        (np.zeros(3), [1, 1, 1], r"must have shapes \(K, D\) and \(K,\)"),
        ([[np.nan], [1]], [1, 1], "NaN or infinity"),
        (np.zeros((2, 2)), [0, 0], "one must be above 0"),
        (np.zeros((2, 2)), [-1, 1], "must not be negative"),
    ],
)
def test_bad_arrays_are_explained(centroids, sizes, message):
    with pytest.raises(ValueError, match=message):
        merge_tree(centroids, sizes)


@pytest.mark.parametrize("directions", [True, False])
@pytest.mark.parametrize("d", [4, 300])
def test_places_are_those_of_mean_features(d, directions):
    rng = np.random.default_rng(8)
    labels = np.repeat([0, 1, 3, 4], [5, 9, 2, 14])
    features = rng.normal(size=(30, d)) + rng.normal(size=(5, d))[labels]
    sums = np.zeros((5, d), np.float32)
    np.add.at(sums, labels, features)
    centroids = np.eye(5, dtype=np.float32)
    centroids[2] = [0, 0, 0.6, 0.8, 0]  # nearest to 3, and without images
    places = group_centroids(sums, labels, centroids, directions=directions)
    assert places.shape == (5, min(d, 5))
    np.testing.assert_array_equal(places[2], places[3])
    expected = np.stack([features[labels == i].mean(axis=0) for i in (0, 1, 3, 4)])
    expected -= features.mean(axis=0)
    if directions:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    used = places[[0, 1, 3, 4]]
    np.testing.assert_allclose(used @ used.T, expected @ expected.T, rtol=1e-5, atol=1e-5)


def test_many_clusters_of_wide_features_lie_in_256_dimensions():
    rng = np.random.default_rng(9)
    labels = np.arange(600) % 300
    features = np.zeros((600, 400), np.float32)
    features[:, :50] = rng.normal(size=(600, 50))
    sums = np.zeros((300, 400), np.float32)
    np.add.at(sums, labels, features)
    places = group_centroids(sums.copy(), labels, np.eye(300, dtype=np.float32), directions=False)
    assert places.shape == (300, 256)
    means = sums / 2 - features.mean(axis=0)
    np.testing.assert_allclose(places @ places.T, means @ means.T, atol=1e-3)


def test_a_fit_knows_where_its_clusters_lie(fitted):
    excb = pickle.loads(pickle.dumps(fitted)).set_params(embedding="backbone")
    features = excb.transform(IMAGES)
    sums = np.zeros((12, features.shape[1]), np.float32)
    np.add.at(sums, excb.labels_, features)
    places = group_centroids(sums, excb.labels_, excb.cluster_centers_)
    mine = excb._fitted.group_centroids
    np.testing.assert_allclose(mine @ mine.T, places @ places.T, atol=1e-4)
    expected = merge_tree(mine, excb.relative_cluster_sizes_)
    np.testing.assert_array_equal(excb.linkage_, expected)
    untrained = ExCBEstimator(K=3, epochs=0, random_state=0).fit(IMAGES)
    assert len(np.unique(untrained.labels_)) == 1  # all images in one cluster, at their mean
    np.testing.assert_array_equal(untrained.linkage_[:, 2], 0)


def test_where_no_means_are_known_the_centroids_are_merged(fitted):
    without = copy.copy(fitted)
    learned = replace(fitted._fitted, group_centroids=None)
    without._set_fitted(learned, fitted.resolved_params_)
    expected = merge_tree(fitted.cluster_centers_, fitted.relative_cluster_sizes_)
    np.testing.assert_array_equal(without.linkage_, expected)


def test_groups_are_unions_of_clusters(fitted):
    labels = fitted.predict(IMAGES)
    np.testing.assert_array_equal(fitted.predict(IMAGES, n_groups=12), labels)
    np.testing.assert_array_equal(fitted.predict(IMAGES, n_groups=1), np.zeros(150))
    for k in (2, 5, np.int64(7)):
        groups = fitted.predict(IMAGES, n_groups=k)
        assert groups.dtype == np.int64
        assert len(np.unique(np.stack([labels, groups]), axis=1).T) == len(np.unique(labels))
        np.testing.assert_array_equal(groups, cut(fitted.linkage_, k)[labels])
    assert fitted.predict(IMAGES, n_groups=3).max() == 2


def test_the_old_name_of_groups_warns(fitted):
    with pytest.warns(FutureWarning, match=r"is now n_groups.*n_groups=2") as caught:
        groups = fitted.predict(IMAGES, n_clusters=2)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(groups, fitted.predict(IMAGES, n_groups=2))
    with pytest.raises(TypeError, match="Pass only n_groups"):
        fitted.predict(IMAGES, n_clusters=2, n_groups=2)


def test_out_and_streams_take_groups(fitted):
    expected, out = fitted.predict(IMAGES, n_groups=4), np.empty(150, np.int64)
    assert fitted.predict(IMAGES, n_groups=4, out=out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(fitted.predict(iter(IMAGES), n_groups=4), expected)


def test_skipped_images_stay_without_a_group(fitted):
    skipping = pickle.loads(pickle.dumps(fitted)).set_params(on_error="skip")
    with pytest.warns(UserWarning, match="skipped"):
        groups = skipping.predict([IMAGES[0], b"no image", IMAGES[1]], n_groups=2)
    assert groups[1] == -1
    np.testing.assert_array_equal(groups[::2], fitted.predict(IMAGES[:2], n_groups=2))


@pytest.mark.parametrize("bad", [0, 13, 2.0, "10", True, -1])
def test_impossible_numbers_of_groups_are_explained(fitted, bad):
    with pytest.raises(ValueError, match=r"n_groups=.* an integer from 1 to K=12.*larger K"):
        fitted.predict(IMAGES, n_groups=bad)


def test_the_tree_belongs_to_the_fit(fitted, tmp_path):
    assert not hasattr(clone(fitted), "linkage_")
    assert fitted.linkage_.shape == (11, 4)
    assert is_valid_linkage(fitted.linkage_)
    assert fitted.linkage_ is fitted.linkage_
    fitted.save(tmp_path)
    for other in (pickle.loads(pickle.dumps(fitted)), ExCBEstimator.load(tmp_path)):
        np.testing.assert_array_equal(other.linkage_, fitted.linkage_)
    again = pickle.loads(pickle.dumps(fitted)).set_params(K=5, epochs=0)
    assert again.fit(IMAGES).linkage_.shape == (4, 4)


def test_a_single_cluster_has_a_tree_without_merges():
    tree = merge_tree([[1.0, 0.0]], [3])
    assert tree.shape == (0, 4)
    np.testing.assert_array_equal(cut(tree, 1), [0])


def test_pipelines_and_searches_need_no_routing_for_it():
    rows = IMAGES.reshape(150, -1)
    excb = ExCBEstimator(K=6, epochs=1, batch_size=50, n_local=0, head_width=16, random_state=0)
    pipe = make_pipeline(FunctionTransformer(), excb)
    with sklearn.config_context(enable_metadata_routing=True):
        assert excb.get_metadata_routing().predict.requests == {}
        assert excb.get_metadata_routing().transform.requests == {}
        assert not hasattr(excb, "set_predict_request")
        labels = pipe.fit(rows).predict(rows)
        search = GridSearchCV(
            pipe, {"excbestimator__K": [6]}, scoring=lambda e, X: float(len(X)), cv=2
        )
        np.testing.assert_array_equal(search.fit(rows).predict(rows), labels)
        assert pipe.transform(rows).shape == (150, 256)
    groups = pipe.predict(rows, n_groups=2)  # without routing, whatever comes is handed on
    np.testing.assert_array_equal(groups, cut(excb.linkage_, 2)[labels])
