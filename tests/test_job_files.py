"""What processes of one machine are told in a file: arrays in it, or in the file they come from."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from sklearn_excb.runtime.job_files import read_job, write_job

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
IMAGES = np.random.default_rng(0).integers(0, 255, (400, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def told(folder, value):
    write_job(folder / "job", value)
    return read_job(folder / "job"), (folder / "job").stat().st_size


FORMS = {
    "as it is": lambda array: array,
    "some rows": lambda array: array[7:50],
    "every third, backwards": lambda array: array[::-3],
    "channels first": lambda array: np.moveaxis(np.asarray(array), -1, 1),
    "one channel": lambda array: array[..., 1],
    "other numbers": lambda array: np.asarray(array).view(np.int8),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_what_is_mapped_from_a_file_stays_there(form, mapped, tmp_path):
    (read, more), size = told(tmp_path, (form(mapped), np.arange(3)))
    np.testing.assert_array_equal(read, form(IMAGES))
    assert read.strides == form(IMAGES).strides
    np.testing.assert_array_equal(more, np.arange(3))
    assert size < 2000
    read[0] = 0  # is its own
    np.testing.assert_array_equal(mapped, IMAGES)


@pytest.mark.parametrize(
    "what", ["in memory", "changed in memory", "file is gone", "file is another", "others"]
)
def test_what_is_not_in_a_file_as_it_is_is_written(what, mapped, tmp_path):
    array = np.array(IMAGES)
    if what == "changed in memory":
        array = np.load(tmp_path / "images.npy", mmap_mode="c")
        array[3] = 7
    if what == "file is gone":
        array = mapped
        (tmp_path / "images.npy").unlink()
    if what == "file is another":
        array = mapped
        np.save(tmp_path / "other.npy", np.zeros_like(IMAGES))
        (tmp_path / "other.npy").replace(tmp_path / "images.npy")
    if what == "others":
        array = mapped[[5, 2, 9]]
    read, size = told(tmp_path, {"images": array})
    np.testing.assert_array_equal(read["images"], array)
    assert size > array.nbytes


class Named(np.ndarray):
    """An array of a user's own kind."""


def test_arrays_that_are_more_than_an_array_stay_what_they_are(mapped, tmp_path):
    masked = np.ma.array(mapped, mask=mapped > 100)
    (first, second), _ = told(tmp_path, (masked, np.asarray(mapped).view(Named)))
    assert type(second) is Named
    np.testing.assert_array_equal(first.mask, masked.mask)
    assert first.sum() == masked.sum()


def test_a_file_is_opened_once_however_many_arrays_are_in_it(mapped, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 50, before[1]))
    try:
        read, size = told(tmp_path, list(mapped))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    np.testing.assert_array_equal(np.stack(read), IMAGES)
    assert size < IMAGES.nbytes / 2


def test_a_job_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match="pickle"):
        write_job(tmp_path / "job", threading.Lock())
    assert not list(tmp_path.iterdir())
