"""Images in tar archives, WebDataset's shards among them: found once, then read in any order."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from typing import NamedTuple

from sklearn_excb.files import EncodedPicture
from sklearn_excb.folders import IMAGE_SUFFIXES, is_image_file


class Member(NamedTuple):
    """An image file in an archive.

    Attributes
    ----------
    archive, name : str
        Path of the archive, and of the file in it.
    offset, size : int
        Where its content lies in the archive, in bytes.
    """

    archive: str
    name: str
    offset: int
    size: int

    def open(self) -> EncodedPicture:
        """Open the picture."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return EncodedPicture(file.read(self.size))


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path ends as a tar archive does."""
    return os.fspath(path).lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"))


def list_members(archives: Sequence[str | os.PathLike[str]]) -> list[Member]:
    """Image files of archives, in the order in which they lie there.

    Raises
    ------
    ValueError
        If one is no tar archive, or compressed, or if there is no image in any.
    """
    found = []
    paths = [os.fspath(archive) for archive in archives]
    for archive in paths:
        try:
            with tarfile.open(archive, "r:") as members:
                found += [
                    Member(archive, member.name, member.offset_data, member.size)
                    for member in members
                    if member.isreg() and is_image_file(member.name.rpartition("/")[2])
                ]
        except tarfile.TarError as error:
            raise ValueError(
                f"{archive} cannot be read as a tar archive: {error}. A compressed one has to be "
                "unpacked, or written without compression: images are compressed already."
            ) from error
    if not found:
        raise ValueError(
            f"No image file in {', '.join(paths[:3])}: files ending in "
            f"{' '.join(IMAGE_SUFFIXES)} are looked for."
        )
    return found
