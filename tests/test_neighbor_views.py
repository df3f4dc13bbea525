"""Views of rows by their neighbourhoods."""

import pickle

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from sklearn_excb import ExCBEstimator
from sklearn_excb.views.neighbor_views import (
    nearest,
    neighbor_views,
    principal_coordinates,
    transition_matrix,
    walk_length,
)
from tests.small_runs import interrupting
from tests.tiers import others_slow

SHORT = {"epochs": 1, "batch_size": 32, "random_state": 0}


@pytest.fixture
def rows():
    return make_blobs(120, 6, centers=4, random_state=0)[0].astype(np.float32)


def coordinates_of(rows, most=255):
    centred = rows - rows.mean(axis=0)
    return principal_coordinates(lambda some: centred[some], *rows.shape, most)


def views_of(rows, **changes):
    options = {"n_clusters": 4, "n_global": 2, "mean": np.zeros(rows.shape[1]), "scale": 1.0}
    return neighbor_views(coordinates_of(rows), 0.5, **(options | changes))


def test_neighbours_are_those_of_scikit_learn(rows):
    found = nearest(rows, 2.0, 7)
    beside = np.concatenate([rows, np.full((120, 1), 2.0)], axis=1)
    search = NearestNeighbors(n_neighbors=7, metric="cosine").fit(beside)
    np.testing.assert_array_equal(found, search.kneighbors(return_distance=False))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_a_row_is_no_neighbour_of_itself_even_among_copies(k):
    copies = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    found = nearest(copies, 1.0, k)
    assert found.shape == (120, k)
    assert (found != np.arange(120)[:, None]).all()
    assert (found // 40 == np.arange(120)[:, None] // 40).all()
    assert all(len(set(of_row)) == k for of_row in found)


def test_chances_of_a_step():
    # 0 and 1 are mutual; 2 has 0 as its neighbour, and 3 has 2
    chances = transition_matrix(np.array([[1], [0], [0], [2]])).toarray()
    weights = np.array([[1, 1, 0.1, 0], [1, 1, 0, 0], [0.1, 0, 1, 0.1], [0, 0, 0.1, 1]])
    np.testing.assert_allclose(chances, weights / weights.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("size", [5, 20])
def test_walks_within_cliques_never_reach_more_than_the_clique(size):
    walk = csr_matrix(np.kron(np.eye(4), np.full((size, size), 1 / size)).astype(np.float32))
    assert walk_length(walk, size) == 32
    assert walk_length(walk, size - 1) == 1


def test_walks_are_shorter_where_clusters_are_smaller():
    ring = sum(np.roll(np.eye(400), shift, axis=1) for shift in (-1, 0, 1)) / 3
    lengths = [walk_length(csr_matrix(ring.astype(np.float32)), most) for most in (4, 8, 40)]
    assert 1 <= lengths[0] < lengths[1] < lengths[2] == 32


def test_global_views_are_means_over_the_ends_of_walks(rows):
    views = views_of(rows)
    steps = transition_matrix(nearest(coordinates_of(rows).rows, 0.5, 10))
    longest, walk = walk_length(steps, 120 / 4), steps.toarray().astype(float)
    assert longest > 3
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    some = np.array([3, 77, 5])
    for view, n_steps in enumerate([longest, longest // 2]):
        ends = np.linalg.matrix_power(walk, n_steps) @ centred
        ends -= ends.mean(axis=0)
        ends *= np.sqrt(np.square(centred).sum() / np.square(ends).sum())
        made = views.make(None, some, 0, 1, view)
        np.testing.assert_allclose(made, ends[some], rtol=1e-3, atol=1e-3)


def test_views_are_in_the_units_of_the_rows(rows):
    mean = np.arange(6.0)
    views = views_of(rows, mean=mean, scale=3.0)
    made = views.make(None, np.arange(120), 0, 1, 0)
    np.testing.assert_allclose(made.mean(axis=0), mean, atol=1e-3)
    of_unit = views_of(rows).make(None, np.arange(120), 0, 1, 0)
    np.testing.assert_allclose(made - mean, 3 * of_unit, rtol=1e-3, atol=1e-3)


def test_local_views_are_the_row_and_then_neighbours_drawn_by_row_and_view(rows):
    views, load, some = views_of(rows), rows.__getitem__, np.arange(120)
    np.testing.assert_array_equal(views.make(load, some, 0, 1, 2), rows)
    place = {row.tobytes(): index for index, row in enumerate(rows)}

    def drawn(seed, epoch, view, rows=some):
        return [place[row.tobytes()] for row in views.make(load, rows, seed, epoch, view)]

    first = drawn(0, 1, 3)
    assert all(index in near for index, near in zip(first, views.neighbors, strict=True))
    assert drawn(0, 1, 3, some[::-1][:50]) == first[::-1][:50]
    for other in (drawn(1, 1, 3), drawn(0, 2, 3), drawn(0, 1, 4)):
        assert other != first


def test_few_directions_keep_the_widest(rows):
    wide = np.random.default_rng(0).normal(size=(300, 40)) * np.geomspace(1e4, 1e-8, 40)
    found = coordinates_of(wide.astype(np.float32), most=5)
    assert found.rows.shape == (300, 5)
    np.testing.assert_allclose(np.abs(np.diag(found.directions)), 1, atol=0.05)


ROUTES = {
    "few rows": make_blobs(40, 3, centers=2, random_state=0)[0],
    "fewer than neighbours": make_blobs(8, 3, centers=2, random_state=0)[0],
    "copies": np.repeat(make_blobs(4, 5, centers=4, random_state=0)[0], 100, axis=0),
    "a constant feature": np.c_[make_blobs(80, 5, random_state=0)[0], np.full(80, 7.0)],
    "one feature": np.r_[np.zeros((50, 1)), np.ones((50, 1))],
    "many features": make_blobs(60, 700, centers=3, random_state=0)[0],
    "tiny units": make_blobs(90, 4, centers=3, random_state=0)[0] * 1e-150,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", others_slow(ROUTES, default=3))
def test_degenerate_rows_are_clustered(kind):
    X = ROUTES[kind]
    excb = ExCBEstimator(2, views="neighbours", **SHORT | {"batch_size": 8}).fit(X)
    assert np.isfinite(excb.transform(X)).all()
    np.testing.assert_array_equal(excb.predict(X), excb.labels_)


def test_rows_that_are_all_alike_end_in_one_cluster_and_a_warning():
    X = np.ones((64, 5))
    with pytest.warns(UserWarning, match="copies"):
        excb = ExCBEstimator(2, views="neighbours", **SHORT).fit(X)
    assert np.isfinite(excb.transform(X)).all()


def test_hidden_layers_learn_from_neighbours_too():
    X = wide_rows()
    excb = fitted(X, backbone="mlp", epochs=1)
    np.testing.assert_array_equal(excb.predict(X), excb.labels_)


def test_both_spellings(rows):
    fits = [
        ExCBEstimator(4, views=views, **SHORT).fit(rows) for views in ("neighbours", "neighbors")
    ]
    np.testing.assert_array_equal(fits[0].transform(rows), fits[1].transform(rows))
    assert fits[1].resolved_params_["views"] == "neighbours"


@pytest.mark.parametrize(
    ("n_samples", "n_clusters", "views", "tolerance"),
    [
        (199, 5, "noise", 1),
        (200, 5, "neighbours", 1.43),
        (290, 10, "noise", 1),
        (500, 5, "neighbours", 2),
    ],
)
def test_auto_is_by_neighbours_where_clusters_have_many_rows(
    n_samples, n_clusters, views, tolerance
):
    X = np.random.default_rng(0).normal(size=(n_samples, 4))
    resolved = ExCBEstimator(n_clusters, **SHORT).fit(X).resolved_params_
    assert resolved["views"] == views
    assert resolved["size_tolerance"] == pytest.approx(tolerance, abs=0.01)


def test_images_and_streams_have_no_neighbours():
    images = np.zeros((20, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"views='neighbours'.*crops"):
        ExCBEstimator(2, views="neighbours").fit(images)
    rows = np.random.default_rng(0).normal(size=(40, 4))
    with pytest.raises(ValueError, match=r"views='neighbours'.*stream"):
        ExCBEstimator(2, views="neighbours").partial_fit(rows)
    online = ExCBEstimator(2, batch_size=8, random_state=0).partial_fit(rows)
    assert online.resolved_params_["views"] == "noise"


def test_kinds_of_digits_are_found_better_than_by_kmeans():
    X, y = load_digits(return_X_y=True)
    excb = ExCBEstimator(10, random_state=0).fit(X[:1400])
    labels = KMeans(10, n_init=10, random_state=0).fit(X[:1400])
    for some in (slice(None, 1400), slice(1400, None)):
        ours, theirs = (
            adjusted_mutual_info_score(y[some], found.predict(X[some])) for found in (excb, labels)
        )
        assert ours > theirs + 0.05


def test_starts_from_principal_directions_where_projections_are_narrower():
    wide = make_blobs(200, 400, centers=4, random_state=0)[0]
    excb = ExCBEstimator(4, random_state=0, epochs=0).fit(wide)
    layer = excb._fitted.teacher.projector[-1].weight
    kept = layer.T @ layer  # a projector onto the principal directions
    torch.testing.assert_close(kept @ kept, kept, rtol=1e-3, atol=1e-3)


def wide_rows():
    return make_blobs(150, 300, centers=4, random_state=0)[0].astype(np.float32)


def fitted(X, **parameters):
    return ExCBEstimator(
        **{"K": 4, "views": "neighbours", **SHORT, "epochs": 3, "n_local": 2, **parameters}
    ).fit(X)


def assert_same_fit(one, other, X):
    np.testing.assert_array_equal(one.labels_, other.labels_)
    np.testing.assert_array_equal(one.transform(X), other.transform(X))
    np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)


def test_a_killed_fit_resumes_to_the_bit(tmp_path):
    X = wide_rows()
    with interrupting(after=7), pytest.raises(KeyboardInterrupt):
        fitted(X, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert_same_fit(fitted(X, checkpoint_dir=tmp_path, checkpoint_every=1), fitted(X), X)


def test_goes_on_with_more_epochs_more_rows_and_in_parts(tmp_path):
    X = wide_rows()
    excb = fitted(X[:130], warm_start=True)
    before = excb.transform(X)
    excb.set_params(epochs=5).fit(X)
    assert len(excb.history_) == 6
    assert not np.array_equal(excb.transform(X), before)
    excb.partial_fit(X[:40])
    assert np.isfinite(excb.transform(X)).all()


def test_is_saved_copied_and_exported(tmp_path):
    X = wide_rows()
    excb = fitted(X, size_tolerance=1.5)
    excb.save(tmp_path / "saved")
    for again in (ExCBEstimator.load(tmp_path / "saved"), pickle.loads(pickle.dumps(excb))):
        assert_same_fit(excb, again, X)
        assert again.resolved_params_["size_tolerance"] == 1.5
        assert again.resolved_params_["views"] == "neighbours"


@pytest.mark.slow
def test_several_processes_fit_as_one():
    X = wide_rows()
    alone, together = fitted(X), fitted(X, device="cpu", devices=2)
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    np.testing.assert_allclose(together.transform(X), alone.transform(X), atol=1e-3)


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_clusters_are_as_uneven_as_the_tolerance_lets_them(tolerance):
    X = make_blobs([400, 60, 60, 60], 5, cluster_std=0.5, random_state=0)[0]
    excb = ExCBEstimator(4, size_tolerance=tolerance, random_state=0, epochs=30).fit(X)
    assert (excb.relative_cluster_sizes_.max() > 1.5) == (tolerance > 1)
