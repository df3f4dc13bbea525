"""The image files of a folder, in natural order."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import NamedTuple

_FORMATS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = tuple("." + name for name in _FORMATS.split())

# formats of phones and cameras that cannot be read
_UNREAD_FORMATS = "heic heif jxl cr2 cr3 nef arw orf rw2 raf dng"
_UNREAD = tuple("." + name for name in _UNREAD_FORMATS.split())
_TABLES = (".csv", ".tsv", ".npy", ".npz", ".parquet")  # files that may hold feature vectors
_numbers = re.compile(r"([0-9]+)").split


class Listing(NamedTuple):
    """Contents of a folder.

    Attributes
    ----------
    images : list of str
        Image files. The files of a folder come before the files of its subfolders, both in natural
        order.
    ignored : list of str
        Hidden files and folders, files without the suffix of an image, and folders that cannot be
        opened.
    """

    images: list[str]
    ignored: list[str]


def list_images(folder: str | os.PathLike[str]) -> Listing:
    """List the image files below a folder in natural order (``img2`` before ``img10``).

    The suffix decides which files are images. The search ignores hidden files, follows links and
    enters no folder twice.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the folder does not exist or is not a folder.
    ValueError
        If the folder holds no image file.
    """
    root = os.fspath(folder)
    if not os.path.exists(root):
        if any(sign in root for sign in "*?["):
            raise FileNotFoundError(
                f"{root} is a pattern, but X must be a folder or a list of files. Pass the folder, "
                f"or sorted(glob.glob({root!r}))."
            )
        where = "" if os.path.isabs(root) else f" (relative to {os.getcwd()})"
        raise FileNotFoundError(f"No such folder: {root}{where}. Pass a folder that holds images.")
    if not os.path.isdir(root):
        if root.lower().endswith(_TABLES):
            raise NotADirectoryError(
                f"{root} is a table, not a folder of images. Read the table and pass its rows: "
                "pandas.read_csv(path, index_col=0), or numpy.load(path)."
            )
        raise NotADirectoryError(f"{root} is a file. Pass its folder or a list of paths.")
    found, ignored, seen = [], [], set()

    def ignore_folder(error: OSError) -> None:
        ignored.append(os.path.join(error.filename, ""))

    for place, folders, files in os.walk(root, onerror=ignore_folder, followlinks=True):
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
            hint = f" {len(unread)} are images of unsupported formats, such as {unread[0]}."
            hint += " Convert them to JPEG or PNG."
        elif any(name.endswith(".tar") for name in ignored):
            hint = " Pass tar archives as a list: sorted(folder.glob('*.tar'))."
        else:
            hint = ""
        raise ValueError(
            f"No image file in {root} or its subfolders ({len(ignored)} other files and folders). "
            f"The suffixes of image files are {' '.join(IMAGE_SUFFIXES)}.{hint}"
        )
    return Listing(found, ignored)


def unread_pictures(ignored: Collection[str], images: Collection[str] = ()) -> list[str]:
    """Return ignored files in image formats that cannot be read.

    A file is left out if one of ``images`` has the same path except for the suffix.
    """
    read = {os.path.splitext(name)[0] for name in images}
    return [
        name
        for name in ignored
        if name.lower().endswith(_UNREAD)
        and not os.path.basename(name).startswith(".")
        and os.path.splitext(name)[0] not in read
    ]


def is_image_file(name: str) -> bool:
    """Return whether a file name, without its folder, has an image suffix and is not hidden."""
    return bool(_image_files([name]))


def _image_files(names: list[str]) -> list[str]:
    """Return the names that have an image suffix and are not hidden."""
    if not names:
        return []
    # one call for all names is faster, and no name holds a slash
    lowered = "/".join(names).lower().split("/")
    return [
        name
        for name, low in zip(names, lowered, strict=True)
        if low.endswith(IMAGE_SUFFIXES) and low[0] != "."
    ]


def _natural(names: Collection[str]) -> list[str]:
    """Sort names in natural order, without regard to case unless the names are equal otherwise.

    Numbers are padded with zeros, in all names at once, which is faster than name by name.
    """
    parts = _numbers("/".join(names).lower())  # no name holds a slash
    width = max(map(len, parts[1::2]), default=0)
    parts[1::2] = [number.zfill(width) for number in parts[1::2]]
    keys = "".join(parts).split("/")
    return [name for _, name in sorted(zip(keys, names, strict=True))] if names else []
