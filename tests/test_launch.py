"""``devices=2`` starts its own processes; torchrun's join: the same fit to the last bit."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from sklearn_excb import ExCBEstimator
from sklearn_excb.exceptions import ImageError, RankError, SkippedImageWarning
from sklearn_excb.fitting import several_devices
from sklearn_excb.runtime.devices import number_of_devices
from tests.small_runs import DIGITS, STEPS_PER_EPOCH, assert_same_bits, small, states
from tests.test_ranks import HERE, torchrun

TWO = {"device": "cpu", "devices": 2}
CALL = """
import sys, pickle
sys.path.insert(0, {here!r})
from tests.small_runs import DIGITS, result, small, tell_threads_at_the_end, threads_of_gloo
import os
tell_threads_at_the_end()
fitted = small(device="cpu", {parameters}).fit(DIGITS)
name = {out!r} + os.environ.get("RANK", "")
open(name, "wb").write(pickle.dumps(result(fitted)))
"""


@pytest.fixture(scope="module")
def two():
    return small(**TWO).fit(DIGITS)


def call(out, parameters=""):
    return CALL.format(here=str(HERE.parent), parameters=parameters, out=str(out))


def test_is_the_fit_of_one_up_to_rounding():
    gently = {"epochs": 1, "learning_rate": 1e-4, "settle_passes": 0, "precision": "32"}
    alone, together = small(**gently).fit(DIGITS), small(**gently, **TWO).fit(DIGITS)
    assert together.resolved_params_["devices"] == 2
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    np.testing.assert_allclose(together.cluster_centers_, alone.cluster_centers_, atol=1e-4)
    assert together.history_[-1]["loss"] == pytest.approx(alone.history_[-1]["loss"], rel=1e-4)
    np.testing.assert_array_equal(together.predict(DIGITS), together.labels_)


@pytest.mark.slow
def test_is_that_of_torchrun_on_every_rank(two, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(call(tmp_path / "out") + "assert threads_of_gloo() > 0")
    done = torchrun(script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("threads at the end: 0") == 2
    for rank in "01":
        assert_same_bits(two, pickle.loads((tmp_path / f"out{rank}").read_bytes()))


@pytest.mark.slow
def test_an_error_that_nobody_catches_keeps_no_thread_alive(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(call(tmp_path / "out", "K=4 + int(os.environ['RANK'])"))
    done = torchrun(script)
    assert done.stderr.count("RankError: Rank 1 does not run the same fit") == 2
    assert done.stdout.count("threads at the end: 0") == 2


def features_of_a_digit():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten())


@pytest.mark.slow
def test_of_a_frozen_backbone_is_the_fit_of_one_up_to_rounding():
    how = {"backbone": features_of_a_digit(), "freeze_backbone": True, "precision": "32"}
    alone, together = small(**how).fit(DIGITS), small(**how, **TWO).fit(DIGITS)
    np.testing.assert_array_equal(together.labels_, alone.labels_)
    np.testing.assert_allclose(together.cluster_centers_, alone.cluster_centers_, atol=1e-4)
    np.testing.assert_allclose(together.transform(DIGITS), alone.transform(DIGITS), atol=1e-4)


@pytest.mark.slow
def test_works_from_standard_input_without_a_guard(two, tmp_path):
    script = call(tmp_path / "out", "devices=2")
    run = [sys.executable, "-"]
    subprocess.run(run, input=script, text=True, check=True, cwd=tmp_path, timeout=300)
    assert_same_bits(two, pickle.loads((tmp_path / "out").read_bytes()))


class Squared:
    """A data set that only this module knows."""

    def __len__(self):
        return len(DIGITS)

    def __getitem__(self, index):
        if os.environ.get("RANK") == "1" and index == 7:
            raise KeyError("row 7 is not there")
        return DIGITS[index] ** 2


@pytest.mark.slow
def test_what_one_process_raises_is_raised():
    with pytest.raises(ImageError, match=r"7.*row 7 is not there") as raised:
        small(**TWO).fit(Squared())
    assert "In process 1 of the fit" in "".join(raised.value.__notes__)


class Dying(Squared):
    """Kills the second process once there is a state of a step."""

    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, index):
        if os.environ.get("RANK") == "1" and max(states(self.folder), default=0) > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return DIGITS[index]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_fit_which_can_be_resumed(two, tmp_path):
    begun = time.monotonic()
    every_step = TWO | {"checkpoint_dir": tmp_path, "checkpoint_every": 1}  # however long it takes
    with pytest.raises(RankError, match="SIGKILL ended rank 1"):
        small(**every_step).fit(Dying(tmp_path))
    assert time.monotonic() - begun < 600  # torch would wait for half an hour
    assert 0 < states(tmp_path)[0] < 9
    resumed = small(**every_step, resume=True).fit(list(DIGITS))
    assert_same_bits(small(**TWO).fit(list(DIGITS)), resumed)


@pytest.mark.slow
def test_ctrl_c_leaves_a_fitted_estimator(tmp_path):
    def press_ctrl_c():
        """Once the first epoch is done."""
        while max(states(tmp_path), default=0) < STEPS_PER_EPOCH:
            time.sleep(0.2)
        signal.raise_signal(signal.SIGINT)

    estimator = small(**TWO, epochs=2000, checkpoint_dir=tmp_path, checkpoint_every=1)
    threading.Thread(target=press_ctrl_c, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match="stopped in epoch"):
        estimator.fit(DIGITS)
    assert 0 < estimator.history_[-1]["epoch"] < 2000
    np.testing.assert_array_equal(estimator.predict(DIGITS), estimator.labels_)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_ctrl_c_is_heard_by_processes_that_are_still_starting():
    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()
    estimator = small(**TWO, epochs=2000)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(DIGITS)
    assert not hasattr(estimator, "labels_")


@pytest.mark.slow
@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_when_the_one_that_called_fit_is_gone(ends, tmp_path):
    state = tmp_path / "run"
    parameters = f"devices=2, epochs=100000, checkpoint_dir={str(state)!r}, checkpoint_every=1"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", call(tmp_path / "never", parameters)],
        cwd=HERE.parent,
        env=os.environ | {"TMPDIR": str(temporary)},
    )
    try:
        while not states(state):
            assert process.poll() is None
            time.sleep(0.5)
        workers = [int(file.read_text()) for file in temporary.glob("*/process-*")]
        assert len(workers) == 2
        process.send_signal(ends)
        assert process.wait(timeout=100) == -ends
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 100
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.5)
    left = [file.name for file in temporary.iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]  # torch's cache


class Connected:
    """A data set that holds what no other process can have."""

    def __init__(self):
        self.lock = threading.Lock()

    def __len__(self):
        return len(DIGITS)

    def __getitem__(self, index):
        return DIGITS[index]


def test_what_cannot_be_sent_says_so():
    with pytest.raises(TypeError, match=r"devices=2: cannot pickle '_thread.lock'.*torchrun"):
        small(**TWO).fit(Connected())


@pytest.mark.parametrize(
    ("n", "parameters", "said"),
    [
        (60, {"devices": 3, "batch_size": 2}, r"batch_size=2 .* 3 devices.*batch_size to 6"),
        (5, {"devices": 6, "K": 2}, "X holds 5 samples, too few for 6 devices"),
        (60, {"devices": 10**6}, "devices=1000000, but .* CPU cores allow"),
        (60, {"devices": 2**31}, "devices=2147483648 cannot be used"),
        (60, {"devices": 2, "K": 61}, "K=61 exceeds n_samples=60"),
        (60, {"devices": 2, "image_size": 640}, "image_size=640 would enlarge"),
        (60, {"devices": 2, "local_size": 24, "n_local": 1}, "local_size=24 exceeds"),
        (60, {"devices": 2, "freeze_backbone": True, "backbone": "resnet18"}, "random weights"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_starts_no_process(n, parameters, said, monkeypatch):
    monkeypatch.setattr(several_devices, "run_in_processes", None)
    with pytest.raises(ValueError, match=said):
        small(device="cpu", **parameters).fit(DIGITS[:n])


class Fading:
    """Item 3 can be opened by the process that looks for unusable ones, and by no other."""

    def __len__(self):
        return len(DIGITS)

    def __getitem__(self, index):
        if index == 3 and "RANK" in os.environ:
            raise OSError("gone")
        return DIGITS[index]


@pytest.mark.slow
def test_images_that_fail_later_are_skipped_in_all():
    with pytest.warns(SkippedImageWarning, match="gone"):
        fitted = small(**TWO, on_error="skip").fit(Fading())
    assert [image.index for image in fitted.skipped_] == [3]
    assert fitted.labels_[3] == -1
    assert (np.delete(fitted.labels_, 3) >= 0).all()


@pytest.mark.slow
def test_warnings_of_the_first_process_are_ours():
    collapsing = {"count_labels": "plain", "K": 6, "epochs": 20, "batch_size": 10}
    with pytest.warns(ConvergenceWarning, match="effective use") as said:
        small(**TWO, **collapsing).fit(DIGITS)
    assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        with pytest.raises(ConvergenceWarning, match="effective use"):
            small(**TWO, **collapsing).fit(DIGITS)


@pytest.mark.parametrize(
    ("device", "devices", "n"), [("cpu", "auto", 1), ("cpu", 3, 3), ("mps", "auto", 1)]
)
def test_number_of_devices(device, devices, n):
    assert number_of_devices(devices, torch.device(device)) == n


def test_one_device_is_not_several():
    with pytest.raises(ValueError, match="devices=2, but device='mps' is a single device"):
        number_of_devices(2, torch.device("mps"))
    with pytest.raises(ValueError, match="devices"):
        ExCBEstimator(devices=0).fit(DIGITS)


OTHERS = """
import os, sys
sys.path.insert(0, {here!r})
from tests.small_runs import DIGITS, small
n = int(os.environ["RANK"])
try:
    small({changed}).fit(DIGITS[{rows}])
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "rows", "said"),
    [
        ("K=4 + n", ":", "K was 4, now 5"),
        ("", "n:", "n_samples was 60, now 59"),
        ("random_state=n", ":", "random_state was 0, now 1"),
    ],
)
def test_ranks_at_different_fits_find_out_before_the_first_step(tmp_path, changed, rows, said):
    script = tmp_path / "script.py"
    script.write_text(OTHERS.format(here=str(HERE.parent), changed=changed, rows=rows))
    done = torchrun(script)
    assert done.stdout.count("RankError: Rank 1 does not run the same fit as rank 0") == 2
    assert done.stdout.count(said) == 2
