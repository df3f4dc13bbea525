"""Every function takes what people have: any kind of tensor, any unit, classes with gaps."""

import datetime
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import (
    ContactSheetDisplay,
    KNNClassifier,
    LinearProbe,
    cluster_occupancy,
    clustering_scores,
    knn_scores,
    label_free_scores,
    linear_probe_scores,
    near_duplicates,
    nearest_neighbors,
    project,
    review_clusters,
    stability,
    write_report,
)

N = 40
rng = np.random.default_rng(0)
ROWS = rng.integers(-8, 9, (N, 6)).astype(np.float32)  # exact in every float type
LABELS = np.arange(N) % 4
CLASSES = np.array(["cat", "dog", "owl"])[np.arange(N) % 3]

OF_ROWS = {
    "nearest_neighbors": lambda x: nearest_neighbors(x, x, 3),
    "knn_scores": lambda x: knn_scores(x, CLASSES, x, CLASSES, k=3),
    "linear_probe_scores": lambda x: linear_probe_scores(x, CLASSES, x, CLASSES),
    "KNNClassifier": lambda x: KNNClassifier(3).fit(x, CLASSES).predict(x),
    "LinearProbe": lambda x: LinearProbe().fit(x, CLASSES).predict(x),
    "review_clusters": lambda x: review_clusters(x, LABELS).outlyingness,
    "near_duplicates": lambda x: near_duplicates(x, threshold=0.8),
    "label_free_scores": lambda x: label_free_scores(x, LABELS, silhouette=False),
    "project": lambda x: project(x, random_state=0).coordinates,
}
KINDS = {
    "bfloat16": lambda x: torch.tensor(x).bfloat16(),
    "float16": lambda x: torch.tensor(x).half(),
    "float64": lambda x: torch.tensor(x).double(),
    "needs a gradient": lambda x: torch.tensor(x).requires_grad_(),
    "a parameter in bfloat16": lambda x: torch.nn.Parameter(torch.tensor(x).bfloat16()),
    "sparse": lambda x: torch.tensor(x).to_sparse(),
    "negative bit": lambda x: torch._neg_view(torch.tensor(-x)),
    "list of tensors": lambda x: [*torch.tensor(x).bfloat16()],
    "nothing masked": lambda x: np.ma.array(x),
    "integers": lambda x: x.astype(np.int64),
    "a data frame": pd.DataFrame,
    "a column of vectors": lambda x: pd.Series([*x]),
    "a table with a column of vectors": lambda x: pd.DataFrame({"a": [*x]}),
}


