"""Items in the columns of tables, missing and masked values, byte orders: what they become."""

import base64
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sklearn_excb.data.columns import plain_collection
from sklearn_excb.data.open_source import open_source
from sklearn_excb.exceptions import ImageError
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
    with pytest.raises(TypeError, match=r"np\.stack\(X\['emb'\]\) or X\['blob'\]") as raised:
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


@pytest.mark.parametrize("X", [VECTORS, IMAGES, list(IMAGES)])
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
