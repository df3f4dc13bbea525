"""What breaks during a fit costs no more than the steps since the last state, and is told."""

import errno
import math
import os
import re
import signal
import threading

import numpy as np
import pytest
import torch
from filelock import FileLock
from sklearn.exceptions import ConvergenceWarning

import sklearn_excb.fitting.run
from sklearn_excb import CheckpointWarning, DivergedError, ImageError, reporting
from sklearn_excb.bulk import write_results
from tests.small_runs import (
    DIGITS,
    Failing,
    acting,
    assert_same_bits,
    files_up_to,
    finite,
    interrupting,
    small,
    states,
    trains,
)
from tests.tiers import others_slow


@pytest.fixture(scope="module")
def never():
    return small().fit(list(DIGITS))


def test_a_full_disk_ends_no_fit(tmp_path, never):
    with files_up_to(10_000), pytest.warns(CheckpointWarning, match="could not be written") as told:
        fitted = small(checkpoint_dir=tmp_path, checkpoint_every=1).fit(list(DIGITS))
    assert_same_bits(fitted, never)
    assert "No checkpoint has been written yet" in str(told[0].message)
    told = [one for one in told if one.category is CheckpointWarning]
    assert len(told) == 1  # of ten that could not be
    assert told[0].filename == __file__
    assert os.listdir(tmp_path) == ["lock"]
    again = small(checkpoint_dir=tmp_path).fit(list(DIGITS))  # there is room again
    assert_same_bits(again, never)


def test_a_disk_that_fills_up_leaves_the_states_before(tmp_path, never, monkeypatch):
    write, count = sklearn_excb.storage.checkpoint_folder.write_tensors, 0

    def into_little_room(*arguments):
        nonlocal count
        count += 1
        with files_up_to(10_000 if count > 5 else -1):
            return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(sklearn_excb.storage.checkpoint_folder, "write_tensors", into_little_room)
        with pytest.warns(CheckpointWarning, match="last checkpoint is step-000000004") as told:
            fitted = small(checkpoint_dir=tmp_path, checkpoint_every=1).fit(list(DIGITS))
    assert_same_bits(fitted, never)
    assert len([one for one in told if one.category is CheckpointWarning]) == 1
    assert states(tmp_path) == [4]  # the other has made room
    assert not list(tmp_path.glob(".*"))
    assert_same_bits(small(checkpoint_dir=tmp_path).fit(list(DIGITS)), never)


def folders_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    yield tmp_path / "file", (FileExistsError, NotADirectoryError)
    yield tmp_path / "file" / "run", NotADirectoryError
    yield "/proc/excb", OSError  # not even root may
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        yield tmp_path / "closed", PermissionError
        yield tmp_path / "closed" / "run", PermissionError


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_read(tmp_path):
    untouched = Failing(DIGITS, at=10, act=lambda: pytest.fail("images were read"))
    for folder, error in folders_that_cannot_be(tmp_path):
        with pytest.raises(error, match=r"checkpoint_dir=.* cannot be written \(") as caught:
            small(checkpoint_dir=folder, K=4).fit(untouched)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno in vars(errno).values()


