"""Runs that were broken off and taken up end as if nothing had happened."""

import copy
import gc
import pickle
import random
import shutil
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

import sklearn_excb.fitting.run
from sklearn_excb import CheckpointWarning
from sklearn_excb.fitting.resume import PreviousRun
from tests.small_runs import (
    DIGITS,
    OF_ROWS,
    BreaksOffError,
    Drawing,
    assert_same_bits,
    breaking_off,
    small,
    states,
)


class Dropping(torch.nn.Sequential):
    """A backbone that draws, in memory of its own order."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(1, 8, 3, stride=2),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
        self.to(memory_format=torch.channels_last)


def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Dropping()


CASES = {
    "arrays": (DIGITS, {}),
    "local views": (DIGITS, {"n_local": 2}),
    "rows": (DIGITS.reshape(60, 64), OF_ROWS | {"n_local": 1}),
    "micro-batches": (DIGITS, {"micro_batch": 6}),
    "two threads": (list(DIGITS), {"n_jobs": 2}),
    "data set that draws": (Drawing(), {}),
    "backbone that draws": (DIGITS, {"backbone": "own"}),
    "AdamW": (DIGITS, {"optimizer": "adamw"}),
    "float32": (DIGITS, {"precision": "32"}),
    "float16": (DIGITS.reshape(60, 64), OF_ROWS | {"precision": "fp16"}),
    "centering": (DIGITS, {"balancing": "centering"}),
    "Sinkhorn": (DIGITS, {"balancing": "sinkhorn"}),
    "exponential": (DIGITS, {"balancing": "exponential", "count_labels": "plain"}),
}


def fit(X, parameters, **more):
    own = {"backbone": backbone()} if parameters.get("backbone") == "own" else {}
    np.random.seed(7)  # noqa: NPY002 - of a data set that draws
    torch.manual_seed(7)
    random.seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of nine steps
        return small(**(parameters | own | more)).fit(X)


def test_the_resumed_state_is_freed_before_the_first_step(tmp_path, monkeypatch):
    with breaking_off(after=2), pytest.raises(BreaksOffError):
        fit(DIGITS, {}, checkpoint_dir=tmp_path, checkpoint_every=1)
    train, alive = sklearn_excb.fitting.run.train, []

    def counting(*arguments, **options):
        alive.append(sum(type(held) is PreviousRun for held in gc.get_objects()))
        return train(*arguments, **options)

    monkeypatch.setattr(sklearn_excb.fitting.run, "train", counting)
    fit(DIGITS, {}, checkpoint_dir=tmp_path)
    assert alive == [0]


EXEMPLARY = {"local views", "rows", "micro-batches", "backbone that draws"}


@pytest.mark.parametrize(
    "case",
    [case if case in EXEMPLARY else pytest.param(case, marks=pytest.mark.slow) for case in CASES],
)
def test_a_run_taken_up_is_the_run_that_was_never_broken_off(case, tmp_path):
    X, parameters = CASES[case]
    never = fit(X, parameters)
    for broken_after in (2, 5):  # within the first epoch; then within the third: 1 + 5 steps
        with breaking_off(after=broken_after), pytest.raises(BreaksOffError):
            fit(X, parameters, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert states(tmp_path)[0] == 5
    taken_up = fit(X, parameters, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert_same_bits(taken_up, never)
    assert states(tmp_path) == [9, 8]
    again = fit(X, parameters, checkpoint_dir=tmp_path)  # nothing is left to train
    assert_same_bits(again, never)


@pytest.fixture(scope="module")
def broken_off_once(tmp_path_factory):
    """Folder of a run with states after its steps 3 and 4."""
    folder = tmp_path_factory.mktemp("run")
    with breaking_off(after=5), pytest.raises(BreaksOffError):
        small(checkpoint_dir=folder, checkpoint_every=1).fit(DIGITS)
    assert states(folder) == [4, 3]
    return folder


@pytest.fixture
def broken_off(broken_off_once, tmp_path):
    """Copy of that folder, to be damaged."""
    return shutil.copytree(broken_off_once, tmp_path, dirs_exist_ok=True)


def contents(folder):
    """Bytes of each file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def never():
    return small().fit(DIGITS)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def empty(file):
    file.write_bytes(b"")


