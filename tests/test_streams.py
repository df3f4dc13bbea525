"""What can only be iterated, and the other things that an item may be."""

import io

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from sklearn_excb import ExCBEstimator, images
from sklearn_excb.pixels import ImageError
from sklearn_excb.skipping import SkippedImageWarning

IMAGES = list(np.random.default_rng(0).integers(0, 255, (70, 12, 12, 3), dtype=np.uint8))
BROKEN = 66  # in the second part of a stream


def small(**parameters):
    return ExCBEstimator(K=4, epochs=1, batch_size=16, random_state=0, **parameters)


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


FORMS = {
    "an array": lambda array: array,
    "a picture": Image.fromarray,
    "with a label": lambda array: (array, 3),
    "a dict": lambda array: {"label": 3, "image": array},
    "a sample of WebDataset": lambda array: {"__key__": "7", "cls": 3, "png": png(array)},
    "undecoded, of Hugging Face": lambda array: {"image": {"bytes": png(array), "path": None}},
    "bytes": png,
    "an open file": lambda array: io.BytesIO(png(array)),
}


class Stream(IterableDataset):
    """Every item once an iteration."""

    def __init__(self, form, items=IMAGES):
        self.form, self.items = form, items

    def __iter__(self):
        return map(self.form, self.items)


@pytest.fixture(scope="module")
def fitted():
    return small().fit(IMAGES)


def with_a_broken_one():
    return (b"no image" if i == BROKEN else image for i, image in enumerate(IMAGES))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_stream_and_a_list_are_the_same_whatever_the_items(form, fitted):
    of_list = small().fit([form(image) for image in IMAGES])
    of_stream = small().fit(Stream(form))
    np.testing.assert_array_equal(of_list.labels_, fitted.labels_)
    np.testing.assert_array_equal(of_stream.labels_, fitted.labels_)
    np.testing.assert_array_equal(fitted.predict(Stream(form)), fitted.labels_)
    expected = fitted.transform(IMAGES)
    np.testing.assert_allclose(fitted.transform(map(form, IMAGES)), expected, atol=1e-5)


def test_only_a_part_of_a_stream_is_in_memory(fitted):
    asked = []

    def counted():
        for i in range(200):
            asked.append(i)
            yield IMAGES[0]

    out = np.full(200, -7)
    seen_by_then = []
    backbone = fitted._fitted.teacher.backbone
    handle = backbone.register_forward_pre_hook(lambda *_: seen_by_then.append(len(asked)))
    try:
        assert fitted.predict(counted(), out=out) is out
    finally:
        handle.remove()
    assert seen_by_then[0] <= 64
    assert (out == fitted.labels_[0]).all()


@pytest.mark.parametrize(("n_rows", "says"), [(69, "goes on"), (71, "ended after 70")])
def test_out_has_to_take_the_whole_stream(fitted, n_rows, says):
    with pytest.raises(ValueError, match=says):
        fitted.predict(iter(IMAGES), out=np.empty(n_rows, np.int64))


def test_a_broken_item_is_named_or_skipped(fitted):
    with pytest.raises(ImageError, match="64 to 69 of X: Image 2 of 6"):
        fitted.predict(with_a_broken_one())
    excb = small(on_error="skip")
    with pytest.warns(SkippedImageWarning, match="1 of 70"):
        excb.fit(with_a_broken_one())
    assert [skipped.index for skipped in excb.skipped_] == [BROKEN]
    with pytest.warns(SkippedImageWarning):
        labels = excb.predict(with_a_broken_one())
    np.testing.assert_array_equal(labels, excb.labels_)
    assert labels[BROKEN] == -1


@pytest.mark.parametrize(
    ("X", "error", "says"),
    [
        (lambda: iter([]), ValueError, "empty"),
        (lambda: DataLoader(IMAGES), TypeError, "X.dataset"),
        (lambda: {1, 2}, TypeError, "set is not a collection"),
        (lambda: iter([{"label": 3}]), ImageError, r"without an 'image' entry, but with \['label'"),
    ],
)
def test_what_is_no_stream_of_images_says_so(fitted, X, error, says):
    for method in (small().fit, fitted.predict):
        with pytest.raises(error, match=says):
            method(X())


def test_a_stream_that_memory_cannot_keep_ends_with_advice(monkeypatch):
    monkeypatch.setattr(images, "available_memory", lambda device: 0)
    with pytest.raises(ValueError, match=r"full after 64\. Pass what can be indexed"):
        small().fit(iter(IMAGES))
