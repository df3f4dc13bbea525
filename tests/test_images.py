"""What users bring: arrays, lists, folders, data sets; and what is refused, with which words."""

import errno
import gzip
import io
import os
import re
import struct
import tarfile
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from evaluation.maps.pictures import as_rgb
from sklearn_excb.data import limits
from sklearn_excb.data.archives import list_members
from sklearn_excb.data.channel_statistics import channel_statistics
from sklearn_excb.data.folders import IMAGE_SUFFIXES, list_images
from sklearn_excb.data.image_files import FORMATS
from sklearn_excb.data.open_source import are_rows, open_source
from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.sources import ArrayImages, typical_shape
from sklearn_excb.data.unusable_images import ignored_with_reasons, warn_unread
from sklearn_excb.exceptions import ImageError, SkippedImageWarning
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.whole_images import whole_images
from tests.hostile import png

GRAY = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)


def folder_of(tmp_path, images, names=None):
    for i, image in enumerate(images):
        path = tmp_path / (names[i] if names else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path


def all_of(source):
    if isinstance(source, ArrayImages):
        return source.load(np.arange(len(source)))
    return [source.load_one(i) for i in range(len(source))]


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "PIL", "data set", "dict"])
def test_the_same_images_in_every_form(kind):
    forms = {
        "array": COLOUR,
        "tensor": torch.from_numpy(COLOUR),
        "list": list(COLOUR),
        "PIL": [Image.fromarray(image) for image in COLOUR],
        "data set": Pairs(COLOUR),
        "dict": Dicts(COLOUR),
    }
    source = open_source(forms[kind])
    assert source.n_channels == 3
    assert typical_shape(source) == (6, 7)
    loaded = all_of(source)
    for image, expected in zip(loaded, COLOUR, strict=True):
        np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), expected)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), 3


class Dicts(Pairs):
    def __getitem__(self, i):
        return {"image": self.images[i], "label": 3}


def test_gray_arrays_have_one_channel():
    source = open_source(GRAY)
    assert source.n_channels == 1
    np.testing.assert_array_equal(all_of(source)[:, 0].numpy(), GRAY)


def test_more_channels_are_kept():
    assert all_of(open_source(np.zeros((2, 8, 8, 5)))).shape == (2, 5, 8, 8)


def test_statistics_of_channels_are_those_of_the_pixels():
    mean, std = channel_statistics(open_source(GRAY))
    assert mean[0] == pytest.approx(GRAY.mean() / 255, rel=1e-5)
    assert std[0] == pytest.approx(GRAY.std() / 255, rel=1e-5)


def test_a_folder_is_searched_through_in_natural_order(tmp_path):
    names = ["b/img10.png", "b/img2.png", "a.PNG", "b/.hidden.png", ".git/x.png", "c/Ünïcode 1.jpg"]
    folder_of(tmp_path, [COLOUR[0]] * len(names), names)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = list_images(tmp_path)
    found = [Path(path).relative_to(tmp_path).as_posix() for path in listing.images]
    others = [Path(path).relative_to(tmp_path).as_posix() for path in listing.ignored]
    assert others == ["notes.txt", ".git", "b/.hidden.png"]
    assert found == ["a.PNG", "b/img2.png", "b/img10.png", "c/Ünïcode 1.jpg"]


def test_files_become_colour_unless_gray_is_asked_for(tmp_path):
    folder_of(tmp_path, GRAY)
    source = open_source(tmp_path)
    assert source.n_channels == 3
    np.testing.assert_array_equal(all_of(source)[2][1].numpy(), GRAY[2])
    assert open_source(tmp_path, n_channels=1).n_channels == 1
    assert len(open_source(list_images(tmp_path).images[:2])) == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_a_picture_is_read(mode):
    picture = Image.fromarray(COLOUR[0]).convert(mode)
    loaded = all_of(open_source([picture], n_channels=3))[0]
    assert loaded.dtype == torch.uint8
    expected = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(loaded.numpy().transpose(1, 2, 0), expected)


