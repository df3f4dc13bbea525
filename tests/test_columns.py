"""Items in the columns of tables, missing and masked values, byte orders: what they become."""

import base64
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image

from evaluation import near_duplicates
from sklearn_excb.data.columns import plain_collection
from sklearn_excb.data.image_names import short_names
from sklearn_excb.data.open_source import open_source
from sklearn_excb.exceptions import ImageError, SkippedImageWarning
from tests.small_runs import OF_ROWS, assert_same_bits, small

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
VECTORS = np.random.default_rng(1).normal(size=(40, 5)).astype(np.float32)


class Frame:
    """What polars and others have in common: names of columns, and columns by their name."""

    def __init__(self, columns):
        self.columns, self._columns = list(columns), columns

    def __len__(self):
        return len(self._columns[self.columns[0]])

    def __getitem__(self, name):
        return self._columns[name]


def arrow(columns):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table({name: _plain(values) for name, values in columns.items()})


def _plain(values):
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


class LazyFrame:
    """A table of polars that is not computed yet."""

    columns = ("a",)

    def collect(self):
        raise AssertionError

    collect_schema = collect


class Vectors:
    """A data set of vectors, such as a column of Hugging Face."""

    def __len__(self):
        return len(VECTORS)

    def __getitem__(self, index):
        return VECTORS[index]


TABLES = {
    "pandas": lambda columns: pd.DataFrame({n: pd.Series(list(of)) for n, of in columns.items()}),
    "arrow": arrow,
    "a frame": lambda columns: Frame({n: list(of) for n, of in columns.items()}),
}


def items(kind, tmp_path):
    """Eight items of a kind, which are the images."""
    pictures = [Image.fromarray(image) for image in IMAGES]
    if kind == "pictures":
        return pictures
    if kind == "arrays":
        return list(IMAGES)
    contents = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        contents.append(file.getvalue())
    if kind == "bytes":
        return contents
    if kind == "dicts":
        return [{"bytes": content, "path": None} for content in contents]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.png").write_bytes(content)
    return [str(tmp_path / f"{i}.png") for i in range(len(contents))]


# Arrow holds no objects
@pytest.mark.parametrize(
    ("table", "kind"),
    [(table, kind) for table in TABLES for kind in ("paths", "bytes", "dicts")]
    + [(table, kind) for table in ("pandas", "a frame") for kind in ("pictures", "arrays")],
)
def test_the_only_column_of_a_table_is_taken(tmp_path, kind, table):
    X = TABLES[table]({"picture": items(kind, tmp_path)})
    source = open_source(X)
    for i, image in enumerate(IMAGES):
        np.testing.assert_array_equal(source.load_one(i).permute(1, 2, 0).numpy(), image)


@pytest.mark.parametrize("kind", ["paths", "bytes", "pictures"])
def test_arrays_of_one_column_and_series(tmp_path, kind):
    held = np.empty(8, dtype=object)
    held[:] = items(kind, tmp_path)
    forms = [held, held[:, None], pd.Series(held), pd.DataFrame({"a": held}).to_numpy()]
    for X in [*forms, held[:, None].astype(str)] if kind == "paths" else forms:
        np.testing.assert_array_equal(
            open_source(X).load_one(3).permute(1, 2, 0).numpy(), IMAGES[3]
        )


@pytest.mark.parametrize("table", TABLES)
def test_with_more_columns_the_error_says_which_to_pass(tmp_path, table):
    columns = {"id": list(range(8)), "path": items("paths", tmp_path)}
    with pytest.raises(TypeError, match=r"X\['path'\] holds text. Pass one of them: X\['path'\]"):
        small().fit(TABLES[table](columns))
    columns = {"emb": list(VECTORS[:8]), "blob": items("bytes", tmp_path)}
    with pytest.raises(TypeError, match=r"Pass one of them: X\['emb'\] or X\['blob'\]") as raised:
        small().fit(TABLES[table](columns))
    assert len(str(raised.value)) < 400
    assert "PNG" not in str(raised.value)
    both = np.array(items("paths", tmp_path) * 2, dtype=object).reshape(8, 2)
    with pytest.raises(TypeError, match=r"Pass one of them: X\[:, 0\] or X\[:, 1\]"):
        small().fit(both)


