"""Images in tar archives, WebDataset's shards among them: found once, then read in any order."""

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
    """Whether a path ends as a tar archive does, and is no folder."""
    name = os.fspath(path)
    return name.lower().endswith((".tar", *_COMPRESSED)) and not os.path.isdir(name)


def list_members(archives: Sequence[str | os.PathLike[str]]) -> list[Member]:
    """Image files of archives, in the order in which they lie there.

    Hard links are followed, symbolic ones and what is hidden are not there. Of several files with
    one name the last counts, as when the archive is unpacked.

    Raises
    ------
    ValueError
        If one is no tar archive, or compressed, or if there is no image in any.
    """
    found: list[Member] = []
    paths = [os.fspath(archive) for archive in archives]
    for archive in paths:
        try:
            found += _members(archive)
        except (tarfile.TarError, KeyError) as error:
            hint = "It is cut short, or something else."
            if archive.lower().endswith(_COMPRESSED):
                hint = "Write it without compression: images are compressed already."
            raise ValueError(
                f"{archive} cannot be read as a tar archive: {error}. {hint}"
            ) from error
    if not found:
        raise ValueError(
            f"No image file in {', '.join(paths[:3])}: files ending in "
            f"{' '.join(IMAGE_SUFFIXES)} are looked for."
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