def same(one, other):
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return repr(one) == repr(other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", OF_ROWS)
def test_rows_of_any_kind(function, kind):
    use = OF_ROWS[function]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns' names
        assert same(use(KINDS[kind](ROWS)), use(ROWS))


def test_sparse_matrices_become_dense():
    for function in ("knn_scores", "near_duplicates"):
        assert same(OF_ROWS[function](scipy.sparse.csr_matrix(ROWS)), OF_ROWS[function](ROWS))


@pytest.mark.parametrize("kind", ["int32 tensor", "list of tensors", "uint8 array"])
def test_labels_of_any_kind(kind):
    labels = {
        "int32 tensor": torch.tensor(LABELS).int(),
        "list of tensors": [*torch.tensor(LABELS)],
        "uint8 array": LABELS.astype(np.uint8),
    }[kind]
    assert clustering_scores(labels, labels) == clustering_scores(LABELS, LABELS)
    assert repr(cluster_occupancy(labels, 4)) == repr(cluster_occupancy(LABELS, 4))
    assert stability(labels, labels) == 1
    assert knn_scores(ROWS, labels, k=3) == knn_scores(ROWS, LABELS, k=3)


def with_gaps(gap, values=CLASSES, dtype=object):
    y = np.empty(N, dtype)
    y[:] = [gap if i % 5 == 0 else values[i] for i in range(N)]
    return y


DAYS = [datetime.date(2026, 1, 1 + i % 3) for i in range(N)]
GAPS = {
    "None": with_gaps(None),
    "NaN among text": with_gaps(np.nan),
    "NaN among numbers": with_gaps(np.nan, LABELS % 3, np.float64),
    "None among numbers": with_gaps(None, LABELS % 3),
    "None among booleans": with_gaps(None, LABELS % 2 == 0),
    "pandas' NA": pd.Series(with_gaps(None), dtype="string"),
    "pandas' Int64": pd.Series(with_gaps(None, LABELS % 3), dtype="Int64"),
    "categories": pd.Series(with_gaps(None), dtype="category"),
    "NaT": pd.to_datetime(pd.Series(with_gaps(None, DAYS))),
    "days": with_gaps(None, DAYS),
    "a list": with_gaps(None).tolist(),
    "masked": np.ma.array(LABELS % 3, mask=np.arange(N) % 5 == 0),
    "tensor of NaN": torch.tensor(with_gaps(np.nan, LABELS % 3, np.float64)).bfloat16(),
}


@pytest.mark.parametrize("gaps", GAPS)
def test_missing_classes_are_left_out_and_counted(gaps, tmp_path):
    y = GAPS[gaps]
    there = np.arange(N) % 5 != 0
    of = LABELS % 2 if gaps == "None among booleans" else np.arange(N) % 3
    if "numbers" in gaps or gaps in ("pandas' Int64", "masked", "tensor of NaN"):
        of = LABELS % 3
    expected, rows = of[there], ROWS[there]
    found = clustering_scores(y, LABELS)
    assert (found.n_samples, found.n_skipped) == (32, 8)
    assert found.nmi == pytest.approx(clustering_scores(expected, LABELS[there]).nmi)
    found = knn_scores(ROWS, y, k=3)
    assert (found.n_train, found.n_skipped) == (32, 8)
    assert found.accuracy == knn_scores(rows, expected, k=3).accuracy
    assert knn_scores(ROWS, y, ROWS, y, k=3).n_skipped == 16
    if gaps not in ("NaT", "days"):  # scikit-learn's classifiers have no days
        found = linear_probe_scores(ROWS, y, ROWS, y)
        assert (found.n_train, found.n_skipped_train, found.n_skipped_test) == (32, 8, 8)
    assert len(project(ROWS, max_samples=20, y=y, random_state=0).indices) == 20
    summary = write_report(tmp_path / "a.html", embeddings=ROWS, labels=LABELS, y=y)
    page = summary.path.read_text()
    assert "8 have no class" in page
    assert f"<td>{clustering_scores(y, LABELS).nmi:.3f}</td>" in page


def test_classes_that_cannot_be_sorted_are_explained():
    y = with_gaps(None)
    y[1] = 7
    for use in (
        lambda: knn_scores(ROWS, y, k=3),
        lambda: clustering_scores(y, LABELS),
        lambda: project(ROWS, y=y),
    ):
        with pytest.raises(ValueError, match=r"several types \(int, str\)"):
            use()


@settings(deadline=None, max_examples=30)
@given(st.integers(-1040, 1000), st.booleans())
def test_units_do_not_matter(exponent, each_by_itself):
    """Cosines do not depend on the length of rows, over all of float64."""
    exponents = np.full((N, 1), exponent)
    if each_by_itself:
        exponents = np.where(np.arange(N)[:, None] % 2, exponents, -exponents.clip(-1000))
    x = np.ldexp(ROWS.astype(np.float64), exponents)
    assert same(nearest_neighbors(x, x, 3), nearest_neighbors(ROWS, ROWS, 3))
    for function in ("knn_scores", "near_duplicates", "label_free_scores"):
        assert same(OF_ROWS[function](x), OF_ROWS[function](ROWS))
    np.testing.assert_allclose(
        review_clusters(x, LABELS).typicality, review_clusters(ROWS, LABELS).typicality, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[1.0, 2.0], [1.0, 2.0, 3.0]] * 20, "rows differ in length"),
        ([None, *ROWS[1:]], "rows differ in length, or some are None"),
        (pd.Series([None, *ROWS[1:]]), "rows differ in length, or some are None"),
        (torch.empty(40, 6, device="meta"), 'device "meta"'),
        ([torch.empty(6, device="meta")] * 40, 'device "meta"'),
        (np.ma.masked_equal(ROWS, ROWS[3, 2]), "NaN"),
        (list(np.ma.masked_equal(ROWS, ROWS[3, 2])), "NaN"),
        (ROWS + 1j, "(?i)complex"),
        (torch.tensor(ROWS + 1j).conj(), "(?i)complex"),
    ],
)
@pytest.mark.parametrize("function", OF_ROWS)
def test_rows_that_are_no_rows_are_explained(function, X, message):
    with pytest.raises(ValueError, match=message):
        OF_ROWS[function](X)


