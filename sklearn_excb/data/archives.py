"""Images in tar archives, such as WebDataset shards: listed once, then read in any order."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

from sklearn_excb.data.folders import (
    IMAGE_SUFFIXES,
    cannot_be_opened,
    is_hidden,
    is_image_file,
    looks_like_picture,
)
from sklearn_excb.data.image_files import EncodedPicture
from sklearn_excb.data.limits import check_bytes
from sklearn_excb.exceptions import ImageError
from sklearn_excb.storage.regular_files import open_regular

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_PADDING = 2**24  # most zeros after the end of an archive; tar writes 10 KB by default
_parts = re.compile(r"[/\\]").split  # archives of Windows may have backslashes


class Member(NamedTuple):
    """An image file in an archive.

    Attributes
    ----------
    archive, name : str
        Path of the archive, and path of the file inside the archive.
    offset, size : int
        Position of the content in the archive, and length of the file, in bytes.
    pieces : tuple of (int, int), optional
        Position in the file and length of each stored piece of a sparse file; zeros are not stored.
        None if the file is stored whole.
    version : tuple of int
        Size and time of change of the archive when it was listed.
    problem : str
        Why the file cannot be read; "" if it can.
    """

    archive: str
    name: str
    offset: int
    size: int
    pieces: tuple[tuple[int, int], ...] | None
    version: tuple[int, int]
    problem: str = ""

    @property
    def path(self) -> str:
        """The path that names the file to users."""
        return f"{self.archive}/{self.name.lstrip('/')}"

    def open(self) -> EncodedPicture:
        """Open the image.

        Raises
        ------
        ImageError
            If it is too large, is broken, or the archive has changed.
        """
        if self.problem:
            raise ImageError(self.problem)
        check_bytes(self.size)
        with open_regular(self.archive) as file:
            if _version(file) != self.version:
                raise ImageError("the archive has changed since it was opened. Open it again.")
            file.seek(self.offset)
            if self.pieces is None:
                return EncodedPicture(file.read(self.size))
            return EncodedPicture(_joined(file, self.pieces, self.size))


class Contents(NamedTuple):
    """Images of archives.

    Attributes
    ----------
    images : list of Member
        Image files, in the order of the archives and of their members.
    ignored : list of str
        Members with the name of an image that are hidden, no files, or in a format that is not
        read, and all of ``unreachable``.
    replaced : list of str
        Images that do not count because a later member of the archive has the same name.
    unreachable : dict of str to str
        Reason for each archive that cannot be read to its end.
    """

    images: list[Member]
    ignored: list[str]
    replaced: list[str]
    unreachable: dict[str, str]


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the suffix of a tar archive and is not a folder."""
    name = os.fspath(path)
    return name.lower().endswith((".tar", *_COMPRESSED)) and not os.path.isdir(name)


def list_members(archives: Sequence[str | os.PathLike[str]], on_error: str = "raise") -> Contents:
    """List the image files of archives, in the order of the archives and of their members.

    The list follows hard links and leaves out symbolic links, hidden files and folders of the
    system. If several members have the same name, the last one counts, as it does when the archive
    is unpacked, and the others are in ``replaced``.

    Parameters
    ----------
    archives : sequence of path
        Tar archives without compression.
    on_error : {"raise", "skip"}, default="raise"
        Treatment of an archive that cannot be read to its end: "skip" lists the images before the
        fault, and gives the reason in ``unreachable``.

    Raises
    ------
    OSError
        If an archive cannot be opened.
    ValueError
        If an archive is compressed, is not a tar archive, or is damaged or cut short, or if no
        archive holds an image.
    """
    images: list[Member] = []
    ignored: list[str] = []
    replaced: list[str] = []
    unreachable: dict[str, str] = {}
    errors: list[Exception] = []
    paths = [os.fspath(archive) for archive in archives]
    for archive in paths:
        found: dict[str, Member] = {}
        try:
            _list(archive, found, ignored, replaced)
        except OSError as error:
            new = isinstance(error, FileNotFoundError) or error.errno is None
            errors.append(error if new else cannot_be_opened(archive, error))
            reason = error.strerror or str(error)
        except Exception as error:  # a broken archive can raise any error
            errors.append(_broken(archive, error, len(found)))
            reason = f"{len(found)} images were read before a fault: {error}"
        else:
            reason = ""
        if reason:
            if on_error != "skip":
                raise errors[-1]
            unreachable[archive] = reason
        images += found.values()
    if errors and not images:
        raise errors[0]
    if not images:
        raise ValueError(
            f"No image file in {', '.join(paths[:3])}. The suffixes of image files are "
            f"{' '.join(IMAGE_SUFFIXES)}."
        )
    return Contents(images, ignored + list(unreachable), replaced, unreachable)


