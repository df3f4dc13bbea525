"""Images in tar archives, such as WebDataset shards: listed once, then read in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

from sklearn_excb.data.folders import IMAGE_SUFFIXES, is_image_file
from sklearn_excb.data.image_files import EncodedPicture

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Member(NamedTuple):
    """An image file in an archive.

    Attributes
    ----------
    archive, name : str
        Path of the archive, and path of the file inside the archive.
    offset, size : int
        Position and length of the file's content in the archive, in bytes.
    """

    archive: str
    name: str
    offset: int
    size: int

    def open(self) -> EncodedPicture:
        """Open the image."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return EncodedPicture(file.read(self.size))


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the suffix of a tar archive and is not a folder."""
    name = os.fspath(path)
    return name.lower().endswith((".tar", *_COMPRESSED)) and not os.path.isdir(name)


def list_members(archives: Sequence[str | os.PathLike[str]]) -> list[Member]:
    """List the image files of archives, in the order of the archives and of their members.

    The list follows hard links and leaves out symbolic links and hidden files. If several files
    have the same name, the last one counts, as it does when the archive is unpacked.

    Raises
    ------
    ValueError
        If an archive is compressed or is not a tar archive, or if no archive holds an image.
    """
    found: list[Member] = []
    paths = [os.fspath(archive) for archive in archives]
    for archive in paths:
        try:
            found += _members(archive)
        except (tarfile.TarError, KeyError) as error:
            hint = "The file is truncated or is not a tar archive."
            if archive.lower().endswith(_COMPRESSED):
                hint = "Write it without compression: images are compressed already."
            raise ValueError(
                f"{archive} cannot be read as a tar archive: {error}. {hint}"
            ) from error
    if not found:
        raise ValueError(
            f"No image file in {', '.join(paths[:3])}. The suffixes of image files are "
            f"{' '.join(IMAGE_SUFFIXES)}."
        )
    return found


def _members(archive: str) -> list[Member]:
    contents: dict[str, tarfile.TarInfo] = {}
    found: dict[str, Member] = {}
    with tarfile.open(archive, "r:") as members:
        for member in members:
            if member.isreg():
                contents[member.name] = member
            elif member.islnk():
                contents[member.name] = contents[member.linkname]
            else:
                continue
            parts = member.name.removeprefix("./").split("/")
            if is_image_file(parts[-1]) and not any(part.startswith(".") for part in parts):
                content = contents[member.name]
                found[member.name] = Member(archive, member.name, content.offset_data, content.size)
    return list(found.values())
