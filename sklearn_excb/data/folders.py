"""The image files of a folder, in an order that people expect."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

_FORMATS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = tuple("." + name for name in _FORMATS.split())

# what phones and cameras write and a folder is not searched for
_UNREAD_FORMATS = "heic heif jxl cr2 cr3 nef arw orf rw2 raf dng"
_UNREAD = tuple("." + name for name in _UNREAD_FORMATS.split())
_TABLES = (".csv", ".tsv", ".npy", ".npz", ".parquet")  # of embeddings, which are no folder
_numbers = re.compile(r"([0-9]+)").split


class Listing(NamedTuple):
    """What a folder holds.

    Attributes
    ----------
    images : list of str
        Image files: those of a folder before those of the folders in it, each in natural order.
    ignored : list of str
        Hidden files and folders, files without the ending of an image, folders that may not be
        read.
    """

    images: list[str]
    ignored: list[str]


def list_images(folder: str | os.PathLike[str]) -> Listing:
    """Image files below a folder, in natural order (``img2`` before ``img10``), and the others.

    Files count as images by their ending, hidden ones do not; links are followed, but no folder is
    entered twice.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If no image file is in it.
    """
    root = os.fspath(folder)
    if not os.path.exists(root):
        if any(sign in root for sign in "*?["):
            raise FileNotFoundError(
                f"{root} is a pattern, and X a folder or a list of files. Pass the folder, or "
                f"sorted(glob.glob({root!r}))."
            )
        where = "" if os.path.isabs(root) else f", seen from {os.getcwd()}"
        raise FileNotFoundError(f"No such folder: {root}{where}. Pass one that holds images.")
    if not os.path.isdir(root):
        if root.lower().endswith(_TABLES):
            raise NotADirectoryError(
                f"{root} is a table, not a folder of images. Read it first, and pass its rows: "
                "pandas.read_csv(path, index_col=0), or numpy.load(path)."
            )
        raise NotADirectoryError(f"{root} is a file. Pass its folder, or a list of paths.")
    found, ignored, seen = [], [], set()

    def closed(error: OSError) -> None:
        ignored.append(os.path.join(error.filename, ""))

    for place, folders, files in os.walk(root, onerror=closed, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = _natural(set(folders).difference(hidden))
        images = _natural(_image_files(files))
        inside = os.path.join(place, "")
        found += [inside + name for name in images]
        if hidden or len(images) < len(files):
            ignored += [inside + name for name in sorted(set(files).difference(images))]
            ignored += [os.path.join(inside, name, "") for name in sorted(hidden)]
    if not found:
        unread = unread_pictures(ignored)
        if unread:
            hint = f" {len(unread)} are pictures of a kind that is not read, such as {unread[0]}:"
            hint += " convert them to JPEG or PNG."
        elif any(name.endswith(".tar") for name in ignored):
            hint = " Of tar archives, pass a list: sorted(folder.glob('*.tar'))."
        else:
            hint = ""
        raise ValueError(
            f"No image file in {root} ({len(ignored)} other files and folders). Files ending in "
            f"{' '.join(IMAGE_SUFFIXES)} are looked for, in all its folders.{hint}"
        )
    return Listing(found, ignored)


def unread_pictures(ignored: Collection[str], images: Collection[str] = ()) -> list[str]:
    """Pictures among what is ignored, but those of which there is an image of the same name."""
    read = {os.path.splitext(name)[0] for name in images}
    return [
        name
        for name in ignored
        if name.lower().endswith(_UNREAD)
        and not os.path.basename(name).startswith(".")
        and os.path.splitext(name)[0] not in read
    ]


def is_image_file(name: str) -> bool:
    """Whether a file without its folder is named as images are, and is not hidden."""
    return bool(_image_files([name]))


def _image_files(names: list[str]) -> list[str]:
    """Those that are named as images are, and are not hidden."""
    if not names:
        return []
    lowered = "/".join(names).lower().split("/")  # no name has a slash; faster than one by one
    return [
        name
        for name, low in zip(names, lowered, strict=True)
        if low.endswith(IMAGE_SUFFIXES) and low[0] != "."
    ]


def _natural(names: Collection[str]) -> list[str]:
    """Names in natural order; ``a`` and ``A`` are decided by the name itself.

    Numbers are filled up with zeros, in all names at once: that is faster than one by one.
    """
    parts = _numbers("/".join(names).lower())  # no name has a slash
    width = max(map(len, parts[1::2]), default=0)
    parts[1::2] = [number.zfill(width) for number in parts[1::2]]
    keys = "".join(parts).split("/")
    return [name for _, name in sorted(zip(keys, names, strict=True))] if names else []
