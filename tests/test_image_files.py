"""Folders and files: which are listed, which are opened, and what is told of the others."""

import errno
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sklearn_excb.data import limits
from sklearn_excb.data.archives import list_members
from sklearn_excb.data.folders import IMAGE_SUFFIXES, list_images
from sklearn_excb.data.image_files import FORMATS
from sklearn_excb.data.open_source import open_source
from sklearn_excb.data.unusable_images import ignored_with_reasons, warn_unread
from sklearn_excb.exceptions import ImageError, SkippedImageWarning
from tests.small_images import COLOUR, all_of, as_png, folder_of, tar_of


@pytest.mark.parametrize("code", ["EACCES", "EIO", "ESTALE", "ELOOP", "ENOTCONN", "ENAMETOOLONG"])
def test_a_folder_that_cannot_be_opened_does_not_vanish(tmp_path, monkeypatch, code):
    folder_of(tmp_path, COLOUR[:2], ["a/0.png", "b/c/0.png"])
    scandir = os.scandir

    def failing(path):
        if Path(path).name == "c":
            raise OSError(getattr(errno, code), "out of order", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    kind = type(OSError(getattr(errno, code), ""))
    with pytest.raises(
        kind, match=r"b/c/ cannot be opened: out of order.*on_error=.skip"
    ) as raised:
        open_source(tmp_path)
    assert type(raised.value) is kind
    source = open_source(tmp_path, on_error="skip")
    with pytest.warns(SkippedImageWarning, match=r"not among the 1 images of X.*b/c/: out of or"):
        warn_unread(source)
    assert ignored_with_reasons(source) == [f"{tmp_path}/b/c/ (out of order)"]
    with pytest.raises(kind, match="c/ cannot be opened"):
        open_source(tmp_path / "b" / "c", on_error="skip")


def test_links_that_lead_nowhere_are_told(tmp_path):
    folder_of(tmp_path, COLOUR[:1])
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert list_images(tmp_path).unreachable == {f"{tmp_path}/gone": os.strerror(errno.ENOENT)}
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop cannot be opened"):
        list_images(tmp_path)
    listing = list_images(tmp_path, on_error="skip")
    assert list(listing.unreachable) == listing.ignored == [f"{tmp_path}/gone", f"{tmp_path}/loop"]


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir/a.jpg", "#recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "_gsdata_"),
        *("System Volume Information", ".Trashes", "Thumbs", ".thumbnails", "@Recycle"),
        *("FOUND.000", "found.017", "~snapshot", "@__thumb"),
    ],
)
def test_folders_of_systems_are_ignored_as_hidden_ones_are(tmp_path, name):
    folder_of(tmp_path, COLOUR[:2], ["0.png", f"album/{name}/0.png"])
    listing = list_images(tmp_path)
    assert listing.images == [f"{tmp_path}/0.png"]
    assert listing.ignored == [f"{tmp_path}/album/{name.split('/')[0]}/"]
    files = {"0.png": as_png(COLOUR[0]), f"album/{name}/0.png": as_png(COLOUR[1])}
    found = list_members([tar_of(tmp_path / "a.tar", files)])
    assert [member.name for member in found.images] == ["0.png"]
    assert found.ignored == [f"{tmp_path}/a.tar/album/{name}/0.png"]


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PCX", "ICO"]
)
@pytest.mark.parametrize("route", ["folder", "bytes", "archive"])
def test_only_documented_formats_are_opened(tmp_path, content, route):
    if isinstance(content, str):
        file = io.BytesIO()
        Image.fromarray(photo_pixels := np.repeat(COLOUR[0], 3, axis=0)).save(file, content)
        assert Image.open(io.BytesIO(file.getvalue())).format == content, photo_pixels.shape
        content = file.getvalue()
    (tmp_path / "0.png").write_bytes(content)
    routes = {
        "folder": tmp_path,
        "bytes": [content],
        "archive": tar_of(tmp_path / "a.tar", {"0.png": content}),
    }
    with pytest.raises(ImageError, match="not an image in a known format"):
        all_of(open_source(routes[route]))


def test_the_suffixes_of_images_are_those_of_the_formats():
    Image.init()
    formats = {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES}
    assert formats == set(FORMATS)


@pytest.mark.parametrize("kind", ["sparse file", "many pixels", "picture"])
def test_files_that_claim_more_than_the_memory_there_is(tmp_path, monkeypatch, kind):
    folder_of(tmp_path, COLOUR)
    claims = tmp_path / "3.png"
    if kind == "sparse file":
        os.truncate(claims, 2**42)
    else:
        Image.new("1", (9000, 9000)).save(claims)
        monkeypatch.setattr(limits, "available_memory", lambda device: 2**31)
    X = tmp_path
    if kind == "picture":
        X = [Image.open(io.BytesIO(path.read_bytes())) for path in sorted(tmp_path.iterdir())]
    source = open_source(X, on_error="skip", n_channels=3)
    all_of(source)
    assert [skipped.index for skipped in source.skipped()] == [3]
    assert re.search(r"[0-9]\.[0-9] GB.*quarter of the free memory", source.skipped()[0].reason)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.jpg", "a"])
@pytest.mark.parametrize("route", ["itself", "list", "data set"])
def test_pipes_never_hang_a_reader(tmp_path, name, route):
    pipe = tmp_path / name
    os.mkfifo(pipe)
    X = {"itself": pipe, "list": [pipe], "data set": {0: pipe}}[route]
    with pytest.raises((OSError, ValueError), match=r"regular file|is a file"):
        all_of(open_source(X))


def test_files_that_may_not_be_looked_at_are_not_called_missing(tmp_path, monkeypatch):
    folder_of(tmp_path, COLOUR[:1])

    def refused(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", refused)
        for X in (tmp_path, [tmp_path / "0.png"]):
            with pytest.raises(PermissionError, match="cannot be opened: Permission denied"):
                open_source(X)