def _broken(archive: str, error: Exception, n_read: int) -> ValueError:
    if archive.lower().endswith(_COMPRESSED):
        hint = "Write it without compression: images are already compressed."
    elif n_read:
        hint = (
            f"The file is truncated or damaged after {n_read} images. Get a whole copy, or pass "
            'on_error="skip" (--on-error skip) to use these.'
        )
    else:
        hint = "The file is truncated or is not a tar archive."
    broken = ValueError(f"{archive} cannot be read as a tar archive: {error}. {hint}")
    broken.__cause__ = error
    return broken


def _list(archive: str, found: dict[str, Member], ignored: list[str], replaced: list[str]) -> None:
    """Add the images of an archive, as far as it can be read, to ``found``."""
    contents: dict[str, tarfile.TarInfo] = {}
    with open_regular(archive) as file:
        version, offset = _version(file), -1
        with tarfile.open(fileobj=file, mode="r:") as members:
            for member in members:
                if members.offset <= offset:
                    raise tarfile.ReadError("the header of a member gives an invalid size")
                offset = members.offset
                key = _normal(member.name)
                if member.isreg():
                    contents[key] = member
                parts = _parts(key)
                hidden = any(map(is_hidden, parts[:-1])) or not is_image_file(parts[-1])
                if hidden or not (member.isreg() or member.islnk()):
                    if not member.isdir() and looks_like_picture(parts[-1]):
                        ignored.append(f"{archive}/{key}")
                        if before := found.pop(key, None):
                            replaced.append(before.path)
                    continue
                problem = ""
                if not member.isreg() and (target := _normal(member.linkname)) not in contents:
                    problem = f"a hard link to {target}, which does not precede it in the archive."
                    content = member
                else:
                    content = contents[key if member.isreg() else target]
                stored: Any = content.sparse
                pieces = None if stored is None else tuple(stored)
                if key in found and found[key].offset != content.offset_data:
                    replaced.append(found[key].path)
                found[key] = Member(
                    archive,
                    member.name,
                    content.offset_data,
                    content.size,
                    pieces,
                    version,
                    problem,
                )
                contents[key] = content
            _check_end(file, members.offset)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Check that an archive ends where its members end: there tarfile takes anything for the end.

    Raises
    ------
    tarfile.ReadError
        If no block of zeros is there, or something follows it.
    """
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"the header at byte {offset} is damaged")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {offset + len(block)} without an end mark")
    if file.read(_PADDING).strip(b"\0") or file.read(1):
        raise tarfile.ReadError(f"data follow the end mark at byte {offset}")


def _version(file: BinaryIO) -> tuple[int, int]:
    about = os.fstat(file.fileno())
    return about.st_size, about.st_mtime_ns


def _normal(name: str) -> str:
    """Return one spelling of a member's name."""
    return posixpath.normpath(name).lstrip("/")


def _joined(file: BinaryIO, pieces: Sequence[tuple[int, int]], size: int) -> bytes:
    """Return the content of a sparse file whose pieces follow each other in the archive."""
    content = bytearray(size)
    for start, length in pieces:
        piece = file.read(length) if 0 <= start <= start + length <= size else b""
        if len(piece) != length:
            raise ImageError("the list of holes of the sparse file is damaged.")
        content[start : start + length] = piece
    return bytes(content)