def vectors_in(form):
    column = {"emb": list(VECTORS)}
    if form in TABLES:
        return TABLES[form](column)
    held = np.empty(len(VECTORS), dtype=object)
    held[:] = column["emb"]
    return {"series": pd.Series(column["emb"]), "objects": held, "(n, 1)": held[:, None]}[form]


@pytest.mark.parametrize("form", [*TABLES, "series", "objects", "(n, 1)"])
def test_vectors_in_a_column_are_rows(form):
    np.testing.assert_allclose(plain_collection(vectors_in(form)), VECTORS)
    fitted = small(**OF_ROWS, epochs=0).fit(vectors_in(form))
    np.testing.assert_array_equal(fitted.labels_, small(**OF_ROWS, epochs=0).fit(VECTORS).labels_)
    assert fitted.transform(vectors_in(form)).shape == (40, 256)


def test_vectors_of_several_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths, from 2 to 3"):
        plain_collection(pd.Series([np.zeros(2), np.zeros(3)]))


@pytest.mark.parametrize(
    "X",
    [
        pd.DataFrame({"a": [1.0, 2], "b": [3, 4]}),
        pd.DataFrame({"a": [1.0, None]}),
        pd.Series([1.0, 2.0]),
        np.array([[1, 2.0]], dtype=object),
        torch.zeros(4),
        [VECTORS],
        "photos",
    ],
)
def test_what_holds_numbers_is_left_as_it_is(X):
    assert plain_collection(X) is X


def test_bytes_of_one_width_are_refused():
    with pytest.raises(TypeError, match="loses zeros at their ends") as raised:
        small().fit(np.array([b"\x89PNG\0"] * 8))
    assert "PNG" not in str(raised.value)


@pytest.mark.parametrize("form", [lambda x: x, lambda x: {"image": x}, lambda x: (x, 3)])
@pytest.mark.parametrize("place", [0, 5])
def test_none_is_a_skipped_image(form, place):
    X = [form(image) for image in IMAGES]
    X[place] = form(None)
    with pytest.raises(ImageError, match=rf"Image {place} of 8: .*None.* on_error=.skip"):
        small().fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = small(on_error="skip", epochs=0).fit(X)
    assert [skipped.index for skipped in fitted.skipped_] == [place]
    assert "None" in fitted.skipped_[0].reason
    assert np.flatnonzero(fitted.labels_ < 0).tolist() == [place]


@pytest.fixture(scope="module")
def fitted_on():
    return small(**OF_ROWS, epochs=0).fit(VECTORS), small(epochs=0).fit(IMAGES)


MISSING = [None, np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("kind", ["paths", "pictures", "bytes", "arrays"])
def test_missing_values_among_images_are_told_or_skipped(tmp_path, kind, missing):
    X = items(kind, tmp_path)
    for place in (0, 5):
        holed = [*X[:place], missing, *X[place + 1 :]]
        with pytest.raises(ImageError, match=rf"Image {place} of 8: .*missing.*1 in all.*dropna"):
            open_source(holed)
        series = pd.Series(holed, dtype=object)
        for skipping in (holed, series, series.to_frame(), [(item, 1) for item in holed]):
            source = open_source(skipping, on_error="skip")
            for i, image in enumerate(IMAGES):
                loaded = source.load_one(i).permute(1, 2, 0).numpy()
                assert i == place or np.array_equal(loaded, image)
            found = [(skipped.index, skipped.name) for skipped in source.skipped()]
            assert found == [(place, "")]
            assert source.n_channels == 3


def test_a_fit_is_that_of_the_paths_without_the_missing_ones(tmp_path):
    paths = []
    for i, image in enumerate(IMAGES):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image[..., 0]).save(paths[-1])
    with pytest.warns(SkippedImageWarning, match="1 of 9 images .* 3: nan is a missing value"):
        fitted = small(on_error="skip", epochs=1).fit([*paths[:3], np.nan, *paths[3:]])
    clean = small(epochs=1).fit(paths)
    np.testing.assert_array_equal(np.delete(fitted.labels_, 3), clean.labels_)
    np.testing.assert_array_equal(fitted.cluster_centers_, clean.cluster_centers_)
    assert fitted.sample_names_.tolist() == [*paths[:3], "", *paths[3:]]
    assert short_names(fitted.sample_names_.tolist())[2:5] == ["2.png", "", "3.png"]


