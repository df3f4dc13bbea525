"""The image files of a folder, in an order that people expect."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FORMATS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset("." + name for name in _FORMATS.split())


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below a folder, in natural order (``img2`` before ``img10``).

    Hidden files and folders and files without the ending of an image are left out; links are
    followed, but no folder is entered twice.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If no image file is in it.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"No such folder: {root}")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file. Pass its folder, or a list of paths.")
    found, n_other, seen = [], 0, set()
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        for file in files:
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith("."):
                found.append(Path(place, file))
            else:
                n_other += 1
    if not found:
        raise ValueError(
            f"No image file in {root} ({n_other} other files). Files ending in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))} are looked for, in all its folders."
        )
    return sorted(found, key=lambda path: _natural(path.relative_to(root)))


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts] + [(1, 0, str(path))]
