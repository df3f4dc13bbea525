"""Saved estimators: whole, or the one before; read only if unchanged; nothing in them is run."""

import json
import os
import pickle
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import sklearn_excb.saving.saved_estimator
from sklearn_excb import DamagedFileError, ExCBEstimator
from sklearn_excb.bulk import write_results
from sklearn_excb.settings.validation import CHECKPOINT_PARAMETERS
from sklearn_excb.storage.tensor_files import open_safetensors, text_checksum, write_tensors
from tests.small_runs import DIGITS, Failing, assert_same_bits, result, small
from tests.test_resume import Payload, backbone, cut, empty, flip


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
    with pytest.raises(DamagedFileError, match=r"does not belong to .*estimator.json"):
        ExCBEstimator.load(saved)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(format=99), "has format 99, but this version .* reads formats 7 to 9"),
        (lambda d: d.pop("format"), "is damaged: it does not contain a format"),
        (lambda d: d.update(more=1), r"other parts .*unknown: more; missing: none\)"),
        (lambda d: d.pop("facts"), r"unknown: none; missing: facts\)"),
        (lambda d: d["settings"].update(more=1), "other settings .*unknown: more"),
        (lambda d: d["parameters"].update(more=1), "parameters that .* does not know: more"),
        (lambda d: d["facts"].update(predict="x", K=7), "facts that .* does not know: K, predict"),
        (lambda d: d["facts"].update(_fitted=7), "facts that .* does not know: _fitted"),
        (lambda d: d["recipe"].update(more=1), "other values of ViewRecipe .*unknown: more"),
        (lambda d: d["recipe"].update(kind="os.system"), "unknown kind of recipe, 'os.system'"),
        (lambda d: d.update(tensors="../x.safetensors"), "is not a file of tensors beside it"),
        (lambda d: d.update(tensors=7), "is not a file of tensors beside it"),
        (
            lambda d: d.update(facts=7),
            "is not a file of save.*: .*facts|AttributeError",
        ),
        (lambda d: d["settings"].update(K="a few"), "is not a file of save.. or a checkpoint"),
        (lambda d: d.update(history=[1]), "is not a file of save.. or a checkpoint"),
    ],
)
def test_what_is_not_known_is_refused(change, said, saved):
    redescribe(saved, change)
    with pytest.raises(ValueError, match=said):
        ExCBEstimator.load(saved)


def test_no_file_says_where_a_fit_writes(saved, tmp_path):
    given = {name: str(tmp_path / "planted") for name in CHECKPOINT_PARAMETERS}
    redescribe(saved, lambda description: description["parameters"].update(given))
    loaded, unchanged = ExCBEstimator.load(saved).get_params(), ExCBEstimator().get_params()
    assert [loaded[name] for name in given] == [unchanged[name] for name in given]