class Payload:
    """What a pickle runs when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def payload(file):
    file.write_bytes(pickle.dumps(Payload(file.parent / "ran")))


DAMAGES = [flip, cut, empty, payload]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_told_and_the_one_before_is_used(damage, broken_off, never):
    damage(broken_off / "step-000000004.safetensors")
    with pytest.warns(CheckpointWarning, match=r"step-000000004.*resumes from .*step-000000003"):
        fitted = small(checkpoint_dir=broken_off).fit(DIGITS)
    assert_same_bits(fitted, never)
    assert not (broken_off / "ran").exists()


def test_nothing_is_trained_anew_unasked_when_no_state_can_be_read(broken_off):
    for file in broken_off.glob("step-*"):
        cut(file)
    with pytest.raises(ValueError, match="holds 2 checkpoints, but none can be read"):
        small(checkpoint_dir=broken_off).fit(DIGITS)


def test_a_state_of_another_version_is_refused(broken_off, monkeypatch):
    monkeypatch.setattr(sklearn_excb.storage.checkpoint_folder, "FORMAT", 99)
    with pytest.raises(ValueError, match=r"has format 2, but this version .* reads format 99"):
        small(checkpoint_dir=broken_off).fit(DIGITS)


@pytest.mark.parametrize(
    ("changed", "X", "said"),
    [
        ({"K": 5}, DIGITS, "K was 4, now 5"),
        ({"epochs": 4}, DIGITS, "epochs was 3, now 4.*warm_start=True"),
        ({"learning_rate": 0.1}, DIGITS, "learning_rate was 'auto', now 0.1"),
        ({"random_state": 1}, DIGITS, "random_state was 0, now 1"),
        ({}, DIGITS[:50], "of X, n_samples was 60, now 50"),
        ({}, DIGITS[::-1], "of X, contents changed"),
        (OF_ROWS, DIGITS.reshape(60, 64), "of X, kind was 'images', now 'rows'"),
        ({"resume": False}, DIGITS, "resume=False, but .* holds checkpoints of a run"),
    ],
)
def test_what_has_changed_is_named_and_nothing_lost(changed, X, said, broken_off):
    before = contents(broken_off)
    with pytest.raises(ValueError, match=said):
        small(checkpoint_dir=broken_off, **changed).fit(X)
    assert contents(broken_off) == before


def test_what_was_refused_before_goes_on_when_it_is_as_it_was(broken_off, never):
    with pytest.raises(ValueError, match="K was 4, now 5"):
        small(checkpoint_dir=broken_off, K=5).fit(DIGITS)
    assert_same_bits(small(checkpoint_dir=broken_off, resume=True).fit(DIGITS), never)


def test_what_changes_no_result_may_change(broken_off, never):
    other = {"n_jobs": 2, "embedding": "backbone", "random_state": None, "n_checkpoints": 5}
    assert_same_bits(small(checkpoint_dir=broken_off, **other).fit(DIGITS), never)


def test_resume_true_needs_a_state(tmp_path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        small(checkpoint_dir=tmp_path, resume=True).fit(DIGITS)
    with pytest.raises(ValueError, match="needs a checkpoint_dir"):
        small(resume=True).fit(DIGITS)


def test_other_packages_are_told(broken_off, monkeypatch):
    monkeypatch.setattr(sklearn_excb.fitting.resume, "_version", lambda package: "0.0")
    with pytest.warns(CheckpointWarning, match="torch was .*, now '0.0'") as caught:
        small(checkpoint_dir=broken_off).fit(DIGITS)
    assert caught[0].filename == __file__


def test_the_last_states_and_the_best_are_kept(tmp_path):
    fitted = small(checkpoint_dir=tmp_path, checkpoint_every=2, n_checkpoints=3).fit(DIGITS)
    assert states(tmp_path) == [9, 8, 6]  # every two steps, and at the end of each epoch
    losses = [entry["loss"] for entry in fitted.history_[1:]]
    best = sklearn_excb.storage.checkpoint_folder.read_checkpoint(tmp_path / "best.safetensors")
    assert best["step"] == 3 * (1 + int(np.argmin(losses)))
    assert best["history"][-1]["loss"] == min(losses)


def test_taking_a_state_up_leaves_it_as_it_was():
    """Else two warm starts from one pickled estimator would share moments."""
    excb = small(warm_start=True).fit(DIGITS)
    first, second = copy.copy(excb), copy.copy(excb)
    for fit in (first, second):
        fit.set_params(epochs=4).fit(DIGITS)
    assert_same_bits(first, second)


def test_a_warm_start_needs_the_state_of_the_fit_before(tmp_path):
    """A new folder is no reason to start a run anew that should continue."""
    excb = small().fit(DIGITS)
    with pytest.raises(ValueError, match="kept no training state"):
        excb.set_params(warm_start=True, checkpoint_dir=tmp_path).fit(DIGITS)


def test_other_files_of_the_folder_are_left_alone(broken_off, never):
    others = ["step-7.safetensors", "step-000000004.safetensors.bak", ".mine.partial", "notes.md"]
    for name in others:
        (broken_off / name).write_text("mine")
    assert_same_bits(small(checkpoint_dir=broken_off).fit(DIGITS), never)
    assert all((broken_off / name).read_text() == "mine" for name in others)


def test_the_same_bytes_in_another_shape_are_other_data(broken_off):
    with pytest.raises(ValueError, match="of X, contents changed"):
        small(checkpoint_dir=broken_off).fit(DIGITS.reshape(60, 4, 16))


@pytest.mark.filterwarnings("ignore:The student does not follow")  # in so few steps
def test_a_warm_start_from_memory_is_that_from_the_folder(tmp_path):
    in_memory = small(warm_start=True).fit(DIGITS)
    in_memory.set_params(epochs=5).fit(DIGITS)
    small(checkpoint_dir=tmp_path).fit(DIGITS)
    from_folder = small(checkpoint_dir=tmp_path, warm_start=True, epochs=5).fit(DIGITS)
    assert [entry["epoch"] for entry in from_folder.history_] == [0, 1, 2, 3, 4, 5]
    first, second = in_memory.history_[3], from_folder.history_[3]
    assert first["loss"] == second["loss"]
    np.testing.assert_array_equal(in_memory.cluster_centers_, from_folder.cluster_centers_)
    np.testing.assert_array_equal(in_memory.labels_, from_folder.labels_)


def test_a_warm_start_goes_on_with_what_was_learned():
    excb = small(warm_start=True).fit(DIGITS)
    state = excb._fitted.state
    excb.set_params(epochs=4, batch_size=20, learning_rate=1e-9, teacher_momentum=1.0)
    excb.set_params(settle_passes=0, optimizer="sgd").fit(np.concatenate([DIGITS, DIGITS[:20]]))
    assert len(excb.labels_) == 80
    before = state[0]["networks/teacher.backbone.0.weight"]
    kept = excb._fitted.teacher.state_dict()["backbone.0.weight"]
    torch.testing.assert_close(kept, before, rtol=1e-6, atol=1e-7)


def test_a_warm_start_that_cannot_be_is_told():
    excb = small(warm_start=True).fit(DIGITS)
    with pytest.raises(ValueError, match="K was 4, now 5"):
        excb.set_params(K=5).fit(DIGITS)
    with pytest.raises(ValueError, match="epochs=2, but epoch 3 has already started"):
        excb.set_params(K=4, epochs=2).fit(DIGITS)
    with pytest.warns(CheckpointWarning, match="nothing to train: epochs=3 are done") as caught:
        excb.set_params(epochs=3).fit(DIGITS)
    assert caught[0].filename == __file__
    cold = small().fit(DIGITS).set_params(warm_start=True)
    with pytest.raises(ValueError, match="kept no training state"):
        cold.fit(DIGITS)


def test_a_state_in_memory_goes_on_from_a_pickle():
    begun = small(warm_start=True, epochs=1).fit(DIGITS)
    again = pickle.loads(pickle.dumps(begun))
    assert_same_bits(*(of.set_params(epochs=3).fit(DIGITS) for of in (again, begun)))
