"""Pixels of pictures in every mode: opaque, upright, the same in evaluation and the estimator."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from evaluation.maps.pictures import as_rgb
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.pixels import to_unit
from sklearn_excb.exceptions import ImageError
from tests.hostile import png
from tests.small_images import COLOUR, GRAY, all_of


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


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(COLOUR[0]).save(tmp_path / "turned.png", exif=exif)
    assert all_of(open_source(tmp_path))[0].shape == (3, 7, 6)


def test_no_picture_starts_a_program():
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for use in (lambda x: as_rgb(x, 0), lambda x: open_source([x, x], 3).load_one(0)):
        with pytest.raises(ValueError, match="Ghostscript"):
            use(Image.open(io.BytesIO(content)))
