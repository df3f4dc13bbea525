"""What users bring: arrays, lists, folders, data sets; and what is refused, with which words."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sklearn_excb.data.channel_statistics import channel_statistics
from sklearn_excb.data.folders import list_images
from sklearn_excb.data.open_source import are_rows, open_source
from sklearn_excb.data.sources import typical_shape
from sklearn_excb.exceptions import ImageError
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.whole_images import whole_images
from tests.small_images import COLOUR, GRAY, all_of, folder_of


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "PIL", "data set", "dict"])
def test_the_same_images_in_every_form(kind):
    forms = {
        "array": COLOUR,
        "tensor": torch.from_numpy(COLOUR),
        "list": list(COLOUR),
        "PIL": [Image.fromarray(image) for image in COLOUR],
        "data set": Pairs(COLOUR),
        "dict": Dicts(COLOUR),
    }
    source = open_source(forms[kind])
    assert source.n_channels == 3
    assert typical_shape(source) == (6, 7)
    loaded = all_of(source)
    for image, expected in zip(loaded, COLOUR, strict=True):
        np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), expected)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return Image.fromarray(self.images[i]), 3


class Dicts(Pairs):
    def __getitem__(self, i):
        return {"image": self.images[i], "label": 3}


def test_gray_arrays_have_one_channel():
    source = open_source(GRAY)
    assert source.n_channels == 1
    np.testing.assert_array_equal(all_of(source)[:, 0].numpy(), GRAY)


def test_more_channels_are_kept():
    assert all_of(open_source(np.zeros((2, 8, 8, 5)))).shape == (2, 5, 8, 8)


def test_statistics_of_channels_are_those_of_the_pixels():
    mean, std = channel_statistics(open_source(GRAY))
    assert mean[0] == pytest.approx(GRAY.mean() / 255, rel=1e-5)
    assert std[0] == pytest.approx(GRAY.std() / 255, rel=1e-5)


def test_a_folder_is_searched_through_in_natural_order(tmp_path):
    names = ["b/img10.png", "b/img2.png", "a.PNG", "b/.hidden.png", ".git/x.png", "c/Ünïcode 1.jpg"]
    folder_of(tmp_path, [COLOUR[0]] * len(names), names)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = list_images(tmp_path)
    found = [Path(path).relative_to(tmp_path).as_posix() for path in listing.images]
    others = [Path(path).relative_to(tmp_path).as_posix() for path in listing.ignored]
    assert others == ["notes.txt", ".git", "b/.hidden.png"]
    assert found == ["a.PNG", "b/img2.png", "b/img10.png", "c/Ünïcode 1.jpg"]


def test_files_become_colour_unless_gray_is_asked_for(tmp_path):
    folder_of(tmp_path, GRAY)
    source = open_source(tmp_path)
    assert source.n_channels == 3
    np.testing.assert_array_equal(all_of(source)[2][1].numpy(), GRAY[2])
    assert open_source(tmp_path, n_channels=1).n_channels == 1
    assert len(open_source(list_images(tmp_path).images[:2])) == 2


def test_tensors_of_a_data_set_may_have_channels_first():
    from torchvision.transforms import v2

    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    class Tensors(Pairs):
        def __getitem__(self, i):
            return to_tensor(self.images[i]), 3

    source = open_source(Tensors(COLOUR))
    assert source.n_channels == 3
    assert typical_shape(source) == (6, 7)
    expected = torch.from_numpy(COLOUR[1]).permute(2, 0, 1) / 255
    torch.testing.assert_close(all_of(source)[1], expected)


@pytest.mark.parametrize("dtype", [">f4", ">u2", "float16", "float64"])
def test_any_byte_order_and_width(dtype):
    scale = 1 if dtype == ">u2" else 1 / 255
    images = (GRAY * scale).astype(dtype)
    loaded = all_of(open_source(images))
    np.testing.assert_allclose(loaded[:, 0].to(torch.float64).numpy(), GRAY * scale, atol=1e-3)


def test_bfloat16_and_read_only_arrays():
    source = open_source((torch.from_numpy(GRAY) / 255).to(torch.bfloat16))
    assert all_of(source).dtype == torch.float32
    read_only = [np.asarray(Image.fromarray(image)) for image in GRAY]
    assert len(all_of(open_source(read_only))) == 5


def test_what_is_rows_and_what_is_images():
    assert are_rows(np.zeros((3, 4)))
    assert are_rows([[1.0, 2.0], [3.0, 4.0]])
    assert are_rows(torch.zeros(3, 4))
    assert not are_rows(np.zeros((3, 4, 4)))
    assert not are_rows(list(np.zeros((3, 4, 4))))
    assert not are_rows("photos/")
    assert not are_rows(["a.png", "b.png"])
    assert not are_rows(np.array(["a.png", "b.png"]))
    assert not are_rows([Image.new("RGB", (4, 4))])
    assert not are_rows(pd.Series(["a.png", "b.png"]))
    assert not are_rows([(np.zeros((4, 4)), 3)])
    assert are_rows(pd.DataFrame({"a": [1.0], "b": [2.0]}))
    assert are_rows([(1.0, 2.0), (3.0, 4.0)])


def test_paths_in_arrays_and_series_and_pairs_in_lists(tmp_path):
    folder_of(tmp_path, COLOUR)
    names = list_images(tmp_path).images
    for paths in (np.array(names), np.array(names, dtype=object), pd.Series(names)):
        source = open_source(paths)
        assert source.names == names
    assert len(all_of(open_source([(image, 1) for image in COLOUR]))) == 5


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "readme.md").write_text("")
    with pytest.raises(
        ValueError, match=r"No image file in .* \(1 other files and folders\).*\.jpg"
    ):
        list_images(tmp_path)


def test_a_missing_folder_a_file_and_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"is a pattern.*sorted\(glob\.glob\('photos/\*"):
        open_source("photos/*.jpg")
    folder_of(tmp_path, COLOUR[:1])
    with pytest.raises(NotADirectoryError, match="is a file"):
        open_source(tmp_path / "0.png")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 image files do not exist\. .*9\.png"):
        open_source([tmp_path / "0.png", tmp_path / "9.png"])


@pytest.mark.parametrize("content", [b"", b"not an image", "half"])
def test_a_broken_file_is_named_with_the_reason(tmp_path, content):
    folder_of(tmp_path, COLOUR)
    broken = tmp_path / "3.png"
    broken.write_bytes(broken.read_bytes()[:60] if content == "half" else content)
    reason = {b"": "the file is empty", b"not an image": "not an image"}.get(
        content, "cannot be read"
    )
    with pytest.raises(ImageError, match=rf"Image .*3\.png:? {reason}"):
        all_of(open_source(tmp_path))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 8, 8), np.nan), "NaN or infinite"),
        (np.arange(128.0).reshape(2, 8, 8), r"run from 0 to 127.*their maximum: X / 127"),
        (np.linspace(-1, 1, 128).reshape(2, 8, 8), r"run from -1 to 1.*Shift and scale"),
        (np.full((2, 8, 8), 200), r"int64 run from 200 to 200.*astype\('uint8'\)"),
        (np.zeros((2, 8, 8), dtype="U3"), "type <U3 cannot be used"),
        (np.zeros((2, 8, 8), dtype=complex), "type complex128 cannot be used"),
        (np.full((2, 8, 8), "a", dtype=object), "type object cannot be used"),
        (np.zeros((2, 5, 32, 32)), r"channels-first.*transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 3, 16, 16)), r"channels-first.*n_channels=16"),
        (np.zeros((2, 1, 8, 8)), r"channels-first.*n_channels=8"),
        (np.zeros((2, 3, 4, 4, 3)), "neither a set of images"),
        (np.zeros((0, 8, 8)), r"shape \(0, 8, 8\) is empty"),
        ([], "empty"),
        ([COLOUR[0], GRAY[0]], r"Image 1 of 2: mixed channel counts, 1 here and 3.*n_channels"),
        ([COLOUR[0], np.full((8, 8, 3), np.inf)], r"Image 1 of 2: .*NaN or infinite"),
        ([COLOUR[0], np.zeros((4,))], r"Image 1 of 2: .*shape \(4,\) is not an image"),
    ],
)
def test_bad_images_get_a_clear_error(images, message):
    with pytest.raises(ValueError, match=message):
        all_of(open_source(images))


def test_lists_of_mixed_channels_are_converted_when_asked():
    source = open_source([COLOUR[0], GRAY[0]], n_channels=3)
    assert [image.shape[0] for image in all_of(source)] == [3, 3]
    source = open_source([COLOUR[0], GRAY[0]], n_channels=1)
    assert [image.shape[0] for image in all_of(source)] == [1, 1]


def test_something_else_is_refused():
    with pytest.raises(TypeError, match="type int is not a collection of images"):
        open_source(7)
    with pytest.raises(ImageError, match=r"Image 0 of 5: a dict without an image.*label"):
        open_source(Labels(COLOUR))


class Labels(Pairs):
    def __getitem__(self, i):
        return {"label": 3}


def photo(height, width):
    y, x = np.mgrid[:height, :width] / height
    waves = [np.sin(9 * y + 3 * x), np.cos(7 * x), np.sin(5 * x * y)]
    return Image.fromarray((127 + 100 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_size_that_is_needed(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(960, 1290).save(tmp_path / "a.jpg", exif=exif, quality=95)
    source = open_source(tmp_path)
    whole = source.load_one(0)
    assert tuple(whole.shape[1:]) == ((960, 1290) if orientation == 1 else (1290, 960))
    for at_least, reduction in ((0, 1), (1, 8), (120, 8), (121, 4), (300, 2), (481, 1), (5000, 1)):
        small = source.load_one(0, at_least)
        assert min(small.shape[1:]) == 960 // reduction, at_least
        assert source.shape(0) == tuple(whole.shape[1:])
    recipe = ViewRecipe(64, 32, 2, 4, (0.5, 0.4), 0.2, (0.5,) * 3, (0.25,) * 3, flip=0.5)
    seen, reduced = (whole_images(source.load_one(0, n)[None], recipe) for n in (0, 120))
    assert (seen - reduced).abs().mean() < 0.05  # of a standard deviation


def test_pictures_of_the_user_are_left_as_they_are(tmp_path):
    photo(960, 960).save(tmp_path / "a.jpg")
    picture = Image.open(tmp_path / "a.jpg")
    assert open_source([picture]).load_one(0, at_least=8).shape == (3, 960, 960)


def test_natural_order_is_that_of_people(tmp_path):
    expected = ["1.5", "2", "10", "a", "A9", "a09", "a9", "a10", "b", "Z", "z2", "z10y2", "é"]
    for name in sorted(expected):
        (tmp_path / f"{name}.jpg").touch()
    assert [Path(path).stem for path in list_images(tmp_path).images] == expected


def test_items_within_items(tmp_path):
    folder_of(tmp_path, COLOUR)
    samples = [(path, 1) for path in list_images(tmp_path).images]
    assert not are_rows(samples)
    nested = [({"image": image}, 1) for image in COLOUR]
    for items in (samples, nested, [((image, 0), 1) for image in COLOUR]):
        for image, expected in zip(all_of(open_source(items)), COLOUR, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert not are_rows([None, *COLOUR])