def replaced(values, place, by):
    return [*values[:place], by, *values[place + 1 :]]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([["a.png"], ["b.png"]] * 20, r"a list is not an image.*row\[0\] for row in X"),
        ([[Image.fromarray(image), 1] for image in IMAGES], "a list is not an image"),
        ([["a.png", 1]] * 40, "a list is not an image"),
        (replaced(VECTORS.tolist(), 3, [1.0]), "Row 3 of X has 1 values, but row 0 has 5"),
        ([torch.zeros(2), torch.zeros(3)] * 20, "Row 1 of X has 3 values, but row 0 has 2"),
        *((replaced([*VECTORS], 3, no), "Row 3 of X is .*, a missing value") for no in MISSING),
        (replaced([*VECTORS], 0, None), "Row 0 of X is None, a missing value"),
        (pd.Series(replaced([*VECTORS], 3, None)), "Row 3 of X is None, a missing value"),
        (scipy.sparse.csr_matrix(VECTORS), r"Use '\.toarray\(\)'"),
        (torch.tensor(VECTORS).to_sparse(), r"sparse\. Pass X\.to_dense"),
        (torch.tensor(IMAGES).to_sparse(), r"sparse\. Pass X\.to_dense"),
        ([torch.tensor(image).to_sparse() for image in IMAGES], r"sparse\. Pass X\.to_dense"),
        (torch.empty(40, 5, device="meta"), 'device "meta"'),
        ([torch.empty(3, 9, 9, device="meta")] * 40, 'device "meta"'),
        (lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]), "nested"),
        (torch.tensor(VECTORS + 1j).conj(), "Complex data not supported"),
        (torch.tensor(IMAGES + 1j).conj(), "Pixels of type complex128 cannot be used"),
        ([torch.tensor(IMAGES[0] + 1j).conj()] * 40, "Pixels of type complex128 cannot be used"),
        (np.zeros(40, [("a", "f4"), ("b", "f4")]), "named fields"),
        ([[[1, 2], [3]]] * 8, "rows differ in length"),
        ([pd.DataFrame({"image": ["a"]})] * 8, "an item of type DataFrame is not an image"),
        ([b"photos/a.png"] * 8, r"a path as bytes.*os\.fsdecode"),
        (b"photos/a.png", r"a path as bytes.*os\.fsdecode"),
        (LazyFrame(), r"LazyFrame.*Pass X\.collect"),
        ({"train": IMAGES}, r"is a dict.*X\['train'\]"),
        (Vectors(), r"Pass vectors as one array: np\.stack"),
    ],
)
def test_input_of_the_wrong_kind_is_explained(X, message, on_error, fitted_on):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of prototypes
        X = X() if callable(X) else X
        with pytest.raises((ValueError, TypeError), match=message):
            small(on_error=on_error, image_size="auto").fit(X)
        for fitted in fitted_on if on_error == "raise" else ():
            with pytest.raises((ValueError, TypeError), match=f"{message}|fitted on"):
                fitted.transform(X)


REAL = ["paths", "bytes", "dicts", "pictures", "image feature", "gaps"]


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.filterwarnings("ignore")
def test_columns_of_polars_and_hugging_face_hold_images(tmp_path, kind):
    polars, datasets = pytest.importorskip("polars"), pytest.importorskip("datasets")
    held = items(kind if kind in REAL[:4] else "paths", tmp_path)
    if kind == "gaps":
        held[3] = None
    dtype = {"dtype": polars.Object} if kind == "pictures" else {}
    series = polars.Series(held, **dtype)
    feature = {"image": datasets.Image(decode=kind != "bytes")}
    hub = datasets.Dataset.from_dict({"image": held}, features=datasets.Features(feature))
    forms = [series, series.to_frame("picture"), hub, hub["image"], hub.to_iterable_dataset()]
    for X in forms if kind != "pictures" else [*forms, hub.with_format("numpy")]:
        source = open_source(X, 3, "skip")
        for i, image in enumerate(IMAGES):
            loaded = source.load_one(i).permute(1, 2, 0).numpy()
            assert (kind == "gaps" and i == 3) or np.array_equal(loaded, image)
        assert [skipped.index for skipped in source.skipped()] == ([3] if kind == "gaps" else [])
    with pytest.raises(TypeError, match=r"Pass one of its values, X\['train'\]"):
        open_source(datasets.DatasetDict({"train": hub}))


