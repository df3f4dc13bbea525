"""Images in tar archives: read in any order, and none lost silently."""

import gzip
import io
import re
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sklearn_excb.data.open_source import open_source
from sklearn_excb.exceptions import ImageError, SkippedImageWarning
from tests.small_images import COLOUR, all_of, as_png, folder_of, tar_of


def test_archives_are_read_in_any_order(tmp_path):
    shards = []
    for number in range(2):
        files = {}
        for i, image in enumerate(COLOUR):
            files[f"{number}{i}.png"] = as_png(np.roll(image, number))
            files[f"{number}{i}.cls"] = b"7"
        files["._hidden.png"] = b"left by some systems"
        shards.append(tar_of(tmp_path / f"shard-{number}.tar", files))
    source = open_source(shards)
    assert source.names is not None
    assert source.names[6] == str(tmp_path / "shard-1.tar" / "11.png")
    for index in (9, 0, 6):
        expected = np.roll(COLOUR[index % 5], index // 5)
        np.testing.assert_array_equal(source.load_one(index).permute(1, 2, 0).numpy(), expected)
    assert len(open_source(shards[0])) == len(COLOUR)


def test_archives_that_cannot_be_used(tmp_path):
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(tar_of(tmp_path / "a.tar", {"a.png": b""}).read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar\.gz cannot be read.*without compression"):
        open_source(packed)
    with pytest.raises(ValueError, match=r"No image file in .*b\.tar"):
        open_source(tar_of(tmp_path / "b.tar", {"a.txt": b""}))
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / "c.tar")
    source = open_source(tmp_path / "a.tar", on_error="skip")
    source.load_one(0)
    assert source.skipped()[0].name == str(tmp_path / "a.tar" / "a.png")


def test_links_names_and_hidden_files_of_archives(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:

        def add(name, content=b"", **attributes):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            archive.addfile(member, io.BytesIO(content))

        add("./0.png", as_png(COLOUR[0]))
        add("hard.png", type=tarfile.LNKTYPE, linkname="./0.png")
        add("soft.png", type=tarfile.SYMTYPE, linkname="./0.png")
        add(".cache/a.png", as_png(COLOUR[1]))
        add("odd/")
        add("/abs/x.png", as_png(COLOUR[2]))
        add("./0.png", as_png(COLOUR[3]))
    with pytest.warns(SkippedImageWarning, match="1 images of archives are not among the 3"):
        source = open_source(path)
    assert source.names == [f"{path}/./0.png", f"{path}/hard.png", f"{path}/abs/x.png"]
    loaded = [image.permute(1, 2, 0).numpy() for image in all_of(source)]
    for image, expected in zip(loaded, (COLOUR[3], COLOUR[0], COLOUR[2]), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_members_with_the_name_of_a_later_member_are_told(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for i, name in enumerate(["a.png", "k.png", "a.png", "./k.png", "gone.png", "gone.png"]):
            member = tarfile.TarInfo(name)
            member.size = len(as_png(COLOUR[i % 5]))
            if i == 5:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "a.png", 0
            archive.addfile(member, io.BytesIO(as_png(COLOUR[i % 5])))
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./a.png"  # replaces nothing
        archive.addfile(link)
    other = tar_of(tmp_path / "b.tar", {"a.png": as_png(COLOUR[0])})
    with pytest.warns(SkippedImageWarning, match=rf"3 images .* among the 3 .*same name.*{path}/a"):
        source = open_source([path, other])
    assert source.names == [f"{path}/a.png", f"{path}/./k.png", f"{other}/a.png"]
    for image, expected in zip(all_of(source), (COLOUR[2], COLOUR[3], COLOUR[0]), strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    why = "a later member of the archive has the same name"
    told = [f"{path}/{name} ({why})" for name in ("a.png", "k.png", "gone.png")]
    assert source.ignored == [f"{path}/gone.png", *told]


def test_archives_and_folders_in_the_wrong_place_are_told_apart(tmp_path):
    shard = tar_of(tmp_path / "a.tar", {"a.png": as_png(COLOUR[0])})
    with pytest.raises(ValueError, match=r"Pass tar archives as a list: sorted\(folder\.glob"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="tar archives and other files"):
        open_source([shard, tmp_path / "b.png"])
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Pass it by itself"):
        open_source([tmp_path])
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cut\.tar cannot be read.*The file is truncated"):
        open_source(cut)
    (tmp_path / "photos.tar").mkdir()
    folder_of(tmp_path / "photos.tar", COLOUR)
    assert len(open_source(tmp_path / "photos.tar")) == len(COLOUR)


def headers_of(archive):
    with tarfile.open(archive) as members:
        return [member.offset for member in members]


@given(st.data())
@settings(max_examples=60)
def test_no_damage_to_the_headers_of_an_archive_loses_an_image_silently(data):
    files = {f"{i}.png": as_png(image) for i, image in enumerate(COLOUR)}
    with tempfile.TemporaryDirectory() as folder:
        path = tar_of(Path(folder) / "a.tar", files)
        content, headers = bytearray(path.read_bytes()), headers_of(path)
        end = headers[-1] + 512 + -(-len(files["4.png"]) // 512) * 512
        if data.draw(st.booleans(), "cut"):
            del content[data.draw(st.integers(0, end), "at") :]
        else:
            header = data.draw(st.sampled_from(headers), "header")
            at = data.draw(st.integers(0, 511).filter(lambda at: at != 155), "at")  # a space
            content[header + at] ^= 1 << data.draw(st.integers(0, 7), "bit")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar cannot be read.*(truncated|not a tar)"):
            open_source(path)
        whole = tar_of(Path(folder) / "whole.tar", files)
        source = open_source([path, whole], on_error="skip")
        assert list(source.unreachable) == [str(path)]
        loaded = all_of(source)
        skipped = {image.index for image in source.skipped()}  # its content is cut off
        assert len(skipped) <= 1
        for i in set(range(len(loaded))) - skipped:
            expected = COLOUR[int(source.names[i][-5])]
            np.testing.assert_array_equal(loaded[i].permute(1, 2, 0).numpy(), expected)


def test_what_follows_the_end_of_an_archive_is_not_left_out_silently(tmp_path):
    first = tar_of(tmp_path / "a.tar", {"a.png": as_png(COLOUR[0])})
    second = tar_of(tmp_path / "b.tar", {"b.png": as_png(COLOUR[1])})
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(ValueError, match="data follow the end mark"):
        open_source(first)


def sparse_tar(path, size, stored):
    """An archive with a sparse file, of which ``stored`` has the bytes by position, and 0.png."""
    header = tarfile.TarInfo("sparse.bmp")
    header.type = tarfile.GNUTYPE_SPARSE
    header.size = sum(map(len, stored.values()))
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    numbers = [n for at, piece in stored.items() for n in (at, len(piece))]
    for i, number in enumerate(numbers):
        block[386 + 12 * i : 398 + 12 * i] = b"\x80" + number.to_bytes(11, "big")
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    content = b"".join(stored.values())
    beside = tar_of(path, {"0.png": as_png(COLOUR[0])}).read_bytes()
    path.write_bytes(bytes(block) + content + bytes(-len(content) % 512) + beside)
    return path


def test_sparse_members_are_read_with_their_holes(tmp_path):
    image = np.zeros((60, 60, 3), np.uint8)
    image[:9], image[-9:] = 255, (255, 0, 7)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "BMP")
    content = file.getvalue()
    last = len(content) - 2048
    stored = {0: content[:2048], last: content[last:]}
    source = open_source(sparse_tar(tmp_path / "a.tar", len(content), stored))
    found = [image.permute(1, 2, 0).numpy() for image in all_of(source)]
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], COLOUR[0])


@pytest.mark.parametrize(
    ("size", "stored", "reason"),
    [
        (2**40, {0: b"BM"}, r"1,099\.5 GB, but one image may take"),
        (100, {99: b"BM"}, "list of holes of the sparse file"),
        (100, {2**50: b"BM"}, "list of holes of the sparse file"),
    ],
)
def test_sparse_members_that_lie_are_skipped(tmp_path, size, stored, reason):
    source = open_source(sparse_tar(tmp_path / "a.tar", size, stored), on_error="skip")
    np.testing.assert_array_equal(all_of(source)[1].permute(1, 2, 0).numpy(), COLOUR[0])
    assert [skipped.index for skipped in source.skipped()] == [0]
    assert re.search(reason, source.skipped()[0].reason)


@pytest.mark.parametrize(
    ("target", "found"), [("./a/0.png", 0), ("/a//0.png", 0), ("a/../a/0.png", 0), ("b.png", None)]
)
def test_hard_links_in_any_spelling_and_to_nothing(tmp_path, target, found):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, image in (("a/0.png", COLOUR[0]), ("1.png", COLOUR[1])):
            member = tarfile.TarInfo(name)
            member.size = len(as_png(image))
            archive.addfile(member, io.BytesIO(as_png(image)))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, target
        archive.addfile(link)
    source = open_source(path, on_error="skip")
    loaded = all_of(source)
    if found is None:
        assert [(s.index, "hard link to b.png" in s.reason) for s in source.skipped()] == [
            (2, True)
        ]
    else:
        np.testing.assert_array_equal(loaded[2].permute(1, 2, 0).numpy(), COLOUR[found])


@pytest.mark.parametrize(
    "name",
    ["C:\\fotos\\0.png", "a\\CON.png", "NUL.png", "aux/0.png", "a?*|.png", "../0.png", "a./0 .png"],
)
def test_names_of_windows_and_odd_ones_in_archives(tmp_path, name):
    source = open_source(tar_of(tmp_path / "a.tar", {name: as_png(COLOUR[0])}))
    np.testing.assert_array_equal(all_of(source)[0].permute(1, 2, 0).numpy(), COLOUR[0])
    hidden = tar_of(tmp_path / "b.tar", {"0.png": as_png(COLOUR[0]), "a\\.b\\1.png": b""})
    assert len(open_source(hidden)) == 1


def test_an_archive_that_changes_after_it_was_listed_is_noticed(tmp_path):
    path = tar_of(tmp_path / "a.tar", {f"{i}.png": as_png(COLOUR[i]) for i in range(3)})
    source = open_source(path)
    tar_of(path, {f"{i}.png": as_png(COLOUR[i]) for i in (2, 1, 0, 3)})
    with pytest.raises(ImageError, match=r"0\.png: the archive has changed"):
        source.load_one(0)
