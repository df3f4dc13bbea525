"""Nearest neighbours and the weighted k-NN protocol, against plain float64 loops."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

import evaluation.neighbors._fast_search
import evaluation.neighbors.search
from evaluation import KNNClassifier, knn_accuracy, knn_scores, nearest_neighbors
from evaluation.neighbors.search import Index
from evaluation.neighbors.voting import votes_of

BACKENDS = ["faiss", "torch"]


def unit(x):
    """L2-normalise in double precision, then round to single, as the search documents."""
    norms = np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True)
    return (x / np.where(norms > 0, norms, 1)).astype(np.float32)


def loop_neighbors(queries, database, k, metric="cosine"):
    """Every similarity by a float64 sum; a stable sort keeps the lowest index first."""
    if metric == "cosine":
        queries, database = unit(queries), unit(database)
    similarities, indices = [], []
    for query in queries.astype(np.float64):
        scores = np.array([np.sum(query * row) for row in database.astype(np.float64)])
        scores = scores.astype(np.float32)
        order = np.argsort(-scores, kind="stable")[:k]
        similarities.append(scores[order])
        indices.append(order)
    return np.array(similarities), np.array(indices)


def loop_predict(train, y, test, k, temperature):
    """The protocol as a sentence: k nearest by cosine, each votes exp(similarity / T)."""
    classes = sorted(set(y))
    similarities, indices = loop_neighbors(test, train, k)
    predicted = []
    for row, neighbors in zip(similarities, indices, strict=True):
        votes = dict.fromkeys(classes, 0.0)
        for similarity, index in zip(row, neighbors, strict=True):
            votes[y[index]] += np.exp(float(similarity) / temperature)
        predicted.append(max(classes, key=lambda each: votes[each]))
    return np.array(predicted)


def data(kind, n, d, seed):
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.normal(size=(n, d)).astype(np.float32)
    if kind == "integers":  # many exact ties between different rows
        return rng.integers(-2, 3, (n, d)).astype(np.float32)
    if kind == "cone":  # all nearly parallel: closer than single precision tells apart
        return (1 + 1e-3 * rng.normal(size=(n, d))).astype(np.float32)
    if kind == "one":  # every row the same
        return np.ones((n, d), np.float32)
    copies = np.repeat(rng.normal(size=(n // 7 + 1, d)), 7, axis=0)[:n]
    return copies[rng.permutation(n)].astype(np.float32)


KINDS = ["random", "integers", "copies", "cone", "one"]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x.astype(np.float32), y, test_size=300, random_state=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 60])
def test_neighbors_equal_a_float64_loop_to_the_bit(backend, metric, kind, k):
    queries, database = data(kind, 23, 19, 0), data(kind, 240, 19, 1)
    expected = loop_neighbors(queries, database, k, metric)
    similarities, indices = nearest_neighbors(
        queries, database, k, metric=metric, backend=backend, batch_size=10
    )
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(similarities, expected[0])
    assert similarities.dtype == np.float32
    assert indices.dtype == np.int64


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 90),
    st.integers(1, 12),
    st.integers(0, 2**31),
    st.data(),
)
def test_backends_and_batch_sizes_agree(kind, n, d, seed, draw):
    k = draw.draw(st.integers(1, n))
    queries, database = data(kind, 11, d, seed), data(kind, n, d, seed + 1)
    first = nearest_neighbors(queries, database, k, backend="faiss")
    for batch_size in (1, 4):
        other = nearest_neighbors(queries, database, k, backend="torch", batch_size=batch_size)
        np.testing.assert_array_equal(first[0], other[0])
        np.testing.assert_array_equal(first[1], other[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 3, 40])
def test_copies_far_apart_come_lowest_index_first(backend, k):
    # 200 columns and odd positions: matrix products round such copies differently.
    base = data("random", 37, 200, 0)
    database = np.tile(base, (29, 1))
    _, indices = nearest_neighbors(base[:5], database, k, backend=backend)
    copies = np.arange(29) * 37
    for query, row in enumerate(indices):
        np.testing.assert_array_equal(row[:29], (copies + query)[:k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_blocks_do_not_show(backend, monkeypatch):
    queries, database = data("copies", 40, 8, 0), data("copies", 500, 8, 0)
    whole = nearest_neighbors(queries, database, 9, backend=backend)
    monkeypatch.setattr(evaluation.neighbors.search, "_BLOCK", 64)
    monkeypatch.setattr(evaluation.neighbors._fast_search, "_BLOCK", 64)
    blocked = nearest_neighbors(queries, database, 9, backend=backend)
    np.testing.assert_array_equal(whole[0], blocked[0])
    np.testing.assert_array_equal(whole[1], blocked[1])


def test_ordinary_queries_are_proven_without_the_exhaustive_pass(monkeypatch):
    def fail(*_):
        raise AssertionError("exhaustive pass on well separated data")

    monkeypatch.setattr(evaluation.neighbors.search, "_exhaustive", fail)
    for backend in BACKENDS:
        for k in (1, 20):
            nearest_neighbors(
                data("random", 50, 64, 0), data("random", 3000, 64, 1), k, backend=backend
            )


def test_proof_holds_for_products_of_reduced_precision(monkeypatch):
    # Stands in for hardware that multiplies bfloat16 numbers when torch is allowed to.
    def bfloat16(x):
        return ((x.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)

    def coarse(rows, _):
        def propose(queries, width):
            products = bfloat16(queries) @ bfloat16(rows).T
            indices = np.argsort(-products, axis=1)[:, :width]
            return np.take_along_axis(products, indices, 1), indices

        return propose, 2.0**-6

    # In a cone wide enough that coarse products still tell rows apart, but in the wrong order.
    queries, database = (1 + 0.1 * data("random", n, 64, n) for n in (300, 800))
    expected = loop_neighbors(queries, database, 1)
    monkeypatch.setattr(evaluation.neighbors.search, "_proposer", coarse)
    similarities, indices = nearest_neighbors(queries, database, 1)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(similarities, expected[0])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_backends_agree_whatever_precision_torch_is_allowed(precision):
    torch = pytest.importorskip("torch")
    before = torch.get_float32_matmul_precision()
    queries, database = data("random", 30, 64, 0), data("random", 800, 64, 1)
    try:
        torch.set_float32_matmul_precision(precision)
        found = nearest_neighbors(queries, database, 5, backend="torch")
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(
        found[1], nearest_neighbors(queries, database, 5, backend="faiss")[1]
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["random", "copies"])
def test_exclude_self_leaves_out_the_own_row_only(backend, kind):
    x = data(kind, 60, 9, 0)
    _, indices = nearest_neighbors(x, x, 6, backend=backend, exclude_self=True)
    for i, row in enumerate(indices):
        others = np.delete(np.arange(60), i)
        expected = others[loop_neighbors(x[i : i + 1], x[others], 6)[1][0]]
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_faiss_where_it_is(there, monkeypatch):
    faiss = pytest.importorskip("faiss")
    used = []
    search = faiss.knn

    def counted(queries, rows, width, **kwargs):
        used.append(width)
        return search(queries, rows, width, **kwargs)

    monkeypatch.setattr(faiss, "knn", counted)
    monkeypatch.setattr(evaluation.neighbors._fast_search, "importable", lambda module: there)
    queries, database = data("random", 4, 8, 0), data("random", 400, 8, 1)
    propose, _ = evaluation.neighbors._fast_search.proposer(database, "auto")
    similarities, _ = propose(queries, 100)
    expected = np.sort(queries @ database.T)[:, -100:]
    np.testing.assert_allclose(np.sort(similarities), expected, atol=1e-4)
    assert used == ([100] if there else [])


@pytest.mark.parametrize("k", [3, 2100])
def test_the_gpu_index_is_used_within_its_limit(k, monkeypatch):
    # No GPU needed: an index that stays where it is stands in for the copy on the device.
    faiss = pytest.importorskip("faiss")
    queries, database = data("random", 4, 8, 0), data("random", 2500, 8, 1)
    expected = nearest_neighbors(queries, database, k, backend="torch")
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(
        faiss, "index_cpu_to_all_gpus", lambda index: moved.append(index) or index, raising=False
    )
    found = nearest_neighbors(queries, database, k, backend="faiss")
    assert len(moved) == 1
    np.testing.assert_array_equal(found[1], expected[1])


def test_cosine_ignores_length_and_zero_rows_are_at_right_angles():
    similarities, indices = nearest_neighbors([[3, 4]], [[0, 0], [30, 40], [-3, -4]], 3)
    np.testing.assert_array_equal(indices, [[1, 0, 2]])
    np.testing.assert_allclose(similarities, [[1, 0, -1]], atol=1e-6)


def test_input_kinds(tmp_path):
    expected = nearest_neighbors([[1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]], 1)[1]
    np.save(tmp_path / "x.npy", np.array([[1.0, 2.0]]))
    for queries in (np.array([[1, 2]], np.uint8), np.load(tmp_path / "x.npy", mmap_mode="r")):
        found = nearest_neighbors(queries, np.array([[1, 2], [2, 1]], np.int64), 1)[1]
        np.testing.assert_array_equal(found, expected)
    empty = nearest_neighbors(np.empty((0, 2)), [[1, 2]], 1)
    assert empty[0].shape == empty[1].shape == (0, 1)


def test_inputs_stay_as_they_were():
    x = data("random", 10, 3, 0)
    before = x.copy()
    nearest_neighbors(x, x, 2, metric="dot")
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5}, "k=5 exceeds the 4 rows of the database"),
        ({"k": 4, "queries": np.eye(4), "exclude_self": True}, "k=4 exceeds the 3 other rows"),
        ({"k": 0}, "k=0, expected an integer of at least 1"),
        ({"k": 1.5}, "k=1.5, expected an integer"),
        ({"k": True}, "k=True, expected an integer"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"metric": "l2"}, "metric='l2', expected one of 'cosine', 'dot'"),
        ({"backend": "gpu"}, "backend='gpu', expected one of"),
        ({"queries": np.ones(4)}, r"queries has shape \(4,\), expected \(rows, features\)"),
        ({"queries": np.ones((2, 3))}, "queries have 3 features and the database 4"),
        ({"queries": np.ones((2, 0))}, "at least one feature"),
        ({"queries": np.array([["a"] * 4])}, "expected real numbers"),
        ({"queries": np.ones((2, 4)), "exclude_self": True}, "exclude_self=True with 2 queries"),
        ({"queries": [[1, 2, 3, 4], [1, 2, np.nan, 4]]}, r"queries holds NaN .* row 1"),
        ({"database": [[1, 2, 3, np.inf]]}, r"database holds NaN or infinity \(first in row 0\)"),
        ({"database": np.full((1, 4), 1e300), "metric": "dot"}, "beyond single precision"),
        (
            {"database": [[1e30] * 4], "queries": [[1e30] * 4], "metric": "dot"},
            "overflow single precision",
        ),
    ],
)
def test_bad_input_is_explained(changes, message):
    arguments = {"queries": np.eye(4)[:2], "database": np.eye(4), "k": 1} | changes
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(**arguments)


def test_nan_is_reported_by_its_row_in_the_whole_array():
    queries = np.ones((30, 2))
    queries[25] = np.nan
    with pytest.raises(ValueError, match="first in row 25"):
        nearest_neighbors(queries, np.eye(2), 1, batch_size=10)


def test_missing_packages_name_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r'pip install "sklearn-excb\[faiss\]"'):
        nearest_neighbors(np.eye(2), np.eye(2), 1, backend="faiss")
    assert nearest_neighbors(np.eye(2), np.eye(2), 1)[1].tolist() == [[0], [1]]  # by torch
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="pip install torch"):
        nearest_neighbors(np.eye(2), np.eye(2), 1, backend="torch")


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, evaluation; heavy = {'torch', 'faiss', 'umap', 'openTSNE', 'matplotlib', "
        "'PIL', 'sklearn_excb'}; found = heavy & set(sys.modules); assert not found, found"
    )
    root = Path(evaluation.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@parametrize_with_checks([KNNClassifier(n_neighbors=5), KNNClassifier(1, backend="torch")])
def test_sklearn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("backend", BACKENDS)
def test_classifier_equals_a_loop_on_digits(digits, backend):
    train, test, y, _ = digits
    names = np.array([f"digit {each}" for each in y])
    model = KNNClassifier(7, 0.2, backend=backend).fit(train, names)
    expected = loop_predict(train[:, :], list(names), test[:60], 7, 0.2)
    np.testing.assert_array_equal(model.predict(test[:60]), expected)


def test_classifier_agrees_with_sklearn_on_digits(digits):
    train, test, y, y_test = digits
    rival = KNeighborsClassifier(
        20,
        metric="cosine",
        algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / 0.07),
    ).fit(train.astype(np.float64), y)
    model = KNNClassifier().fit(train, y)
    np.testing.assert_allclose(
        model.predict_proba(test), rival.predict_proba(test.astype(np.float64)), atol=2e-5
    )
    np.testing.assert_array_equal(model.predict(test), rival.predict(test.astype(np.float64)))
    assert model.score(test, y_test) > 0.97


def test_shares_sum_to_one_and_low_temperatures_do_not_overflow(digits):
    train, test, y, _ = digits
    cold = KNNClassifier(20, temperature=1e-4).fit(train, y)
    shares = cold.predict_proba(test)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_array_equal(cold.predict(test), KNNClassifier(1).fit(train, y).predict(test))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [31, 700, 5000])
@pytest.mark.parametrize("width", [1, 30])
def test_the_fast_search_proposes_the_largest(backend, n, width, monkeypatch):
    # Rows in order of their similarity to the first query: each block beats the one before.
    database = data("random", n, 8, 0)
    database = database[np.argsort(database @ database[0])]
    queries = data("random", 70, 8, 1)
    queries[0] = database[-1]
    expected = np.sort(queries @ database.T, axis=1)[:, : -width - 1 : -1]
    monkeypatch.setattr(evaluation.neighbors._fast_search, "_BLOCK", 70 * 1000)
    propose, rounding = evaluation.neighbors._fast_search.proposer(database, backend)
    similarities, indices = propose(queries, width)
    assert rounding == 0
    order = np.argsort(-similarities, axis=1)
    np.testing.assert_allclose(np.take_along_axis(similarities, order, 1), expected, atol=1e-4)
    np.testing.assert_allclose(
        np.einsum("qd,qwd->qw", queries, database[indices]), similarities, atol=1e-4
    )
    assert all(len(set(row)) == width for row in indices.tolist())


def exact_winners(queries, database, codes, k, temperature):
    """Votes of exact neighbours: what no shortcut may change."""
    similarities, indices = nearest_neighbors(queries, database, k)
    return votes_of(similarities, codes[indices], codes.max() + 1, temperature).argmax(axis=1)


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(BACKENDS),
    st.integers(2, 120),
    st.integers(1, 5),
    st.sampled_from([1e-6, 1e-3, 0.07, 1.0, 100.0]),
    st.integers(0, 2**31),
    st.data(),
)
def test_predictions_are_those_of_exact_neighbours(kind, backend, n, n_classes, t, seed, draw):
    k = draw.draw(st.integers(1, n))
    queries, database = data(kind, 17, 5, seed), data(kind, n, 5, seed + 1)
    codes = np.random.default_rng(seed).integers(0, n_classes, n)
    codes = np.unique(codes, return_inverse=True)[1]
    found = KNNClassifier(k, t, backend=backend).fit(database, codes).predict(queries)
    np.testing.assert_array_equal(found, exact_winners(queries, database, codes, k, t))


@pytest.mark.parametrize("size", [1e-4, 3e-3])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_predictions_stand_whatever_the_fast_search_gets_wrong(size, temperature, monkeypatch):
    # Errors as large as the bound allows, against rows that lie about as close to each other.
    rng = np.random.default_rng(0)

    def wrong(rows, _):
        def propose(queries, width):
            products = (queries @ rows.T).astype(np.float64)
            products += rng.uniform(-size, size, products.shape)
            indices = np.argsort(-products, axis=1)[:, :width]
            return np.take_along_axis(products, indices, 1).astype(np.float32), indices

        return propose, size

    queries, database = (1 + 0.15 * data("random", n, 16, n) for n in (400, 300))
    codes = np.random.default_rng(1).integers(0, 3, 300)
    for k in (1, 2, 7, 40, 299, 300):
        expected = exact_winners(queries, database, codes, k, temperature)
        with monkeypatch.context() as patch:
            patch.setattr(evaluation.neighbors.search, "_proposer", wrong)
            found = KNNClassifier(k, temperature).fit(database, codes).predict(queries)
        np.testing.assert_array_equal(found, expected)


def test_ordinary_predictions_need_no_exact_similarities(digits, monkeypatch):
    exact = []
    search = Index.search
    monkeypatch.setattr(
        Index,
        "search",
        lambda *args, **kwargs: exact.append(len(args[1])) or search(*args, **kwargs),
    )
    train, test, y, _ = digits
    KNNClassifier().fit(train, y).predict(test)
    assert sum(exact) < 0.05 * len(test)


def test_tied_votes_go_to_the_first_class():
    model = KNNClassifier(2).fit([[1, 0], [1, 0], [0, 1]], ["b", "a", "c"])
    assert model.predict([[1, 0]]).tolist() == ["a"]


def test_classifier_predicts_in_blocks(digits, monkeypatch):
    train, test, y, _ = digits
    model = KNNClassifier().fit(train, y)
    expected = model.predict(test)
    monkeypatch.setattr("evaluation.neighbors.voting._BLOCK", 37)
    np.testing.assert_array_equal(model.predict(test), expected)


def test_classifier_works_in_a_grid_search(digits):
    train, _, y, _ = digits
    search = GridSearchCV(KNNClassifier(), {"n_neighbors": [1, 5]}, cv=2).fit(train[:200], y[:200])
    assert search.best_score_ > 0.8
    assert clone(search.best_estimator_).temperature == 0.07


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_neighbors": 4}, "n_neighbors=4 exceeds n_samples=3"),
        ({"n_neighbors": 0}, "n_neighbors=0, expected an integer of at least 1"),
        ({"n_neighbors": 1, "temperature": 0}, "temperature=0, expected a finite number above 0"),
        ({"n_neighbors": 1, "temperature": "cold"}, "temperature='cold'"),
    ],
)
def test_classifier_explains_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        KNNClassifier(**parameters).fit(np.eye(3), [0, 1, 1])


def test_accuracy_equals_a_loop_for_every_k(digits):
    train, test, y, y_test = digits
    test, y_test = test[:50], y_test[:50]
    found = knn_accuracy(train, y, test, y_test, k=(3, 20, 1))
    assert list(found) == [3, 20, 1]
    for k, accuracy in found.items():
        predicted = loop_predict(train, list(y), test, k, 0.07)
        assert accuracy == np.mean(predicted == y_test)
        assert knn_accuracy(train, y, test, y_test, k=k) == accuracy
        assert KNNClassifier(k).fit(train, y).score(test, y_test) == accuracy


def test_several_k_cost_one_search(digits, monkeypatch):
    calls = []
    search = Index.search_roughly
    monkeypatch.setattr(
        Index,
        "search_roughly",
        lambda *args, **kwargs: calls.append(args) or search(*args, **kwargs),
    )
    train, test, y, y_test = digits
    knn_accuracy(train, y, test, y_test, k=[1, 5, 10])
    assert len(calls) == 1


def test_leave_one_out_equals_a_loop(digits):
    x, _, y, _ = digits
    x, y = x[:80], y[:80]
    right = 0
    for i in range(80):
        others = np.delete(np.arange(80), i)
        right += loop_predict(x[others], list(y[others]), x[i : i + 1], 4, 0.07)[0] == y[i]
    assert knn_accuracy(x, y, k=4) == right / 80


def test_classes_unseen_in_training_count_as_wrong():
    assert knn_accuracy(np.eye(2), [0, 1], np.eye(2), [0, 2], k=1) == 0.5


def test_rows_of_skipped_images_are_left_out_and_counted(digits, tmp_path):
    train, test, y, y_test = digits
    gone, gone_test = np.arange(0, 1400, 9), np.arange(3, 300, 11)
    there, there_test = np.delete(np.arange(len(train)), gone), np.delete(np.arange(300), gone_test)
    holes, holes_test = train.copy(), test.copy()
    holes[gone], holes_test[gone_test] = np.nan, np.nan
    np.save(tmp_path / "test.npy", holes_test)
    expected = knn_scores(train[there], y[there], test[there_test], y_test[there_test])
    for given_test in (holes_test, np.load(tmp_path / "test.npy", mmap_mode="r")):
        found = knn_scores(holes, y, given_test, y_test)
        assert found.accuracy == expected.accuracy
        assert found.n_skipped == len(gone) + len(gone_test)
        assert (found.n_train, found.n_test) == (len(there), len(there_test))
        assert knn_accuracy(holes, y, given_test, y_test, k=20) == expected.accuracy[20]
    alone = knn_scores(holes, y, k=5)
    assert alone.accuracy == knn_scores(train[there], y[there], k=5).accuracy
    assert (alone.n_test, alone.n_skipped) == (len(there), len(gone))


def test_a_row_partly_nan_is_an_error_that_names_it():
    train, test = np.eye(6), np.eye(6)
    test[1] = np.nan
    test[4, 2] = np.nan
    with pytest.raises(ValueError, match=r"test holds NaN or infinity \(first in row 4\)"):
        knn_scores(train, np.arange(6), test, np.arange(6), k=1)


def test_scores_count_what_they_rest_on(digits):
    train, test, y, y_test = digits
    few = y < 8
    found = knn_scores(train[few], y[few], test, y_test)
    assert list(found.accuracy) == [10, 20, 100, 200]
    assert found.n_unseen == (y_test >= 8).sum()
    assert found.n_classes == 8
    assert (found.n_train, found.n_test, found.n_skipped) == (few.sum(), 300, 0)
    assert found.accuracy[10] < 1 - found.n_unseen / 300 + 1e-9
    # Alone of its class, an image has no neighbour that could speak for it.
    assert knn_scores(np.eye(3), ["a", "a", "b"], k=1).n_unseen == 1


def test_numbers_of_neighbours_that_do_not_fit():
    x, y = data("random", 101, 4, 0), np.arange(101) % 2
    assert list(knn_scores(x, y).accuracy) == [10, 20, 100]
    assert list(knn_scores(x, y, x[:3], y[:3]).accuracy) == [10, 20, 100]
    assert list(knn_scores(x[:100], y[:100]).accuracy) == [10, 20]
    assert list(knn_scores(x, y, k=[3, 3, 2]).accuracy) == [3, 2]
    with pytest.raises(ValueError, match="k=200 exceeds the 100 other rows"):
        knn_scores(x, y, k=(10, 20, 100, 200))
    with pytest.raises(ValueError, match=r"There are 9 other rows .* expected at least 10"):
        knn_scores(x[:10], y[:10])


def test_one_class_only():
    x = data("random", 30, 4, 0)
    scores = knn_scores(x, np.zeros(30, int), x, np.arange(30) % 3)
    assert set(scores.accuracy.values()) == {1 / 3}
    assert (scores.n_classes, scores.n_unseen) == (1, 20)
    assert knn_scores(x, ["cat"] * 30).accuracy == {10: 1.0, 20: 1.0}


def test_queries_are_read_in_batches(digits, monkeypatch):
    train, test, y, y_test = digits
    whole = knn_scores(train, y, test, y_test)
    alone = knn_scores(train, y)
    monkeypatch.setattr("evaluation.neighbors.voting.TOGETHER", 7)
    assert knn_scores(train, y, test, y_test) == whole
    assert knn_scores(train, y) == alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, "k=3 exceeds the 2 rows"),
        ({"train": np.full((2, 2), np.nan)}, "All 2 rows of train are NaN"),
        ({"test": np.full((2, 2), np.nan)}, "All 2 rows of test are NaN"),
        ({"y_train": [np.nan, np.nan]}, "All 2 classes in y_train are None or NaN"),
        ({"test": np.eye(3)[:2]}, "train has 2 features and test 3"),
        ({"k": ()}, "k is an empty sequence"),
        ({"k": (1, 0)}, "k=0, expected an integer"),
        ({"temperature": -1}, "temperature=-1"),
        ({"y_train": [0]}, "train has 2 rows and y_train has 1"),
        ({"y_test": [0]}, "test has 2 rows and y_test has 1"),
        ({"y_test": None}, "test came without y_test"),
        ({"test": None}, "y_test came without test"),
        ({"y_test": ["a", "b"]}, "expected classes named the same way"),
        ({"test": np.empty((0, 2)), "y_test": []}, "y_test is empty"),
    ],
)
def test_accuracy_explains_bad_input(changes, message):
    arguments = {
        "train": np.eye(2),
        "y_train": [0, 1],
        "test": np.eye(2),
        "y_test": [0, 1],
        "k": 1,
    } | changes
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**arguments)
