"""Views of files: where they are made, what makes them, and what memory they lie in."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sklearn_excb.data import image_files
from sklearn_excb.data.image_files import EncodedPicture
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.sources import ArrayImages, ItemImages
from sklearn_excb.exceptions import ImageError
from sklearn_excb.runtime.philox import permutation
from sklearn_excb.runtime.threads import finished, reader_threads
from sklearn_excb.views import augmentation
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.reading import n_ahead
from sklearn_excb.views.view_maker import Drawn, begin_crops, begin_views, finish_crops

RECIPE = ViewRecipe(
    64, 32, 2, 3, (0.5, 0.3), 0.1, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), flip=0.5
)
RNG = np.random.default_rng(0)
CPU = torch.device("cpu")


def photo(height, width):
    coarse = Image.fromarray(RNG.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


PHOTOS = [np.asarray(photo(100 + i, 150 - i)) for i in range(24)]
DEEP = [photo.astype(np.uint16) * 257 for photo in PHOTOS]  # 16 bits
MIXED = [DEEP[i] if i % 5 == 0 else photo for i, photo in enumerate(PHOTOS)]


def batches_of(source, *, n_jobs=1, n_ahead=0, recipe=RECIPE, n_epochs=2):
    return ViewBatches(source, recipe, 10, n_epochs, 0, n_jobs, CPU, n_ahead)


def kept(batches):
    """Batches with tensors of their own, for those of a batch are written to again."""
    return [[group.clone() for group in batch.groups] for batch in batches]


@pytest.fixture
def without_numba(monkeypatch):
    monkeypatch.setattr(augmentation, "compiled_loops", lambda recipe: None)


@pytest.fixture
def two_torch_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def assert_same(found, expected, *, atol=0.0):
    for one, other in zip(found, expected, strict=True):
        for group, expected_group in zip(one, other, strict=True):
            torch.testing.assert_close(group, expected_group, rtol=0, atol=atol)


@pytest.mark.parametrize("n_jobs", [1, 3])
@pytest.mark.parametrize("n_ahead", [0, 2])
def test_threads_and_batches_ahead_change_nothing(n_jobs, n_ahead):
    source = open_source(MIXED)
    assert_same(kept(batches_of(source, n_jobs=n_jobs, n_ahead=n_ahead)), kept(batches_of(source)))


def test_further_batches_are_begun_while_one_is_used():
    begun = []

    def begin(number):
        begun.append(number)
        return lambda: number

    ahead = finished(map(begin, range(5)), 2)
    assert next(ahead) == 0
    assert begun == [0, 1, 2]
    assert list(ahead) == [1, 2, 3, 4]


@pytest.mark.usefixtures("without_numba", "two_torch_threads")
def test_threads_change_nothing_in_large_views_without_numba():
    recipe = replace(RECIPE, global_size=224, local_size=96)
    source = open_source(PHOTOS)
    one, three = (kept(batches_of(source, n_jobs=n, recipe=recipe, n_epochs=1)) for n in (1, 3))
    assert_same(one, three)


def test_threads_open_images_of_later_batches_meanwhile():
    opened, later = [], threading.Event()
    order = permutation(0, 1, 100)

    def open_item(item):
        opened.append(item)
        if item in order[10:20]:
            later.set()
        return PHOTOS[item % len(PHOTOS)]

    source = ItemImages(range(100), open_item)
    opened.clear()
    later.clear()
    batches = iter(batches_of(source, n_jobs=1, n_ahead=2, n_epochs=1))
    next(batches)
    assert later.wait(30)  # nobody has asked for the second batch
    batches.close()
    assert set(order[:10]) <= set(opened) <= set(order[:30])


def test_ahead_is_read_what_threads_may_read_and_only_for_an_accelerator():
    cuda, files_, own = torch.device("cuda"), open_source(PHOTOS), ItemImages(PHOTOS, lambda x: x)
    own.reads_in_parallel = False
    assert n_ahead(files_, 1, cuda) > 0
    assert n_ahead(files_, 4, CPU) == 0
    assert n_ahead(own, 1, cuda) == 0
    assert n_ahead(own, 2, cuda) > 0
    assert n_ahead(ArrayImages(np.zeros((4, 8, 8), np.uint8)), 1, cuda) == 0


@pytest.mark.parametrize("photos", [PHOTOS, DEEP, MIXED], ids=["8 bits", "16 bits", "mixed"])
def test_an_accelerator_gets_the_crops_that_a_cpu_makes_views_of(photos):
    source = open_source(photos)
    memory, of_views = [], []
    with reader_threads(2) as read:
        for epoch in (1, 2):
            rows = permutation(1, epoch, len(photos))[:20]
            drawn = Drawn.of(0, epoch, rows, RECIPE.kinds(0.3), RECIPE)
            crops = begin_crops(source, rows, drawn, memory, read)()
            views = begin_views(source, rows, drawn, of_views, read)()
            expected = torch.uint8 if photos is PHOTOS else torch.float32
            assert {of_kind.dtype for of_kind in crops} == {expected}
            assert_same([finish_crops(crops, drawn)], [views], atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("all_blurred", [False, True])
def test_compiled_loops_do_what_tensors_do(n_channels, dtype, all_blurred, without_numba):
    loops = pytest.importorskip("sklearn_excb.views.compiled_color")
    recipe = replace(RECIPE, mean=(0.4, 0.5, 0.6, 0.7)[:n_channels], std=(0.3,) * n_channels)
    kind = recipe.kinds(0.0)[0]
    blur = (1.0, 1.0) if all_blurred else kind.blur
    drawn = Drawn.of(5, 1, np.arange(200), [replace(kind, blur=blur)], recipe)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 200, 64, 64, n_channels), generator=generator)
    crops = pixels.to(torch.uint8) if dtype == torch.uint8 else pixels / 255
    crops = crops.movedim(-1, 2)
    expected = augmentation.finish_views(crops, drawn.parameters[0], recipe)
    found = torch.full_like(expected, torch.nan)
    augmentation._finish_compiled(loops, crops, drawn.parameters[0], recipe, found)
    difference = (found - expected).abs() * 0.3
    assert difference.max() <= 1 / 255 + 1e-6  # solarised at the threshold by one, not by the other
    assert (difference > 1e-5).float().mean() < 1e-4


def test_views_are_the_same_without_numba(monkeypatch):
    pytest.importorskip("numba")
    source = open_source(PHOTOS)
    found = kept(batches_of(source, n_jobs=2))
    monkeypatch.setattr(augmentation, "compiled_loops", lambda recipe: None)
    for groups, expected in zip(found, kept(batches_of(source)), strict=True):
        for views, tensor_fingerprint in zip(groups, expected, strict=True):
            difference = (views - tensor_fingerprint).abs()
            assert difference.max() > 0  # something else made them
            assert (difference > 1e-4).float().mean() < 1e-4  # at the threshold of solarising
            assert difference.max() < 1 / 255 / 0.2 + 1e-4


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_and_pillow_give_the_same_pixels(
    orientation, subsampling, mode, progressive, monkeypatch
):
    pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(
        photo(133, 201).convert(mode),
        exif=exif,
        subsampling=subsampling,
        progressive=progressive,
        quality=85,
    )
    for at_least in (0, 16, 33, 66, 100):
        fast = np.asarray(EncodedPicture(content).decode(at_least))
        with monkeypatch.context() as patch:
            patch.setattr(image_files, "simplejpeg", None)
            plain = np.asarray(EncodedPicture(content).decode(at_least))
        np.testing.assert_array_equal(fast, plain)


def test_of_damaged_files_pillow_has_the_word():
    simplejpeg = pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(1)
    content = np.frombuffer(jpeg(photo(60, 80)), np.uint8)
    refused_by_one = 0
    for _ in range(200):
        damaged = content.copy()
        damaged[rng.integers(200, len(content), 3)] = rng.integers(0, 256, 3)
        encoded = damaged[: rng.choice([len(content), rng.integers(300, len(content))])].tobytes()
        try:
            expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        except OSError:
            with pytest.raises((OSError, ImageError)):
                EncodedPicture(encoded).decode(0)
            continue
        np.testing.assert_array_equal(np.asarray(EncodedPicture(encoded).decode(0)), expected)
        try:
            simplejpeg.decode_jpeg(encoded)
        except ValueError:
            refused_by_one += 1
    assert refused_by_one > 10