@pytest.mark.parametrize(
    "content", ["7", "[]", "{}", "null", '"x"', "{", "NaN", "[" * 10**5, "9" * 5000, "\0"]
)
def test_other_json_is_damage(content, saved, fitted):
    (saved / "estimator.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"estimator.json is damaged: .*Load another copy"):
        ExCBEstimator.load(saved)
    fitted.save(saved)  # in its place
    assert_same_bits(ExCBEstimator.load(saved), fitted)


@pytest.mark.parametrize("content", [7, [], {}, None, {"__tensor__": "x"}, {"__tuple__": 7}])
def test_other_content_of_a_checkpoint_is_damage(content, tmp_path):
    file = tmp_path / "step-000000001.safetensors"
    write_tensors(file, {}, content)
    with pytest.raises(DamagedFileError, match=r"is damaged, or is not a checkpoint"):
        ExCBEstimator.load(file)
    with pytest.raises(ValueError, match="none can be read"):
        small(checkpoint_dir=tmp_path).fit(DIGITS)


def test_a_save_that_is_cut_off_leaves_the_one_before(saved, fitted, monkeypatch):
    class CutOffError(Exception):
        pass

    def cut_off(*arguments, **options):
        raise CutOffError

    other = small(random_state=1, epochs=0).fit(DIGITS)
    with monkeypatch.context() as patched:
        patched.setattr(sklearn_excb.saving.saved_estimator.json, "dumps", cut_off)
        with pytest.raises(CutOffError):
            other.save(saved)
    with monkeypatch.context() as patched:  # after the tensors, before the description
        patched.setattr(sklearn_excb.saving.saved_estimator, "_checksum", cut_off)
        with pytest.raises(CutOffError):
            other.save(saved)
    assert_same_bits(ExCBEstimator.load(saved), fitted)
    other.save(saved)
    assert_same_bits(ExCBEstimator.load(saved), other)
    assert len(list(saved.iterdir())) == 2


@pytest.fixture(scope="module")
def others():
    return [small(random_state=seed, epochs=0).fit(DIGITS) for seed in (1, 2, 3)]


STAGES = ["_superseded", "write_tensors", "_checksum"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("within", [None, *STAGES])
def test_saves_to_one_folder_leave_the_last_to_finish(stage, within, saved, others, monkeypatch):
    monkeypatch.setattr(sklearn_excb.saving.saved_estimator, "_alone_in", nullcontext)  # no locks
    waiting = [(within, others[1]), (None, others[2])]

    def save(estimator, stage):
        """Save, and let others save completely after a stage."""
        if stage is None:
            estimator.save(saved)
            assert_same_bits(ExCBEstimator.load(saved), estimator)
            return
        done = getattr(sklearn_excb.saving.saved_estimator, stage)

        def meanwhile(*arguments):
            found = done(*arguments)
            patched.undo()
            if waiting:
                next_stage, next_one = waiting.pop(0)
                save(next_one, next_stage)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(sklearn_excb.saving.saved_estimator, stage, meanwhile)
            estimator.save(saved)
        assert_same_bits(ExCBEstimator.load(saved), estimator)

    save(others[0], stage)
    assert_same_bits(ExCBEstimator.load(saved), others[0])


@pytest.mark.skipif(sys.platform == "win32", reason="the system locks no folders")
def test_saves_to_one_folder_wait_for_each_other(saved, others):
    with ThreadPoolExecutor(3) as pool:
        for save in [pool.submit(excb.save, saved) for excb in others * 4]:
            save.result()
    assert len(list(saved.iterdir())) == 2
    ExCBEstimator.load(saved)


def test_tensors_are_read_to_the_end_though_the_file_is_removed(saved, others):
    file = tensors_of(saved)
    with open_safetensors(file) as opened:
        others[0].save(saved)
        assert not file.exists() or sys.platform == "win32"
        for name in opened.keys():  # noqa: SIM118
            opened.get_tensor(name)


def test_a_load_while_another_saves_reads_what_is_there_then(saved, others, monkeypatch):
    read, waiting = sklearn_excb.saving.saved_estimator.read_tensors, list(others)

    def meanwhile(file):
        if waiting:
            waiting.pop().save(saved)
        return read(file)

    monkeypatch.setattr(sklearn_excb.saving.saved_estimator, "read_tensors", meanwhile)
    assert_same_bits(ExCBEstimator.load(saved), others[0])
    assert not waiting


def test_what_killed_saves_leave_is_removed_in_time(saved, others):
    young, old = (saved / f"tensors-{digit * 16}.safetensors" for digit in "0f")
    young.touch()
    old.touch()
    os.utime(old, (0, 0))
    others[0].save(saved)
    assert young.exists()
    assert not old.exists()


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")


@needs_pipes
@pytest.mark.parametrize("which", ["description", "tensors", "state"])
def test_a_pipe_in_the_place_of_a_file_is_refused(which, saved, tmp_path):
    named = {"description": saved / "estimator.json", "tensors": tensors_of(saved)}
    file = named.get(which, tmp_path / "best.safetensors")
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with pytest.raises(OSError, match="not a regular file"):
        ExCBEstimator.load(file if which == "state" else saved)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_paths_need_not_be_utf_8(fitted, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    fitted.save(folder)
    assert_same_bits(ExCBEstimator.load(folder), fitted)
    checkpoints = {"checkpoint_dir": folder / "run", "epochs": 1}
    first = small(**checkpoints).fit(DIGITS)
    assert_same_bits(small(**checkpoints).fit(DIGITS), first)
    ExCBEstimator.load(folder / "run" / "best.safetensors")
    torch.manual_seed(0)
    convolution = {"backbone": "resnet18", "image_size": 32, "n_local": 0, "epochs": 0}
    fitted = small(**convolution).fit(DIGITS)
    fitted.export_backbone(folder / "backbone.safetensors")
    small(**convolution, pretrained=folder / "backbone.safetensors", n_channels=1).fit(DIGITS)


def test_files_can_be_read_by_whom_the_umask_lets(fitted, tmp_path):
    before = os.umask(0o022)
    try:
        fitted.save(tmp_path)
    finally:
        os.umask(before)
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("X", "parameters"),
    [(DIGITS, {"n_local": 2}), (DIGITS.reshape(60, 64), {}), (list(DIGITS), {"backbone": "own"})],
    ids=["images", "rows", "own backbone"],
)
def test_a_state_of_a_run_is_an_estimator_too(X, parameters, tmp_path):
    """The last one is what the fit ends with, if nothing settles."""
    states = {"checkpoint_dir": tmp_path, "checkpoint_every": 1}
    parameters = parameters | states | {"settle_passes": 0, "image_size": "auto"}
    own = backbone() if parameters.get("backbone") else None
    if own is not None:
        parameters["backbone"] = own
    fitted = small(**parameters).fit(X)
    last = tmp_path / "step-000000009.safetensors"
    if own is not None:
        with pytest.raises(ValueError, match=r"a backbone of your own, Dropping\. Use load"):
            ExCBEstimator.load(last)
    loaded = ExCBEstimator.load(last, backbone=own)
    np.testing.assert_array_equal(loaded.predict(X), fitted.labels_)
    np.testing.assert_array_equal(loaded.transform(X), fitted.transform(X))
    np.testing.assert_equal(loaded.history_[:3], fitted.history_[:3])
    assert loaded.resolved_params_["K"] == loaded.get_params()["K"] == 4
    assert loaded.resolved_params_["random_state"] == 0
    assert not hasattr(loaded, "labels_")
    assert set(loaded.predict(X, n_groups=2)) <= {0, 1}
    loaded.save(tmp_path / "saved")
    again = ExCBEstimator.load(tmp_path / "saved", backbone=own)
    np.testing.assert_array_equal(again.predict(X), fitted.labels_)
    best = ExCBEstimator.load(tmp_path / "best.safetensors", backbone=own)
    losses = [entry["loss"] for entry in fitted.history_[1:]]
    assert len(best.history_) == 2 + int(np.argmin(losses))


def test_files_that_are_no_state_are_refused(fitted, tmp_path):
    fitted.export_backbone(tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"backbone.safetensors"):
        ExCBEstimator.load(tmp_path / "backbone.safetensors")
    with pytest.raises(FileNotFoundError, match="No saved estimator in"):
        ExCBEstimator.load(tmp_path / "step-000000009.safetensors")


def test_paths_and_devices_are_saved_as_words(tmp_path):
    excb = small(epochs=1, checkpoint_dir=tmp_path / "states", device=torch.device("cpu"))
    excb.fit(DIGITS).save(tmp_path / "run")
    loaded = ExCBEstimator.load(tmp_path / "run")
    assert loaded.device == "cpu"
    assert loaded.checkpoint_dir is None  # of that run: another fit must not go on with it


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


def with_a_pipe(file):
    """Put a pipe in the place of a file."""
    file.unlink()
    os.mkfifo(file)
    return file


@pytest.mark.parametrize(
    "place", ["tensors", "estimator.json", "a state", "published", "weights", "results"]
)
def test_a_pipe_in_the_place_of_a_file_never_hangs(fitted, saved, tmp_path, place):
    if place == "a state":
        folder = tmp_path / "states"
        small(epochs=1, checkpoint_dir=folder).fit(DIGITS)
        for file in folder.glob("*.safetensors"):
            with_a_pipe(file)
        uses = [
            lambda: small(epochs=1, checkpoint_dir=folder).fit(DIGITS),
            lambda: ExCBEstimator.load(next(folder.glob("*.safetensors"))),
        ]
    elif place in ("tensors", "estimator.json"):
        with_a_pipe(tensors_of(saved) if place == "tensors" else saved / place)
        uses = [lambda: ExCBEstimator.load(saved)]
    elif place == "results":
        write_results(fitted, DIGITS, tmp_path / "x.npy")
        with_a_pipe(tmp_path / "x.npy.json")
        uses = [lambda: write_results(fitted, DIGITS, tmp_path / "x.npy")]
    else:
        pipe = tmp_path / "pipe.pth"
        os.mkfifo(pipe)
        if place == "published":
            uses = [lambda: ExCBEstimator.from_checkpoint(pipe)]
        else:
            uses = [lambda: small(backbone="resnet18", pretrained=pipe).fit(DIGITS)]
    for use in uses:
        with pytest.raises((OSError, ValueError), match=r"not a .*file|No saved estimator"):
            use()


def test_an_empty_path_is_no_folder(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path is empty"):
        fitted.save("")
    with pytest.raises(ValueError, match="path is empty"):
        ExCBEstimator.load("")
    assert not list(tmp_path.iterdir())