def test_arrays_and_vectors_of_hugging_face():
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Array3D((12, 12, 3), "uint8")}
    hub = datasets.Dataset.from_dict(
        {"image": IMAGES.tolist()}, features=datasets.Features(features)
    )
    source = open_source(hub.with_format("numpy", dtype="uint8"))
    np.testing.assert_array_equal(source.load_one(3).permute(1, 2, 0).numpy(), IMAGES[3])
    column = datasets.Dataset.from_dict({"a": VECTORS.tolist()})["a"]
    np.testing.assert_allclose(np.array(column), VECTORS)
    with pytest.raises(ImageError, match=r"Pass vectors as one array: np\.stack"):
        open_source(column)


@pytest.mark.parametrize("form", ["list", "array"])
def test_columns_of_polars_hold_vectors(form):
    polars = pytest.importorskip("polars")
    dtype = polars.Array(polars.Float32, 5) if form == "array" else polars.List(polars.Float32)
    series = polars.Series("a", VECTORS.tolist(), dtype=dtype)
    for X in (series, series.to_frame()):
        np.testing.assert_array_equal(plain_collection(X), VECTORS)
        assert repr(near_duplicates(X)) == repr(near_duplicates(VECTORS))
    with pytest.raises(TypeError, match=r"Pass X\.collect"):
        small().fit(series.to_frame().lazy())


def test_tensors_of_arrow_keep_their_shape():
    pyarrow = pytest.importorskip("pyarrow")
    for values in (IMAGES, VECTORS):
        tensors = pyarrow.FixedShapeTensorArray.from_numpy_ndarray(values)
        for X in (tensors, pyarrow.table({"a": tensors})):
            np.testing.assert_array_equal(plain_collection(X), values)


@pytest.mark.parametrize("X", [VECTORS, IMAGES, list(IMAGES), list(VECTORS)])
def test_masked_values_are_refused_and_not_read(X):
    masked = np.ma.masked_equal(X if isinstance(X, np.ndarray) else X[0], X[0].flat[0])
    whole = np.ma.MaskedArray(X) if isinstance(X, np.ndarray) else list(map(np.ma.MaskedArray, X))
    with pytest.raises(ValueError, match=r"masked.*filled\(value\)"):
        small(image_size="auto").fit(masked if isinstance(X, np.ndarray) else [masked, *X[1:]])
    small(image_size="auto", epochs=0).fit(whole)


@pytest.mark.parametrize("dtype", ["f4", "f8", "u2", "f2"])
@pytest.mark.parametrize("images", [True, False])
def test_a_memory_map_of_the_other_byte_order_gives_the_same_bits(tmp_path, dtype, images):
    values = np.random.default_rng(0).random((40, 12, 12) if images else (40, 5))
    values = (values * 65_535 if dtype == "u2" else values).astype(dtype)
    fits = []
    for order in "<>":
        np.save(tmp_path / f"{order}.npy", values.astype(order + dtype))
        X = np.load(tmp_path / f"{order}.npy", mmap_mode="r")
        fits.append(small(epochs=1, image_size=12 if images else "auto").fit(X))
    assert_same_bits(*fits)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("form", [list, lambda x: [(text, 1) for text in x], pd.Series])
def test_no_message_is_as_long_as_an_image(form, on_error):
    content = base64.b64encode(np.random.default_rng(0).bytes(9000)).decode()
    with pytest.raises((ValueError, OSError)) as raised:
        small(on_error=on_error).fit(form([content] * 8))
    assert len(str(raised.value)) < 2000