def test_deep_pictures_are_neither_clipped_nor_cut():
    deep = GRAY[0].astype(np.uint16) * 257
    for picture in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        loaded = all_of(open_source([picture]))[0]
        np.testing.assert_array_equal(loaded[0].numpy(), deep)
    floats = (GRAY[0] / 255).astype(np.float32)
    loaded = all_of(open_source([Image.fromarray(floats)]))[0]
    np.testing.assert_array_equal(loaded[0].numpy(), floats)
    with pytest.raises(ImageError, match=r"run from [0-9]+ to 2[0-9]+, but .*Divide"):
        all_of(open_source([Image.fromarray(GRAY[0].astype(np.float32) + 1)] * 2))


CLEAR, INK = (1, 1), (0, 0)  # a transparent and an opaque pixel, both black


def transparent(mode):
    """A dark picture of a mode with one pixel to see through."""
    rgba = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    rgba.putpixel((2, 2), (90, 90, 90, 255))
    rgba.putpixel(CLEAR, (0, 0, 0, 0))
    if mode == "P":
        return rgba.quantize(8)
    if mode == "PA":
        picture = Image.new("PA", (4, 4), (1, 255))
        picture.putpalette([255, 0, 0, 0, 0, 0])
        picture.putpixel(CLEAR, (1, 0))
        return picture
    if mode == "La":
        return rgba.convert("LA").convert("La")
    return rgba.convert(mode)


