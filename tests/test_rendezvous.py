"""What launchers leave in the environment, and meetings that come to nothing."""

import os
import socket
import subprocess
import sys
import time

import pytest

from sklearn_excb.runtime.rendezvous import Place, first_host, place_of
from tests.test_ranks import HERE

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234567",
}


def test_places():
    assert place_of({}) is None
    assert place_of(TORCHRUN) == Place(5, 8, 1, "node7:29500")
    assert place_of(SRUN) == Place(5, 8, 1, "gpu07:24567")
    assert place_of(SRUN | {"SLURM_STEP_ID": "1"}).address == "gpu07:24664"  # beside step 0
    assert place_of(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "1"}) == Place(5, 8, 1, "a:1")
    assert place_of(TORCHRUN | SRUN) == Place(5, 8, 1, "node7:29500")


def test_the_script_that_calls_srun_is_no_process_of_it():
    assert place_of({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) is None


def test_half_a_launcher_is_an_error():
    with pytest.raises(ValueError, match=r"not MASTER_ADDR and MASTER_PORT\. Start the script"):
        place_of({"RANK": "0", "WORLD_SIZE": "2"})
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}).count == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[07-09,12],cpu3", "gpu07"), ("node1", "node1"), ("a,b", "a"), ("n-[1,3]", "n-1")],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


SCRIPT = """
from sklearn_excb import ExCBEstimator
ExCBEstimator(K=2, device="cpu", {parameters}).fit([[0.0, 1.0]] * 8)
"""


def fit_under(environment, parameters=""):
    """Fit in a process, with an environment; what it wrote to stderr, and the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(parameters=parameters)],
        env=os.environ | environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stderr, time.monotonic() - begun


@pytest.mark.slow
def test_a_meeting_that_nobody_comes_to_ends():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    place = TORCHRUN | {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    seconds = {"SKLEARN_EXCB_RENDEZVOUS_SECONDS": "2"}
    said, took = fit_under(place | seconds)
    assert f"Rank 5 could not connect to the other 7 processes at localhost:{port} within 2" in said
    assert took < 120


def test_a_port_in_use_is_named():
    with socket.socket() as used:
        used.bind(("0.0.0.0", 0))
        used.listen()
        port = str(used.getsockname()[1])
        place = TORCHRUN | {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        said, _ = fit_under(place | {"SKLEARN_EXCB_RENDEZVOUS_SECONDS": "30"})
    assert f"Rank 0 could not connect to the other 7 processes at localhost:{port}" in said
    assert "in use" in said


@pytest.mark.slow
def test_one_device_is_alone_under_a_launcher():
    said, _ = fit_under(TORCHRUN | {"SKLEARN_EXCB_RENDEZVOUS_SECONDS": "1"}, "devices=1, epochs=0")
    assert not said
