"""Fits in processes that are killed: at random, within a save, with a warning and without one."""

import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from sklearn_excb import CheckpointWarning
from tests.small_runs import DIGITS, assert_same_bits, fit_and_die, fit_in_a_process, small, states

pytestmark = pytest.mark.skipif(os.name != "posix", reason="no such signals")
EVERY = {"checkpoint_every": 1}


@pytest.fixture(scope="module")
def begin():
    """Begin a fit in a process, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warmed_up"])

    def begin(*arguments, target=fit_in_a_process):
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def whole(begin, tmp_path_factory):
    """A run that is left alone: what it learns, and how many seconds it has to be killed in."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("first", "second"):  # the first waits for the imports
        began = time.monotonic()
        assert exit_code(begin(folder / name, folder / "out", EVERY)) == 0
        seconds = time.monotonic() - began
    return SimpleNamespace(learned=pickle.loads((folder / "out").read_bytes()), seconds=seconds)


def exit_code(process):
    process.join(120)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def finished(begin, folder, parameters=EVERY):
    """What a run on a folder, of which earlier processes have died, learns in the end."""
    assert exit_code(begin(folder / "run", folder / "out", parameters)) == 0
    return pickle.loads((folder / "out").read_bytes())


def test_a_fit_in_a_process_is_the_fit_in_this_one(whole):
    assert_same_bits(whole.learned, small().fit(DIGITS))


@pytest.mark.parametrize("n_runs", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_end_the_same_to_the_bit(n_runs, begin, whole, tmp_path):
    draw, struck = random.Random(n_runs), 0
    for number in range(n_runs):
        folder = tmp_path / str(number)
        folder.mkdir()
        process = begin(folder / "run", folder / "out", EVERY)
        process.join(draw.uniform(0, whole.seconds))
        process.kill()
        struck += exit_code(process) == -signal.SIGKILL
        assert_same_bits(finished(begin, folder), whole.learned)
    assert struck > n_runs / 4  # others had ended before: how long a run takes varies


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_the_same_to_the_bit(begin, whole, tmp_path):
    draw, struck = random.Random(0), 0
    while struck < 10:
        process = begin(tmp_path / "run", tmp_path / "out", EVERY)
        process.join(draw.uniform(0, whole.seconds / 2))
        process.kill()
        struck += exit_code(process) == -signal.SIGKILL
    assert_same_bits(finished(begin, tmp_path), whole.learned)


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("before", 1),
        ("half", 3),
        ("written", 4),
        ("renamed", 4),
        *(
            pytest.param(stage, number, marks=pytest.mark.slow)
            for stage in ("before", "half", "written", "renamed")
            for number in (2, 5, 10)
        ),
    ],
)
def test_death_within_a_save_loses_that_save_at_most(stage, number, begin, whole, tmp_path):
    process = begin(tmp_path / "run", tmp_path / "out", EVERY, stage, number, target=fit_and_die)
    assert exit_code(process) == -signal.SIGKILL
    written = number if stage == "renamed" else number - 1  # the first is after 0 steps
    assert states(tmp_path / "run")[:1] == ([written - 1] if written else [])
    assert_same_bits(finished(begin, tmp_path), whole.learned)
    assert not list((tmp_path / "run").glob(".*.partial"))


@pytest.mark.parametrize("grace", [20, 0])
def test_a_warning_before_the_kill_saves_the_step(grace, begin, whole, tmp_path):
    """As before a pre-emption: SIGTERM, and SIGKILL some seconds later."""
    never_else = {"checkpoint_every": 10**6}
    process = begin(tmp_path / "run", tmp_path / "out", never_else, 1.0)  # second a step
    wait_for(lambda: states(tmp_path / "run"))
    time.sleep(0.5)  # into the first epoch
    process.terminate()
    process.join(grace)
    process.kill()
    if grace:
        assert exit_code(process) == -signal.SIGTERM
        assert states(tmp_path / "run")[0] in (1, 2)  # the step that was under way
    else:
        assert exit_code(process) in (-signal.SIGTERM, -signal.SIGKILL)
    assert_same_bits(finished(begin, tmp_path), whole.learned)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_costs_no_more_than_the_states(small_disk, whole):
    with pytest.warns(CheckpointWarning, match=r"No space left|could not be written"):
        fitted = small(checkpoint_dir=small_disk, checkpoint_every=1, n_checkpoints=9).fit(DIGITS)
    assert_same_bits(fitted, whole.learned)
    assert states(small_disk)
    assert not list(small_disk.glob(".*"))
    again = small(checkpoint_dir=small_disk, n_checkpoints=1, checkpoint_every=10**6)
    with pytest.warns(CheckpointWarning):
        assert_same_bits(again.fit(DIGITS), whole.learned)