def transparent_png(depth, colour):
    """A PNG, of 4 x 4 pixels, in which one value, of one pixel, is transparent (tRNS)."""
    ink, clear = (200, 0) if depth == 8 else (0, 1)
    values = np.full((4, 4, 3 if colour == 2 else 1), ink)
    values[CLEAR] = clear
    if depth == 16:
        clear = 0x0102
        values[CLEAR], values[INK] = clear, 0
    if depth < 8:
        bits = ((values[..., 0, None] >> np.arange(depth)[::-1]) & 1).reshape(4, -1)
        rows = np.packbits(bits.astype(np.uint8), axis=1)
    else:
        rows = values.astype(f">u{depth // 8}").reshape(4, -1).view(np.uint8)
    value = np.full(values.shape[2], clear, ">u2").tobytes()
    content = png(4, 4, depth, colour, b"".join(b"\0" + row.tobytes() for row in rows))
    chunk = b"tRNS" + value
    chunk = struct.pack(">I", len(value)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    at = content.index(b"IDAT") - 4
    return content[:at] + chunk + content[at:]


def white_in_both(pictures, n_channels=3):
    """Pixels of the estimator, (c, h, w) in [0, 1]; those that evaluation shows are the same."""
    loaded = to_unit(open_source([pictures()], n_channels).load_one(0)).numpy()
    shown = as_rgb(pictures(), 0).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(np.broadcast_to(loaded, shown.shape), shown, atol=0.6 / 255)
    return loaded


@pytest.mark.parametrize("n_channels", [None, 1, 3])
@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_transparency_shows_white_in_every_mode(mode, n_channels):
    loaded = white_in_both(lambda: transparent(mode), n_channels)
    assert (loaded[:, 1, 1] > 0.999).all()
    assert (loaded[:, 0, 0] == 0).all()


@pytest.mark.parametrize(
    ("depth", "colour"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]
)
def test_a_transparent_value_shows_white_at_every_depth(depth, colour):
    content = transparent_png(depth, colour)
    loaded = white_in_both(lambda: Image.open(io.BytesIO(content)))
    file = to_unit(open_source([content], 3).load_one(0)).numpy()
    np.testing.assert_array_equal(file, np.broadcast_to(loaded, file.shape))
    white = (file == 1).all(axis=0)
    assert white[CLEAR]
    assert white.sum() == 1


@pytest.mark.parametrize("kind", ["P", "GIF", "WEBP", "TIFF", "AVIF"])
def test_files_with_transparency_are_those_of_memory(kind):
    file = io.BytesIO()
    transparent("P" if kind == "P" else "RGBA").save(file, "PNG" if kind == "P" else kind)
    loaded = white_in_both(lambda: Image.open(io.BytesIO(file.getvalue())))
    from_file = to_unit(open_source([file.getvalue()], 3).load_one(0)).numpy()
    np.testing.assert_array_equal(from_file, np.broadcast_to(loaded, from_file.shape))
    assert (loaded[:, 1, 1] > 0.9).all()
    assert (loaded[:, 0, 0] < 0.1).all()


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "I;16", "F", "RGBX"]
)
def test_evaluation_shows_the_pixels_that_the_estimator_reads(mode):
    deep = Image.fromarray(COLOUR[0, ..., 0].astype(np.uint16) * 250)
    unit = Image.fromarray((COLOUR[0, ..., 0] / 255).astype(np.float32))
    colour = Image.fromarray(COLOUR[0])
    one = {"I;16": deep, "F": unit}.get(mode) or colour.convert(mode)
    white_in_both(lambda: one)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_pictures_in_memory_are_turned_as_their_files_are(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(COLOUR[0]).save(file, kind, exif=exif)
    content = file.getvalue()
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    loaded = white_in_both(lambda: Image.open(io.BytesIO(content)))
    for source in (open_source([content]), open_source([Image.open(io.BytesIO(content))])):
        pixels = source.load_one(0).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(pixels, upright)
        assert source.shape(0) == pixels.shape[:2]
    np.testing.assert_allclose(loaded.transpose(1, 2, 0) * 255, upright)


def test_pictures_are_gray_only_if_all_of_them_are():
    gray, colour = Image.fromarray(GRAY[0]), Image.fromarray(COLOUR[0])
    assert open_source([gray, gray]).n_channels == 1
    for pictures in ([gray, colour], [colour, gray]):
        source = open_source(pictures)
        assert [len(image) for image in all_of(source)] == [3, 3]


def test_tensors_of_a_data_set_may_have_channels_first():
    from torchvision.transforms import v2

    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    class Tensors(Pairs):
        def __getitem__(self, i):
            return to_tensor(self.images[i]), 3

    source = open_source(Tensors(COLOUR))
    assert source.n_channels == 3
    assert typical_shape(source) == (6, 7)
    expected = torch.from_numpy(COLOUR[1]).permute(2, 0, 1) / 255
    torch.testing.assert_close(all_of(source)[1], expected)


@pytest.mark.parametrize("dtype", [">f4", ">u2", "float16", "float64"])
def test_any_byte_order_and_width(dtype):
    scale = 1 if dtype == ">u2" else 1 / 255
    images = (GRAY * scale).astype(dtype)
    loaded = all_of(open_source(images))
    np.testing.assert_allclose(loaded[:, 0].to(torch.float64).numpy(), GRAY * scale, atol=1e-3)


def test_bfloat16_and_read_only_arrays():
    source = open_source((torch.from_numpy(GRAY) / 255).to(torch.bfloat16))
    assert all_of(source).dtype == torch.float32
    read_only = [np.asarray(Image.fromarray(image)) for image in GRAY]
    assert len(all_of(open_source(read_only))) == 5


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(COLOUR[0]).save(tmp_path / "turned.png", exif=exif)
    assert all_of(open_source(tmp_path))[0].shape == (3, 7, 6)


def test_what_is_rows_and_what_is_images():
    assert are_rows(np.zeros((3, 4)))
    assert are_rows([[1.0, 2.0], [3.0, 4.0]])
    assert are_rows(torch.zeros(3, 4))
    assert not are_rows(np.zeros((3, 4, 4)))
    assert not are_rows(list(np.zeros((3, 4, 4))))
    assert not are_rows("photos/")
    assert not are_rows(["a.png", "b.png"])
    assert not are_rows(np.array(["a.png", "b.png"]))
    assert not are_rows([Image.new("RGB", (4, 4))])
    assert not are_rows(pd.Series(["a.png", "b.png"]))
    assert not are_rows([(np.zeros((4, 4)), 3)])
    assert are_rows(pd.DataFrame({"a": [1.0], "b": [2.0]}))
    assert are_rows([(1.0, 2.0), (3.0, 4.0)])


def test_paths_in_arrays_and_series_and_pairs_in_lists(tmp_path):
    folder_of(tmp_path, COLOUR)
    names = list_images(tmp_path).images
    for paths in (np.array(names), np.array(names, dtype=object), pd.Series(names)):
        source = open_source(paths)
        assert source.names == names
    assert len(all_of(open_source([(image, 1) for image in COLOUR]))) == 5


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(
        ValueError, match=r"No image file in .* \(1 other files and folders\).*\.jpg"
    ):
        list_images(tmp_path)


def test_a_missing_folder_a_file_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"is a pattern.*sorted\(glob\.glob\('photos/\*"):
        open_source("photos/*.jpg")
    folder_of(tmp_path, COLOUR[:1])
    with pytest.raises(NotADirectoryError, match="is a file"):
        open_source(tmp_path / "0.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 image files do not exist\. .*9\.png"):
        open_source([tmp_path / "0.png", tmp_path / "9.png"])


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_broken_file_is_named_with_the_reason(tmp_path, content):
    folder_of(tmp_path, COLOUR)
    broken = tmp_path / "3.png"
    broken.write_bytes(broken.read_bytes()[:60] if content == "half" else content)
    reason = {b"": "the file is empty", b"not an image": "not an image"}.get(
        content, "cannot be read"
    )
    with pytest.raises(ImageError, match=rf"Image .*3\.png:? {reason}"):
        all_of(open_source(tmp_path))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8), np.nan), "NaN or infinite"),
        (np.arange(128.0).reshape(2, 8, 8), r"run from 0 to 127.*their maximum: X / 127"),
        (np.linspace(-1, 1, 128).reshape(2, 8, 8), r"run from -1 to 1.*Shift and scale"),
        (np.full((2, 8, 8), 200), r"int64 run from 200 to 200.*astype\('uint8'\)"),
        (np.zeros((2, 8, 8), dtype="U3"), "type <U3 cannot be used"),
        (np.zeros((2, 8, 8), dtype=complex), "type complex128 cannot be used"),
        (np.full((2, 8, 8), "a", dtype=object), "type object cannot be used"),
        (np.zeros((2, 5, 32, 32)), r"channels-first.*transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 3, 4, 4, 3)), "neither a set of images"),
        (np.zeros((0, 8, 8)), r"shape \(0, 8, 8\) is empty"),
        ([], "empty"),
        ([COLOUR[0], GRAY[0]], r"Image 1 of 2: mixed channel counts, 1 here and 3.*n_channels"),
        ([COLOUR[0], np.full((8, 8, 3), np.inf)], r"Image 1 of 2: .*NaN or infinite"),
        ([COLOUR[0], np.zeros((4,))], r"Image 1 of 2: .*shape \(4,\) is not an image"),
    ],
)
def test_bad_images_get_a_clear_error(images, message):
    with pytest.raises(ValueError, match=message):
        all_of(open_source(images))


