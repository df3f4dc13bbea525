"""Saved estimators: whole, or the one before; read only if unchanged; nothing in them is run."""

import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch

import sklearn_excb.checkpoint
from sklearn_excb import DamagedFileError, ExCBEstimator
from sklearn_excb.tensor_files import text_checksum
from tests.small_runs import DIGITS, Failing, assert_same_bits, result, small
from tests.test_resuming import Payload, cut, empty, flip


@pytest.fixture(scope="module")
def fitted():
    return small().fit(DIGITS)


@pytest.fixture
def saved(fitted, tmp_path):
    fitted.save(tmp_path / "run")
    return tmp_path / "run"


def tensors_of(folder):
    (file,) = folder.glob("tensors-*")
    return file


def redescribe(folder, change):
    """Change the description of a saved estimator as somebody who knows the checksum would."""
    file = folder / "estimator.json"
    description = json.loads(file.read_text())
    del description["checksum"]
    change(description)
    description["checksum"] = text_checksum(json.dumps(description, sort_keys=True))
    file.write_text(json.dumps(description))


def test_what_is_saved_comes_back_to_the_bit(saved, fitted):
    assert_same_bits(ExCBEstimator.load(saved), fitted)
    assert sorted(file.name for file in saved.iterdir()) == [
        "estimator.json",
        tensors_of(saved).name,
    ]


@pytest.mark.parametrize("damage", [flip, cut, empty])
@pytest.mark.parametrize("which", ["description", "tensors"])
def test_damaged_files_are_refused(which, damage, saved):
    damage(saved / "estimator.json" if which == "description" else tensors_of(saved))
    with pytest.raises(DamagedFileError, match="damaged"):
        ExCBEstimator.load(saved)


@pytest.mark.parametrize("which", ["description", "tensors"])
def test_a_pickle_in_the_place_of_a_file_is_not_run(which, saved):
    file = saved / "estimator.json" if which == "description" else tensors_of(saved)
    file.write_bytes(pickle.dumps(Payload(saved / "ran")))
    with pytest.raises(DamagedFileError):
        ExCBEstimator.load(saved)
    assert not (saved / "ran").exists()


def test_a_missing_file_is_named(saved):
    file = tensors_of(saved)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        ExCBEstimator.load(saved)


def test_tensors_of_another_estimator_are_refused(saved, tmp_path):
    small(random_state=1, epochs=0).fit(DIGITS).save(tmp_path / "other")
    os.replace(tensors_of(tmp_path / "other"), tensors_of(saved))
    with pytest.raises(DamagedFileError, match=r"not the file that .*estimator.json was written"):
        ExCBEstimator.load(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=8), "has format 8; this version .* reads format 7"),
        (lambda d: d.pop("format"), "has format None"),
        (lambda d: d.update(more=1), "other parts .* more unknown, none missing"),
        (lambda d: d.pop("facts"), "none unknown, facts missing"),
        (lambda d: d["settings"].update(more=1), "other settings .* more unknown"),
        (lambda d: d["parameters"].update(more=1), "parameters that .* does not know: more"),
        (lambda d: d["recipe"].update(more=1), "other values of ViewRecipe .* more unknown"),
        (lambda d: d["recipe"].update(kind="os.system"), "'os.system' is no kind of recipe"),
        (lambda d: d.update(tensors="../x.safetensors"), "is no file of tensors beside it"),
        (lambda d: d.update(tensors=7), "is no file of tensors beside it"),
    ],
)
def test_what_is_not_known_is_refused(change, said, saved):
    redescribe(saved, change)
    with pytest.raises(ValueError, match=said):
        ExCBEstimator.load(saved)


@pytest.mark.parametrize("content", ["7", "[]", "null", '"x"'])
def test_other_json_is_refused(content, saved):
    (saved / "estimator.json").write_text(content)
    with pytest.raises(ValueError, match="has format None"):
        ExCBEstimator.load(saved)


def test_a_save_that_is_cut_off_leaves_the_one_before(saved, fitted, monkeypatch):
    class CutOffError(Exception):
        pass

    def cut_off(*arguments, **options):
        raise CutOffError

    other = small(random_state=1, epochs=0).fit(DIGITS)
    with monkeypatch.context() as patched:
        patched.setattr(sklearn_excb.checkpoint.json, "dumps", cut_off)
        with pytest.raises(CutOffError):
            other.save(saved)
    with monkeypatch.context() as patched:  # after the tensors, before the description
        patched.setattr(sklearn_excb.checkpoint, "_checksum", cut_off)
        with pytest.raises(CutOffError):
            other.save(saved)
    assert_same_bits(ExCBEstimator.load(saved), fitted)
    other.save(saved)
    assert_same_bits(ExCBEstimator.load(saved), other)
    assert len(list(saved.iterdir())) == 2


def test_files_can_be_read_by_whom_the_umask_lets(fitted, tmp_path):
    before = os.umask(0o022)
    try:
        fitted.save(tmp_path)
    finally:
        os.umask(before)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_paths_and_devices_are_saved_as_words(tmp_path):
    excb = small(epochs=1, checkpoint_dir=tmp_path / "states", device=torch.device("cpu"))
    excb.fit(DIGITS).save(tmp_path / "run")
    loaded = ExCBEstimator.load(tmp_path / "run")
    assert loaded.checkpoint_dir == str(tmp_path / "states")
    assert loaded.device == "cpu"


def test_a_failed_fit_keeps_what_can_be_saved(fitted, tmp_path):
    def fail():
        raise ValueError("no more images")

    excb = small().fit(DIGITS)
    with pytest.raises(ValueError, match="no more images"):
        excb.fit(Failing(DIGITS, at=40, act=fail))
    excb.save(tmp_path)
    loaded = result(ExCBEstimator.load(tmp_path))
    assert loaded == result(fitted)
    np.testing.assert_array_equal(excb.predict(DIGITS), fitted.labels_)