WRITERS = {
    "save": lambda excb, path: excb.save(path),
    "export_backbone": lambda excb, path: excb.export_backbone(path),
    "write_results": lambda excb, path: write_results(excb, DIGITS, path),
    "export_onnx": lambda excb, path: excb.export_onnx(path),
    "report": lambda excb, path: reporting.report(excb, DIGITS, path),
    "checkpoint_dir": lambda _, path: small(checkpoint_dir=path).fit(DIGITS),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_path_that_cannot_be_written_is_named_before_the_work(write, never, tmp_path):
    (tmp_path / "file").touch()
    for path, error, advice in [
        (tmp_path / ("a" * 256), OSError, "Choose a shorter name"),
        (tmp_path / "file" / "x", OSError, "another"),
        (f"{tmp_path}/a\0b", ValueError, "Choose another name"),
        (f"{tmp_path}/\ud800", ValueError, "Choose another name"),
        ("", ValueError, "path is empty"),
        (5, (TypeError, ValueError), "expected a str|must be None or a path"),
    ]:
        with pytest.raises(error, match=advice) as told:
            write(never, path)
        assert path in ("", 5) or str(tmp_path) in str(told.value)
        assert "Errno" not in str(told.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("writer", others_slow([*WRITERS][:-1], default=3))
def test_a_disk_that_is_full_is_told(writer, never, tmp_path):
    told = pytest.raises(OSError, match=f"{tmp_path}.* cannot be written .*another")
    with files_up_to(100), told:
        WRITERS[writer](never, tmp_path / "written")
    assert not list(tmp_path.glob(".*"))


def test_one_fit_at_a_time(tmp_path):
    inside = threading.Event()
    go_on = threading.Event()

    def pause():
        inside.set()
        go_on.wait(60)

    first = threading.Thread(
        target=lambda: small(checkpoint_dir=tmp_path).fit(Failing(DIGITS, at=20, act=pause))
    )
    first.start()
    assert inside.wait(60)
    with pytest.raises(BlockingIOError, match="Another fit uses checkpoint_dir"):
        small(checkpoint_dir=tmp_path).fit(DIGITS)
    go_on.set()
    first.join()
    assert states(tmp_path)[0] == 9
    with FileLock(tmp_path / "lock"):  # it is free again
        pass


class Broken:
    """800 images, of which row 777 cannot be read in training."""

    def __init__(self):
        self.images = np.tile(DIGITS, (14, 1, 1))[:800]
        self.mended = False

    def __getitem__(self, index):
        if index == 777 and not self.mended and trains():
            raise OSError("the disk under it has died")
        return self.images[index]

    def __len__(self):
        return len(self.images)


def test_a_row_that_cannot_be_read_is_named_and_no_step_lost(tmp_path):
    many = {"batch_size": 100, "epochs": 1, "checkpoint_every": 10**6}
    images = Broken()
    with pytest.raises(ImageError, match=r"777.*the disk under it has died"):
        small(checkpoint_dir=tmp_path, **many).fit(images)
    (last, *_) = states(tmp_path)
    assert last % 8 > 0  # written for this alone
    images.mended = True
    taken_up = small(checkpoint_dir=tmp_path, **many).fit(images)
    assert_same_bits(taken_up, small(**many).fit(images))


@pytest.mark.parametrize("error", others_slow([MemoryError, SystemExit, RuntimeError]))
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_thread_that_dies_hangs_nothing(error, n_jobs, tmp_path, never):
    def die():
        raise error("gone")

    excb = small(checkpoint_dir=tmp_path, n_jobs=n_jobs, checkpoint_every=1)
    with pytest.raises((error, ImageError)):
        excb.fit(Failing(DIGITS, at=85, act=die))
    assert states(tmp_path)
    assert_same_bits(excb.fit(list(DIGITS)), never)


def test_a_divergence_names_the_rows_and_the_gradients():
    excb = small(learning_rate=1e12, warmup_epochs=0, precision="32")
    with pytest.raises(DivergedError, match=r"in epoch 1 of 3, step \d+.*Largest") as caught:
        excb.fit(DIGITS)
    said = str(caught.value)
    step = int(said.split("step ")[1].split(",")[0])
    rows = caught.value.rows
    assert len(set(rows)) == 16
    assert max(rows) < 60
    assert f"Rows of the batch: {', '.join(map(str, rows))}." in said
    assert "Gradient norms in the previous steps" in said
    assert 1 <= step <= 3
    assert not hasattr(excb, "labels_")


def poisoned(at, networks_of):
    train = sklearn_excb.fitting.run.train

    def train_poisoned(networks, *arguments, first_step=0, **options):
        for report in train(networks, *arguments, first_step=first_step, **options):
            if report.step == at:
                networks_of(networks).data.fill_(math.nan)
            yield report

    return train_poisoned


def test_weights_are_finite_whenever_a_fit_ends(tmp_path, monkeypatch):
    """A student that is NaN after step 5 is seen in step 6, and no state of it is written."""
    with monkeypatch.context() as patched:
        bad = poisoned(5, lambda networks: networks.student.projector[0].weight)
        patched.setattr(sklearn_excb.fitting.run, "train", bad)
        excb = small(checkpoint_dir=tmp_path, checkpoint_every=1)
        with pytest.warns(ConvergenceWarning, match=r"epoch 3 of 3, step 7.*after epoch 2") as told:
            excb.fit(DIGITS)
    assert finite(excb)
    assert told[0].filename == __file__
    assert re.search(r"Largest gradients: .* nan", str(told[0].message))
    assert re.search(r"Rows of the batch: (\d+, ){15}\d+\.", str(told[0].message))
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert states(tmp_path) == [5, 4]  # the sixth step left a student that is NaN
    assert_same_bits(small(checkpoint_dir=tmp_path).fit(DIGITS), small().fit(DIGITS))


def interrupt():
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_leaves_a_fitted_estimator(tmp_path, never):
    excb = small(checkpoint_dir=tmp_path, checkpoint_every=10**6)
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2 of 3"):
        excb.fit(Failing(DIGITS, at=70, act=interrupt))
    np.testing.assert_array_equal(excb.predict(DIGITS), excb.labels_)
    assert excb.transform(DIGITS).shape == (60, 256)
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert not math.isnan(excb.history_[-1]["empty_fraction"])
    assert finite(excb)
    (last, *_) = states(tmp_path)
    assert last not in (0, 3, 6, 9)  # within an epoch: no other reason to write
    assert_same_bits(excb.fit(list(DIGITS)), never)


def test_a_second_ctrl_c_leaves_at_once_with_what_was_learned_before():
    excb = small(epochs=0).fit(DIGITS)
    labels = excb.labels_

    def twice():
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        excb.set_params(epochs=3).fit(Failing(DIGITS, at=70, act=twice))
    assert excb.labels_ is labels


def test_a_ctrl_c_after_the_last_step_is_heard():
    excb = small()
    with interrupting(after=9), pytest.raises(KeyboardInterrupt, match="stopped"):
        excb.fit(DIGITS)
    assert len(excb.labels_) == 60
    assert len(excb.history_) == 4


class TerminatedError(Exception):
    """What a handler of SIGTERM raises here, in the place of an end of the process."""


@pytest.fixture
def terminating():
    def end(*arguments):
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    yield lambda: signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_a_sigterm_that_comes_again_does_not_cut_off_the_save(tmp_path, terminating, monkeypatch):
    """As of schedulers, which send it to a step of a job and again to the job."""
    write, came = sklearn_excb.storage.checkpoint_folder.write_tensors, []

    def come():
        came.append("SIGTERM")
        terminating()

    def write_and_hear(*arguments):
        if came:
            come()
        return write(*arguments)

    monkeypatch.setattr(sklearn_excb.storage.checkpoint_folder, "write_tensors", write_and_hear)
    with acting(come, after=5), pytest.raises(TerminatedError):
        small(checkpoint_dir=tmp_path, checkpoint_every=10**6).fit(DIGITS)
    assert len(came) == 2
    assert states(tmp_path)[0] == 5


def test_a_sigterm_during_an_error_still_ends_the_process(tmp_path, terminating):
    def hear_and_fail():
        terminating()
        raise ValueError("no more images")

    with pytest.raises(TerminatedError):
        small(checkpoint_dir=tmp_path).fit(Failing(DIGITS, at=70, act=hear_and_fail))


def test_signals_are_as_they_were_after_a_fit(never):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handlers_of_the_users_own_are_asked_too(tmp_path, never):
    taken = []
    before = signal.signal(signal.SIGTERM, lambda *arguments: taken.append(arguments))
    try:
        at = Failing(DIGITS, at=70, act=lambda: signal.raise_signal(signal.SIGTERM))
        fitted = small(checkpoint_dir=tmp_path, checkpoint_every=10**6).fit(at)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(taken) == 1
    assert_same_bits(fitted, never)  # a handler that does nothing lets it go on


def test_a_fit_in_a_thread_takes_no_signals(never):
    found = []
    thread = threading.Thread(target=lambda: found.append(small().fit(list(DIGITS))))
    thread.start()
    thread.join()
    assert_same_bits(found[0], never)


def test_the_largest_gradients_are_told_apart():
    """Those that are not finite first, then by size."""
    from sklearn_excb.training.gradients import GradientMonitor
    from sklearn_excb.training.loop import StepReport
    from sklearn_excb.training.optimizer import UNSCALED

    module = torch.nn.Sequential(*(torch.nn.Linear(2, 2, bias=False) for _ in range(5)))
    for layer, value in zip(module, (1.0, 3.0, math.inf, 2.0, 0.0), strict=True):
        layer.weight.grad = torch.full((2, 2), value)
    gradients = GradientMonitor(module, UNSCALED)
    report = StepReport(4, 1, outcome(loss=2.0))
    found = gradients.check(report)
    assert found is not None
    assert found.step == 4
    assert [name for name, _ in found.largest] == ["2.weight", "1.weight", "3.weight"]
    np.testing.assert_allclose([norm for _, norm in found.largest], [math.inf, 6.0, 4.0])


def outcome(loss):
    from types import SimpleNamespace

    return SimpleNamespace(loss=SimpleNamespace(total=torch.tensor(loss)))
