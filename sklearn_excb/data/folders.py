"""The image files of a folder, in natural order."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from sklearn_excb.data.broken_files import shortened
from sklearn_excb.exceptions import ImageError

_FORMATS = "avif bmp gif jfif jp2 jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = tuple("." + name for name in _FORMATS.split())

# formats of phones and cameras that cannot be read
_UNREAD_FORMATS = "heic heif jxl cr2 cr3 nef arw orf rw2 raf dng"
_UNREAD = tuple("." + name for name in _UNREAD_FORMATS.split())
_TABLES = (".csv", ".tsv", ".npy", ".npz", ".parquet")  # files that may hold feature vectors
# folders in which systems, drives and network storage keep thumbnails, snapshots and deleted files
_SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "@recycle", "@recently-snapshot", "@snapshot", "@tmp", "@thumb"),
        *("~snapshot", "@__thumb"),
        *("#recycle", "#snapshot", "$recycle.bin", "$recycle", "recycler", "recycled"),
        *("__macosx", "lost+found", "_gsdata_", "_thumbs", "thumbs", "system volume information"),
        *("network trash folder", "temporary items"),
    )
)
_recovered = re.compile(r"found\.[0-9]{3}").fullmatch  # chkdsk numbers these folders
_numbers = re.compile(r"([0-9]+)").split


class Listing(NamedTuple):
    """Contents of a folder.

    Attributes
    ----------
    images : list of str
        Image files. The files of a folder come before the files of its subfolders, both in natural
        order.
    ignored : list of str
        Hidden files, hidden folders and folders of the system, files without the suffix of an
        image, and all of ``unreachable``.
    unreachable : dict of str to str
        Reason for each folder, link or archive whose images are missing because it cannot be read.
    """

    images: list[str]
    ignored: list[str]
    unreachable: dict[str, str]


def list_images(folder: str | os.PathLike[str], on_error: str = "raise") -> Listing:
    """List the image files below a folder in natural order (``img2`` before ``img10``).

    The suffix decides which files are images. The search ignores hidden files and folders in which
    systems keep thumbnails and deleted files, follows links and enters no folder twice.

    Parameters
    ----------
    folder : str or path-like
        Folder to search through.
    on_error : {"raise", "skip"}, default="raise"
        Treatment of a folder below ``folder``, or of a link, that cannot be opened: "skip" gives
        the reason in ``unreachable``.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If the folder does not exist or is not a folder.
    OSError
        If the folder cannot be opened, or with "raise", a folder below it. The class is that of the
        system's error, such as PermissionError.
    ValueError
        If the folder holds no image file.
    """
    root = os.fspath(folder)
    if not exists(root):
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
    unreachable: dict[str, str] = {}

    def miss(error: OSError) -> None:
        place = os.path.join(error.filename or root, "")
        if on_error != "skip" or place == os.path.join(root, ""):
            raise cannot_be_opened(place, error) from error
        unreachable[place] = error.strerror or type(error).__name__
        ignored.append(place)

    for place, folders, files in os.walk(root, onerror=miss, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if is_hidden(name)]
        folders[:] = _natural(set(folders).difference(hidden))
        images = _natural(_image_files(files))
        inside = os.path.join(place, "")
        found += [inside + name for name in images]
        if hidden or len(images) < len(files):
            others = [inside + name for name in sorted(set(files).difference(images))]
            for link, error in _broken_links(others):
                if error.errno != errno.ENOENT and on_error != "skip":
                    raise cannot_be_opened(link, error) from error
                unreachable[link] = error.strerror or type(error).__name__
            ignored += others
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
        if unreachable:
            first, reason = next(iter(unreachable.items()))
            hint += f" {len(unreachable)} folders or links cannot be opened: {first} ({reason})."
        raise ValueError(
            f"No image file in {root} or its subfolders ({len(ignored)} other files and folders). "
            f"The suffixes of image files are {' '.join(IMAGE_SUFFIXES)}.{hint}"
        )
    return Listing(found, ignored, unreachable)


def exists(path: str) -> bool:
    """Return whether a path exists; raise an error if the system does not say."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        raise cannot_be_opened(path, error) from error
    return True


def check_files(names: list[str]) -> None:
    """Refuse a list of image files of which some do not exist, or are no files."""
    missing = [name for name in names if not os.path.isfile(name)]
    if not missing:
        return
    if os.path.isdir(missing[0]):
        raise IsADirectoryError(
            f"{missing[0]} is a folder. Pass it by itself, not in a list, or list its files."
        )
    if exists(missing[0]):
        raise ImageError(f"{missing[0]} is not a regular file. Pass files, not pipes or devices.")
    raise FileNotFoundError(
        f"{len(missing)} of {len(names)} image files do not exist. The first is "
        f"{shortened(missing[0])}"
    )


def cannot_be_opened(place: str, error: OSError) -> OSError:
    """Return the error to raise if the images of a folder or an archive would be missing."""
    return type(error)(
        f"{shortened(place)} cannot be opened: {error.strerror or error}. Its images would be "
        'missing. Make it readable, or pass on_error="skip" (--on-error skip) to leave it out.'
    )


def _broken_links(files: Iterable[str]) -> list[tuple[str, OSError]]:
    """Return the links whose target cannot be reached, which may be a folder; not hidden ones."""
    broken = []
    for file in files:
        if os.path.islink(file) and not os.path.basename(file).startswith("."):
            try:
                os.stat(file)
            except OSError as error:
                broken.append((file, error))
    return broken


def is_hidden(folder: str) -> bool:
    """Return whether the name of a folder is hidden, or that of a folder of the system."""
    hidden = folder.startswith(".") and folder not in (".", "..")
    name = folder.lower()
    return hidden or name in _SYSTEM_FOLDERS or _recovered(name) is not None


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


def looks_like_picture(name: str) -> bool:
    """Return whether a file name has the suffix of an image, of a format that is read or not."""
    return name.lower().endswith((*IMAGE_SUFFIXES, *_UNREAD))


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