@pytest.mark.parametrize("X", ["photos", Path("photos"), ["a.png", "b.png"]])
@pytest.mark.parametrize("function", ["near_duplicates", "project", "nearest_neighbors"])
def test_paths_in_the_place_of_embeddings_are_explained(function, X):
    with pytest.raises(ValueError, match=r"path, .*Embed the images first"):
        OF_ROWS[function](X)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("photos", "images is of type str, expected a sequence of images"),
        (Path("photos"), "expected a sequence of images"),
        (iter([]), "expected a sequence of images"),
        (["a.png", "b.png"], "Image 0 is a str, expected an array or an opened picture"),
        ([b"a", b"b"], "Image 0 is a bytes"),
    ],
)
def test_paths_in_the_place_of_images_are_explained(images, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        near_duplicates(np.ones((2, 2)), images)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "a.html", embeddings=np.ones((2, 2)), labels=[0, 1], images=images)


HUGE = 10**12
OF_COUNTS = {
    "cluster_occupancy": lambda n: cluster_occupancy(LABELS, n),
    "review_clusters": lambda n: review_clusters(ROWS, LABELS, n_clusters=n),
    "label_free_scores": lambda n: label_free_scores(ROWS, LABELS, n_neighbors=n),
    "nearest_neighbors": lambda n: nearest_neighbors(ROWS, ROWS, n),
    "knn_scores": lambda n: knn_scores(ROWS, CLASSES, ROWS, CLASSES, k=n),
    "KNNClassifier": lambda n: KNNClassifier(n).fit(ROWS, CLASSES),
    "KNNClassifier, later": lambda n: (
        KNNClassifier(3).fit(ROWS, CLASSES).set_params(n_neighbors=n).predict(ROWS)
    ),
    "labels": lambda n: review_clusters(ROWS, [0, n] * (N // 2)),
}
AS_MANY_AS_THERE_ARE = {
    "contact sheet": lambda n: ContactSheetDisplay.from_predictions(
        np.zeros((N, 8, 8)), LABELS, n_images=n, n_clusters=n
    ),
    "review_clusters": lambda n: review_clusters(ROWS, LABELS, max_samples=n, n_neighbors=n),
    "near_duplicates": lambda n: near_duplicates(ROWS, n_neighbors=n),
}


@pytest.mark.parametrize("use", OF_COUNTS.values(), ids=OF_COUNTS)
def test_huge_counts_are_refused_with_their_bound(use):
    with pytest.raises(ValueError, match=rf"{HUGE}.*(expected at most|exceeds|Lower)"):
        use(HUGE)


@pytest.mark.parametrize("use", AS_MANY_AS_THERE_ARE.values(), ids=AS_MANY_AS_THERE_ARE)
def test_huge_limits_are_no_limits(use):
    use(HUGE)


def test_counts_of_numpy_are_counts():
    k = np.int64(3)
    found = KNNClassifier(k).fit(ROWS, CLASSES)
    np.testing.assert_array_equal(found.predict(ROWS).shape, (N,))
    assert found.predict_proba(ROWS).shape == (N, 3)
    assert cluster_occupancy(LABELS, np.int64(4)).n_clusters == 4


def test_dates_are_classes():
    dates = np.array(["2020-01-01", "2021-01-01"], "M8[D]")[np.arange(N) % 2]
    assert knn_scores(ROWS, dates, ROWS, dates, k=3) == knn_scores(
        ROWS, dates.astype(str), ROWS, dates.astype(str), k=3
    )
    with pytest.raises(ValueError, match="expected numbers or names of classes"):
        clustering_scores(np.ones(N, complex), LABELS)


def test_the_only_column_of_a_table_holds_the_classes():
    column = pd.DataFrame({"class": CLASSES})
    assert clustering_scores(column, LABELS) == clustering_scores(CLASSES, LABELS)
    assert cluster_occupancy(LABELS[:, None], 4).n_clusters == 4
    with pytest.raises(ValueError, match="take their argmax"):
        clustering_scores(np.eye(4)[LABELS], LABELS)


@pytest.mark.parametrize("random_state", [-1, 2**32, np.random.default_rng(0)])
@pytest.mark.parametrize(
    "use",
    [
        lambda state: project(ROWS, random_state=state),
        lambda state: review_clusters(ROWS, LABELS, max_samples=20, random_state=state),
    ],
)
def test_seeds_that_cannot_be_used_are_named(use, random_state):
    with pytest.raises(ValueError, match=r"random_state=.*, expected None, an integer from 0"):
        use(random_state)


def test_reports_have_any_name_that_the_system_can_write(tmp_path):
    code = (
        "import sys, evaluation as e, numpy as np\n"
        "e.write_report(sys.argv[1], embeddings=np.eye(8), labels=np.arange(8) % 4)\n"
    )
    ascii_names = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = tmp_path / "Größe.html"
    subprocess.run([sys.executable, "-c", code, path], env=ascii_names, check=True)
    assert path.exists()