def test_lists_of_mixed_channels_are_converted_when_asked():
    source = open_source([COLOUR[0], GRAY[0]], n_channels=3)
    assert [image.shape[0] for image in all_of(source)] == [3, 3]
    source = open_source([COLOUR[0], GRAY[0]], n_channels=1)
    assert [image.shape[0] for image in all_of(source)] == [1, 1]


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="type int is not a collection of images"):
        open_source(7)
    with pytest.raises(ImageError, match=r"Image 0 of 5: a dict without an image.*label"):
        open_source(Labels(COLOUR))


class Labels(Pairs):
    def __getitem__(self, i):
        return {"label": 3}


def photo(height, width):
    y, x = np.mgrid[:height, :width] / height
    waves = [np.sin(9 * y + 3 * x), np.cos(7 * x), np.sin(5 * x * y)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_size_that_is_needed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(960, 1290).save(tmp_path / "a.jpg", exif=exif, quality=95)
    source = open_source(tmp_path)
    whole = source.load_one(0)
    assert tuple(whole.shape[1:]) == ((960, 1290) if orientation == 1 else (1290, 960))
    for at_least, reduction in ((0, 1), (1, 8), (120, 8), (121, 4), (300, 2), (481, 1), (5000, 1)):
        small = source.load_one(0, at_least)
        assert min(small.shape[1:]) == 960 // reduction, at_least
        assert source.shape(0) == tuple(whole.shape[1:])
    recipe = ViewRecipe(64, 32, 2, 4, (0.5, 0.4), 0.2, (0.5,) * 3, (0.25,) * 3, flip=0.5)
    seen, reduced = (whole_images(source.load_one(0, n)[None], recipe) for n in (0, 120))
    assert (seen - reduced).abs().mean() < 0.05  # of a standard deviation


def test_pictures_of_the_user_are_left_as_they_are(tmp_path):
    photo(960, 960).save(tmp_path / "a.jpg")
    picture = Image.open(tmp_path / "a.jpg")
    assert open_source([picture]).load_one(0, at_least=8).shape == (3, 960, 960)


def tar_of(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def as_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def test_archives_are_read_in_any_order(tmp_path):
    shards = []
    for number in range(2):
        files = {}
        for i, image in enumerate(COLOUR):
            files[f"{number}{i}.png"] = as_png(np.roll(image, number))
            files[f"{number}{i}.cls"] = b"7"
        files["._hidden.png"] = b"left by some systems"
        shards.append(tar_of(tmp_path / f"shard-{number}.tar", files))
    source = open_source(shards)
    assert source.names is not None
    assert source.names[6] == str(tmp_path / "shard-1.tar" / "11.png")
    for index in (9, 0, 6):
        expected = np.roll(COLOUR[index % 5], index // 5)
        np.testing.assert_array_equal(source.load_one(index).permute(1, 2, 0).numpy(), expected)
    assert len(open_source(shards[0])) == len(COLOUR)


def test_archives_that_cannot_be_used(tmp_path):
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(tar_of(tmp_path / "a.tar", {"a.png": b""}).read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar\.gz cannot be read.*without compression"):
        open_source(packed)
    with pytest.raises(ValueError, match=r"No image file in .*b\.tar"):
        open_source(tar_of(tmp_path / "b.tar", {"a.txt": b""}))
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "c.tar")
    source = open_source(tmp_path / "a.tar", on_error="skip")
    source.load_one(0)
    assert source.skipped()[0].name == str(tmp_path / "a.tar" / "a.png")


def test_natural_order_is_that_of_people(tmp_path):
    expected = ["1.5", "2", "10", "a", "A9", "a09", "a9", "a10", "b", "Z", "z2", "z10y2", "é"]
    for name in sorted(expected):
        (tmp_path / f"{name}.jpg").touch()
    assert [Path(path).stem for path in list_images(tmp_path).images] == expected


def test_links_names_and_hidden_files_of_archives(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:

        def add(name, content=b"", **attributes):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            archive.addfile(member, io.BytesIO(content))

        add("./0.png", as_png(COLOUR[0]))
        add("hard.png", type=tarfile.LNKTYPE, linkname="./0.png")
        add("soft.png", type=tarfile.SYMTYPE, linkname="./0.png")
        add(".cache/a.png", as_png(COLOUR[1]))
        add("odd/")
        add("/abs/x.png", as_png(COLOUR[2]))
        add("./0.png", as_png(COLOUR[3]))
    source = open_source(path)
    assert source.names == [f"{path}/./0.png", f"{path}/hard.png", f"{path}/abs/x.png"]
    loaded = [image.permute(1, 2, 0).numpy() for image in all_of(source)]
    for image, expected in zip(loaded, (COLOUR[3], COLOUR[0], COLOUR[2]), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_archives_and_folders_in_the_wrong_place_are_told_apart(tmp_path):
    shard = tar_of(tmp_path / "a.tar", {"a.png": as_png(COLOUR[0])})
    with pytest.raises(ValueError, match=r"Pass tar archives as a list: sorted\(folder\.glob"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="tar archives and other files"):
        open_source([shard, tmp_path / "b.png"])
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Pass it by itself"):
        open_source([tmp_path])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.tar cannot be read.*The file is truncated"):
        open_source(cut)
    (tmp_path / "photos.tar").mkdir()
    folder_of(tmp_path / "photos.tar", COLOUR)
    assert len(open_source(tmp_path / "photos.tar")) == len(COLOUR)


def test_items_within_items(tmp_path):
    folder_of(tmp_path, COLOUR)
    samples = [(path, 1) for path in list_images(tmp_path).images]
    assert not are_rows(samples)
    nested = [({"image": image}, 1) for image in COLOUR]
    for items in (samples, nested, [((image, 0), 1) for image in COLOUR]):
        for image, expected in zip(all_of(open_source(items)), COLOUR, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert not are_rows([None, *COLOUR])


@pytest.mark.parametrize("code", ["EACCES", "EIO", "ESTALE", "ELOOP", "ENOTCONN", "ENAMETOOLONG"])
def test_a_folder_that_cannot_be_opened_does_not_vanish(tmp_path, monkeypatch, code):
    folder_of(tmp_path, COLOUR[:2], ["a/0.png", "b/c/0.png"])
    scandir = os.scandir

    def failing(path):
        if Path(path).name == "c":
            raise OSError(getattr(errno, code), "out of order", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    kind = type(OSError(getattr(errno, code), ""))
    with pytest.raises(
        kind, match=r"b/c/ cannot be opened: out of order.*on_error=.skip"
    ) as raised:
        open_source(tmp_path)
    assert type(raised.value) is kind
    source = open_source(tmp_path, on_error="skip")
    with pytest.warns(SkippedImageWarning, match=r"not among the 1 images of X.*b/c/: out of or"):
        warn_unread(source)
    assert ignored_with_reasons(source) == [f"{tmp_path}/b/c/ (out of order)"]
    with pytest.raises(kind, match="c/ cannot be opened"):
        open_source(tmp_path / "b" / "c", on_error="skip")


def test_links_that_lead_nowhere_are_told(tmp_path):
    folder_of(tmp_path, COLOUR[:1])
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert list_images(tmp_path).unreachable == {f"{tmp_path}/gone": os.strerror(errno.ENOENT)}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop cannot be opened"):
        list_images(tmp_path)
    listing = list_images(tmp_path, on_error="skip")
    assert list(listing.unreachable) == listing.ignored == [f"{tmp_path}/gone", f"{tmp_path}/loop"]


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir/a.jpg", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "_gsdata_"),
        *("System Volume Information", ".Trashes", "Thumbs", ".thumbnails", "@Recycle"),
    ],
)
def test_folders_of_systems_are_ignored_as_hidden_ones_are(tmp_path, name):
    folder_of(tmp_path, COLOUR[:2], ["0.png", f"album/{name}/0.png"])
    listing = list_images(tmp_path)
    assert listing.images == [f"{tmp_path}/0.png"]
    assert listing.ignored == [f"{tmp_path}/album/{name.split('/')[0]}/"]
    files = {"0.png": as_png(COLOUR[0]), f"album/{name}/0.png": as_png(COLOUR[1])}
    found = list_members([tar_of(tmp_path / "a.tar", files)])
    assert [member.name for member in found.images] == ["0.png"]
    assert found.ignored == [f"{tmp_path}/a.tar/album/{name}/0.png"]


def headers_of(archive):
    with tarfile.open(archive) as members:
        return [member.offset for member in members]


@given(st.data())
@settings(max_examples=60)
def test_no_damage_to_the_headers_of_an_archive_loses_an_image_silently(data):
    files = {f"{i}.png": as_png(image) for i, image in enumerate(COLOUR)}
    with tempfile.TemporaryDirectory() as folder:
        path = tar_of(Path(folder) / "a.tar", files)
        content, headers = bytearray(path.read_bytes()), headers_of(path)
        end = headers[-1] + 512 + -(-len(files["4.png"]) // 512) * 512
        if data.draw(st.booleans(), "cut"):
            del content[data.draw(st.integers(0, end), "at") :]
        else:
            header = data.draw(st.sampled_from(headers), "header")
            content[header + data.draw(st.integers(0, 511), "at")] ^= 1 << data.draw(
                st.integers(0, 7), "bit"
            )
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar cannot be read.*(truncated|not a tar)"):
            open_source(path)
        whole = tar_of(Path(folder) / "whole.tar", files)
        source = open_source([path, whole], on_error="skip")
        assert list(source.unreachable) == [str(path)]
        loaded = all_of(source)
        skipped = {image.index for image in source.skipped()}  # its content is cut off
        assert len(skipped) <= 1
        for i in set(range(len(loaded))) - skipped:
            expected = COLOUR[int(source.names[i][-5])]
            np.testing.assert_array_equal(loaded[i].permute(1, 2, 0).numpy(), expected)


def test_what_follows_the_end_of_an_archive_is_not_left_out_silently(tmp_path):
    first = tar_of(tmp_path / "a.tar", {"a.png": as_png(COLOUR[0])})
    second = tar_of(tmp_path / "b.tar", {"b.png": as_png(COLOUR[1])})
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match="more follows the mark of its end"):
        open_source(first)


def sparse_tar(path, size, stored):
    """An archive with a sparse file, of which ``stored`` has the bytes by position, and 0.png."""
    header = tarfile.TarInfo("sparse.bmp")
    header.type = tarfile.GNUTYPE_SPARSE
    header.size = sum(map(len, stored.values()))
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    numbers = [n for at, piece in stored.items() for n in (at, len(piece))]
    for i, number in enumerate(numbers):
        block[386 + 12 * i : 398 + 12 * i] = b"\x80" + number.to_bytes(11, "big")
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content = b"".join(stored.values())
    beside = tar_of(path, {"0.png": as_png(COLOUR[0])}).read_bytes()
    path.write_bytes(bytes(block) + content + bytes(-len(content) % 512) + beside)
    return path


def test_sparse_members_are_read_with_their_holes(tmp_path):
    image = np.zeros((60, 60, 3), np.uint8)
    image[:9], image[-9:] = 255, (255, 0, 7)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    content = file.getvalue()
    last = len(content) - 2048
    stored = {0: content[:2048], last: content[last:]}
    source = open_source(sparse_tar(tmp_path / "a.tar", len(content), stored))
    found = [image.permute(1, 2, 0).numpy() for image in all_of(source)]
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], COLOUR[0])


@pytest.mark.parametrize(
    ("size", "stored", "reason"),
    [
        (2**40, {0: b"BM"}, r"1,099\.5 GB, and one image may take"),
        (100, {99: b"BM"}, "map of the sparse file"),
        (100, {2**50: b"BM"}, "map of the sparse file"),
    ],
)
def test_sparse_members_that_lie_are_skipped(tmp_path, size, stored, reason):
    source = open_source(sparse_tar(tmp_path / "a.tar", size, stored), on_error="skip")
    np.testing.assert_array_equal(all_of(source)[1].permute(1, 2, 0).numpy(), COLOUR[0])
    assert [skipped.index for skipped in source.skipped()] == [0]
    assert re.search(reason, source.skipped()[0].reason)


@pytest.mark.parametrize(
    ("target", "found"), [("./a/0.png", 0), ("/a//0.png", 0), ("a/../a/0.png", 0), ("b.png", None)]
)
def test_hard_links_in_any_spelling_and_to_nothing(tmp_path, target, found):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, image in (("a/0.png", COLOUR[0]), ("1.png", COLOUR[1])):
            member = tarfile.TarInfo(name)
            member.size = len(as_png(image))
            archive.addfile(member, io.BytesIO(as_png(image)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, target
        archive.addfile(link)
    source = open_source(path, on_error="skip")
    loaded = all_of(source)
    if found is None:
        assert [(s.index, "hard link to b.png" in s.reason) for s in source.skipped()] == [
            (2, True)
        ]
    else:
        np.testing.assert_array_equal(loaded[2].permute(1, 2, 0).numpy(), COLOUR[found])


@pytest.mark.parametrize(
    "name",
    ["C:\\fotos\\0.png", "a\\CON.png", "NUL.png", "aux/0.png", "a?*|.png", "../0.png", "a./0 .png"],
)
def test_names_of_windows_and_odd_ones_in_archives(tmp_path, name):
    source = open_source(tar_of(tmp_path / "a.tar", {name: as_png(COLOUR[0])}))
    np.testing.assert_array_equal(all_of(source)[0].permute(1, 2, 0).numpy(), COLOUR[0])
    hidden = tar_of(tmp_path / "b.tar", {"0.png": as_png(COLOUR[0]), "a\\.b\\1.png": b""})
    assert len(open_source(hidden)) == 1


def test_an_archive_that_changes_after_it_was_listed_is_noticed(tmp_path):
    path = tar_of(tmp_path / "a.tar", {f"{i}.png": as_png(COLOUR[i]) for i in range(3)})
    source = open_source(path)
    tar_of(path, {f"{i}.png": as_png(COLOUR[i]) for i in (2, 1, 0, 3)})
    with pytest.raises(ImageError, match=r"0\.png: the archive has changed"):
        source.load_one(0)


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PCX", "ICO"]
)
@pytest.mark.parametrize("route", ["folder", "bytes", "archive"])
def test_only_documented_formats_are_opened(tmp_path, content, route):
    if isinstance(content, str):
        file = io.BytesIO()
        Image.fromarray(photo_pixels := np.repeat(COLOUR[0], 3, axis=0)).save(file, content)
        assert Image.open(io.BytesIO(file.getvalue())).format == content, photo_pixels.shape
        content = file.getvalue()
    (tmp_path / "0.png").write_bytes(content)
    routes = {
        "folder": tmp_path,
        "bytes": [content],
        "archive": tar_of(tmp_path / "a.tar", {"0.png": content}),
    }
    with pytest.raises(ImageError, match="not an image in a known format"):
        all_of(open_source(routes[route]))


def test_the_suffixes_of_images_are_those_of_the_formats():
    Image.init()
    formats = {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES}
    assert formats == set(FORMATS)


@pytest.mark.parametrize("kind", ["sparse file", "many pixels", "picture"])
def test_files_that_claim_more_than_the_memory_there_is(tmp_path, monkeypatch, kind):
    folder_of(tmp_path, COLOUR)
    claims = tmp_path / "3.png"
    if kind == "sparse file":
        os.truncate(claims, 2**42)
    else:
        Image.new("1", (9000, 9000)).save(claims)
        monkeypatch.setattr(limits, "available_memory", lambda device: 2**31)
    X = tmp_path
    if kind == "picture":
        X = [Image.open(io.BytesIO(path.read_bytes())) for path in sorted(tmp_path.iterdir())]
    source = open_source(X, on_error="skip", n_channels=3)
    all_of(source)
    assert [skipped.index for skipped in source.skipped()] == [3]
    assert re.search(r"[0-9]\.[0-9] GB.*quarter of the free memory", source.skipped()[0].reason)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.jpg", "a"])
@pytest.mark.parametrize("route", ["itself", "list", "data set"])
def test_pipes_never_hang_a_reader(tmp_path, name, route):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    X = {"itself": pipe, "list": [pipe], "data set": {0: pipe}}[route]
    with pytest.raises((OSError, ValueError), match=r"regular file|is a file|do not exist"):
        all_of(open_source(X))
