"""Small fits to be broken off in every way, and what tells two of their results apart."""

import atexit
import json
import os
import pickle
import random
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import sklearn_excb.fitting.epochs
import sklearn_excb.fitting.run
import sklearn_excb.storage.tensor_files
from sklearn_excb import ExCBEstimator

DIGITS = (load_digits().images[:60] / 16).astype(np.float32)
OF_ROWS = {"image_size": "auto"}
STEPS_PER_EPOCH, EPOCHS = 3, 3


def small(**parameters):
    """Estimator of 9 steps, 3 an epoch."""
    few = {"K": 4, "epochs": EPOCHS, "batch_size": 16, "head_width": 16, "n_local": 0, "n_jobs": 1}
    return ExCBEstimator(**(few | {"image_size": 12, "random_state": 0} | parameters))


def result(fitted):
    """All that a fit has learned, as bytes by name."""
    weights = fitted._fitted.teacher.state_dict()
    learned = {name: weight.numpy().tobytes() for name, weight in weights.items()}
    learned["labels"] = fitted.labels_.tobytes()
    learned["history"] = json.dumps(fitted.history_).encode()
    return learned


def assert_same_bits(fitted, other):
    """Two fits, or what they have learned, are the same to the last bit."""
    ours, theirs = (of if isinstance(of, dict) else result(of) for of in (fitted, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def finite(fitted):
    """Whether no weight is NaN or infinite."""
    weights = fitted._fitted.teacher.state_dict().values()
    return all(torch.isfinite(weight).all() for weight in weights)


def threads_of_gloo():
    """Threads of this process that belong to a group of processes on CPUs."""
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    return sum("gloo" in name for name in names)


def tell_threads_at_the_end():
    """Say, last of all, how many such threads outlive Python: one may abort it. Before joining."""
    atexit.register(lambda: sys.stdout.write(f"threads at the end: {threads_of_gloo()}\n"))


def states(folder):
    """Numbers of the steps after which states were written, the newest first."""
    names = (file.stem for file in Path(folder).glob("step-*.safetensors"))
    return sorted((int(name.removeprefix("step-")) for name in names), reverse=True)


@contextmanager
def files_up_to(n_bytes):
    """Let this process write no larger files: the kernel refuses more, as if the disk were full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class BreaksOffError(Exception):
    """In the place of a crash."""


@contextmanager
def breaking_off(*, after):
    """Have fits fail after so many steps of theirs, before the state of the last is written."""

    def fail():
        raise BreaksOffError

    with acting(fail, after=after):
        yield


def interrupting(*, after):
    """Have Ctrl-C pressed after so many steps of a fit."""
    return acting(lambda: signal.raise_signal(signal.SIGINT), after=after)


@contextmanager
def acting(act, *, after):
    """Do something after so many steps of a fit."""
    train = sklearn_excb.fitting.run.train

    def broken(*arguments, **options):
        for number, report in enumerate(train(*arguments, **options), 1):
            if number == after:
                act()
            yield report

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sklearn_excb.fitting.run, "train", broken)
        yield


def trains():
    """Whether training steps are what this is called for, in whichever thread."""
    frames = sys._current_frames().values()
    return any(
        frame.f_code is sklearn_excb.fitting.epochs.train_run.__code__ for frame in walked(frames)
    )


def walked(frames):
    """Frames and all that called them."""
    for frame in frames:
        here = frame
        while here is not None:
            yield here
            here = here.f_back


class Drawing:
    """A data set that draws from every global generator, one item after the other."""

    def __getitem__(self, index):
        noise = random.random() + np.random.random() + torch.rand(()).item()  # noqa: NPY002
        return DIGITS[index] * np.float32(0.5 + noise / 6)

    def __len__(self):
        return len(DIGITS)


class Failing:
    """A data set that does something when it is read for the n-th time by training steps."""

    def __init__(self, images, at, act):
        self.images, self.at, self.act, self.n_reads = images, at, act, 0

    def __getitem__(self, index):
        self.n_reads += trains()
        if self.n_reads == self.at and trains():
            self.act()
        return self.images[index]

    def __len__(self):
        return len(self.images)


def fit_in_a_process(folder, out, parameters, limit=None):
    """Fit, and write what was learned; for processes that may be killed at any moment."""
    torch.set_num_threads(1)
    if limit is not None:
        wait_before_each_step(limit)
    fitted = small(checkpoint_dir=folder, **parameters).fit(DIGITS)
    beside = Path(out).with_suffix(".partial")
    beside.write_bytes(pickle.dumps(result(fitted)))
    beside.replace(out)


def wait_before_each_step(seconds):
    """Slow a fit of this process down, so that signals come within a step's time."""
    train = sklearn_excb.fitting.run.train

    def slow(*arguments, **options):
        for report in train(*arguments, **options):
            time.sleep(seconds)
            yield report

    sklearn_excb.fitting.run.train = slow


def dying(stage, number):
    """Kill this process with SIGKILL at a stage of the n-th write of a state."""
    write, count = sklearn_excb.storage.tensor_files.save_file, 0
    replace = Path.replace

    def save_file(tensors, file, metadata):
        nonlocal count
        count += 1
        if count == number and stage == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(tensors, file, metadata)
        if count == number and stage == "half":
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        if count == number and stage == "written":
            os.kill(os.getpid(), signal.SIGKILL)

    def replaced(file, target):
        found = replace(file, target)
        if count == number and stage == "renamed":
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    sklearn_excb.storage.tensor_files.save_file = save_file
    Path.replace = replaced


def fit_and_die(folder, out, parameters, stage, number):
    """Fit in a process that dies within a save."""
    dying(stage, number)
    fit_in_a_process(folder, out, parameters)
