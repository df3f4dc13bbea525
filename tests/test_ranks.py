"""Several processes fit together as one does: run by torchrun, on CPUs, by gloo."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def torchrun(*arguments, n=2, cwd=None):
    """Run a command in as many processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, f"--nproc-per-node={n}", *map(str, arguments)],
        cwd=HERE.parent if cwd is None else cwd,
        capture_output=True,
        text=True,
        timeout=540,
    )


@pytest.mark.slow
def test_what_two_processes_have_to_be_to_each_other():
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-rfE"]
    done = torchrun("-m", "pytest", *options, HERE / "on_two_ranks.py")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert done.stdout.count(" passed") == 2
    assert done.stdout.count("threads at the end: 0") == 2
