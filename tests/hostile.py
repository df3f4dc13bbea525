"""A folder of files that cameras, scanners, browsers and accidents leave: sound and broken."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 20, 30
SMOOTH = np.linspace(0, 255, H * W * 3).reshape(H, W, 3).astype(np.uint8)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF with an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def sound_files() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Name, content, and height and width the right way up, of files that can be used."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(SMOOTH)
    gray, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(gray)
    deep = (np.arange(H * W, dtype=np.uint16) * 100).reshape(H, W)
    cmyk = encoded(rgb.convert("CMYK"), "JPEG")
    frames = [rgb.rotate(90 * turn) for turn in range(3)]
    animated = {"save_all": True, "append_images": frames[1:]}
    deep_rgb = np.repeat(deep[:, :, None], 3, axis=2).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep_rgb)
    adobe = cmyk.index(b"Adobe") + 11  # its last byte says how colours are stored
    ycck = cmyk[:adobe] + b"\2" + cmyk[adobe + 1 :]
    exif_broken = turned(6).tobytes()[:14] + b"\xff" * 30

    upright = {
        "photo.jpg": encoded(rgb, "JPEG"),
        "gray.jpg": encoded(gray, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "subsampled.jpg": encoded(rgb, "JPEG", subsampling=2, quality=5),
        "cmyk.jpg": cmyk,
        "ycck.jpg": ycck,
        "colour profile.jpg": encoded(rgb, "JPEG", icc_profile=b"not a profile" * 20),
        "comment.jpg": encoded(rgb, "JPEG", comment=b"\xff\xd9" * 10),
        "bytes after the end.jpg": encoded(rgb, "JPEG") + rng.bytes(500),
        "broken exif.jpg": encoded(rgb, "JPEG", exif=exif_broken),
        "several pictures.jpg": encoded(rgb, "MPO", save_all=True, append_images=[gray]),
        "palette.png": encoded(rgb.convert("P"), "PNG"),
        "palette with transparency.png": encoded(rgb.convert("P"), "PNG", transparency=3),
        "one bit.png": encoded(rgb.convert("1"), "PNG"),
        "gray and alpha.png": encoded(alpha.convert("LA"), "PNG"),
        "alpha.png": encoded(alpha, "PNG"),
        "16 bits.png": encoded(Image.fromarray(deep), "PNG"),
        "16 bits a channel.png": png(W, H, 16, 2, rows),
        "animated.png": encoded(rgb, "PNG", **animated),
        "animated.gif": encoded(rgb, "GIF", **animated),
        "transparent.gif": encoded(alpha, "GIF"),
        "animated.webp": encoded(rgb, "WEBP", **animated),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "alpha.webp": encoded(alpha, "WEBP"),
        "plain.tiff": encoded(rgb, "TIFF"),
        "pages.tiff": encoded(rgb, "TIFF", **animated),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg inside.tif": encoded(rgb, "TIFF", compression="jpeg"),
        "one bit, fax.tif": encoded(rgb.convert("1"), "TIFF", compression="group4"),
        "16 bits.tif": encoded(Image.fromarray(deep), "TIFF"),
        "float.tif": encoded(Image.fromarray((SMOOTH[..., 0] / 255).astype(np.float32)), "TIFF"),
        "cmyk.tif": encoded(rgb.convert("CMYK"), "TIFF"),
        "plain.bmp": encoded(rgb, "BMP"),
        "palette.bmp": encoded(rgb.convert("P"), "BMP"),
        "plain.ppm": encoded(rgb, "PPM"),
        "gray.pgm": encoded(gray, "PPM"),
        "one bit.pbm": encoded(rgb.convert("1"), "PPM"),
        "plain.tga": encoded(rgb, "TGA"),
        "alpha.tga": encoded(alpha, "TGA"),
        "plain.jp2": encoded(rgb, "JPEG2000"),
        "plain.avif": encoded(rgb, "AVIF"),
        "a png.jpg": encoded(rgb, "PNG"),
        "a jpeg.png": encoded(rgb, "JPEG"),
        "a gif.bmp": encoded(gray, "GIF"),
        "SHOUTING.JPG": encoded(rgb, "JPEG"),
        "Größe 写真 🖼.jpg": encoded(rgb, "JPEG"),
        "quote ' and\nnew line.jpg": encoded(rgb, "JPEG"),
        "l" + "o" * 200 + "ng.jpg": encoded(rgb, "JPEG"),
        "a.folder.jpg/in it.jpg": encoded(rgb, "JPEG"),
    }
    files = {name: (content, (H, W)) for name, content in upright.items()}
    for kind in ("jpg", "png", "webp", "tif"):
        pillow = {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper())
        for orientation in (2, 3, 4, 5, 6, 7, 8) if kind == "jpg" else (3, 6):
            shape = (W, H) if orientation >= 5 else (H, W)
            content = encoded(rgb, pillow, exif=turned(orientation))
            files[f"turned {orientation}.{kind}"] = content, shape
    for height, width in ((1, 1), (1, 300), (300, 1), (20_000, 1), (2, 20_000), (20_000, 40)):
        line = Image.new("RGB", (width, height), (200, 100, 0))
        files[f"{height} x {width}.png"] = encoded(line, "PNG"), (height, width)
    files["20000 x 9.jpg"] = encoded(Image.new("RGB", (9, 20_000)), "JPEG"), (20_000, 9)
    return files


def broken_files() -> dict[str, bytes]:
    """Name and content of files that cannot be used."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    whole = {
        kind: encoded(rgb, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
        for kind in ("jpg", "png", "webp", "tif", "bmp", "gif")
    }
    nan = np.full((H, W), np.nan, np.float32)
    flipped = bytearray(whole["png"])
    flipped[20] ^= 0xFF
    pixels = whole["png"].index(b"IDAT") + 60
    damaged = whole["png"][:pixels] + bytes(40) + whole["png"][pixels + 40 :]
    files = {f"cut short.{kind}": whole[kind][: len(whole[kind]) // 2] for kind in whole}
    files |= {f"only the beginning.{kind}": whole[kind][:24] for kind in whole}
    return files | {
        "empty.jpg": b"",
        "text.jpg": b"no image at all, " * 20,
        "page.png": b"<!DOCTYPE html><html><body>404 not found</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "document.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(100),
        "film.gif": b"\0\0\0\x18ftypmp42" + bytes(100),
        "noise.webp": rng.bytes(1000),
        "zeros.tif": bytes(1000),
        "a flipped byte in the header.png": bytes(flipped),
        "damaged inside.png": damaged,
        "no pixels.png": png(0, 0, 8, 2, b""),
        "a bomb.png": png(60_000, 60_000, 8, 2, bytes(1000)),
        "a bomb.gif": b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + whole["gif"][10:],
        "nan.tif": encoded(Image.fromarray(nan), "TIFF"),
        "beyond white.tif": encoded(Image.fromarray(np.full((H, W), 7.5, np.float32)), "TIFF"),
    }


def write_folder(root: Path) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Write all of it, and what is no image; give shapes of the sound, names of the broken."""
    sound, broken = sound_files(), broken_files()
    for name, content in ({n: c for n, (c, _) in sound.items()} | broken).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    shapes = {name: shape for name, (_, shape) in sound.items()}
    (root / "a link.jpg").symlink_to(root / "photo.jpg")
    shapes["a link.jpg"] = (H, W)
    (root / "a link to nothing.jpg").symlink_to(root / "gone.jpg")
    os.mkfifo(root / "a pipe.jpg")
    names = {*broken, "a link to nothing.jpg", "a pipe.jpg"}
    for other in ("notes.txt", "labels.csv", "Thumbs.db", ".DS_Store", ".hidden.jpg"):
        (root / other).write_bytes(b"something else")
    (root / "loop").symlink_to(root)
    return shapes, names
