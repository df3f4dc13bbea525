"""The targets of the Makefile install once, and say in one line what is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    os.name != "posix" or shutil.which("make") is None, reason="needs a shell and make"
)
# A Python that answers what it is told to; the one that it puts into an environment logs its calls.
STUB = """#!/bin/sh
case "$*" in
  --version) echo "Python {version}" ;;
  *version_info*) exit {is_old} ;;
  *ensurepip*) exit {lacks_venv} ;;
  "-m venv"*) {venv} ;;
  "-m pip --version") ;;
  "-m pip"*) echo "$*" >> calls; {pip} ;;
esac
"""
SOUND = {
    "version": "3.12.1",
    "is_old": 0,
    "lacks_venv": 0,
    "venv": 'mkdir -p "$4/bin"; touch "$4/pyvenv.cfg"; ln -sf "$0" "$4/bin/python"',
    "pip": "true",
}


def failing(said):
    return f"echo '{said}' >&2; exit 1"


@pytest.fixture
def make(tmp_path):
    """Call a target in a folder of its own, with a Python that answers as it is told."""
    for name in ("Makefile", "pyproject.toml", ".ci/install"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE / name, tmp_path / name)

    def make(target, **answers):
        stub = tmp_path / "stub"
        stub.write_text(STUB.format(**(SOUND | answers)))
        stub.chmod(0o755)
        python = answers.get("python", stub)
        return subprocess.run(
            ["make", "--no-print-directory", f".venv/{target}", f"PYTHON={python}"],
            cwd=tmp_path,
            env={name: of for name, of in os.environ.items() if not name.startswith("M")},
            capture_output=True,
            text=True,
            check=False,
        )

    return make


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"python": "no-such-python"}, "There is no no-such-python here. Install Python 3.11"),
        ({"version": "3.8.10", "is_old": 1}, "Python 3.8.10 is too old: Python 3.11 or newer"),
        ({"lacks_venv": 1}, "apt-get install python3-venv"),
        ({"venv": failing("OSError: [Errno 28] No space left on device")}, "No space left"),
        (
            {"pip": failing("ERROR: [Errno 28] No space left on device")},
            "The disk of .venv is full",
        ),
        ({"pip": failing("NewConnectionError: Failed")}, "cannot reach the package index"),
        ({"pip": failing("ERROR: no version of it (from versions: none)")}, "no such package for"),
        ({"pip": failing("error: metadata-generation-failed")}, "metadata-generation-failed"),
        ({"pip": failing("ERROR: Cannot install a and b")}, "pip failed: ERROR: Cannot install a"),
    ],
)
def test_what_is_missing_is_said_in_one_line(answers, said, make, tmp_path):
    done = make(".demo", **answers)
    assert done.returncode != 0
    ours, of_make = done.stderr.splitlines()
    assert said in ours
    assert of_make.startswith("make: ***")
    assert not (tmp_path / ".venv" / ".demo").exists()


def test_a_target_installs_once_and_another_what_it_lacks(make, tmp_path):
    for target, group in ((".demo", "demo"), (".test", "test"), (".lint", "lint")):
        assert make(target).returncode == 0
        calls = (tmp_path / "calls").read_text().splitlines()
        assert f"--group {group}" in calls[-1]
        again = make(target)
        assert "is up to date" in again.stdout
        assert (tmp_path / "calls").read_text().splitlines() == calls


def test_what_failed_is_tried_again(make):
    assert make(".test", pip=failing("NewConnectionError")).returncode != 0
    assert make(".test").returncode == 0


def test_an_environment_that_was_left_half_made_is_made_again(make, tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "pyvenv.cfg").touch()
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/no/such/python")
    assert make(".test").returncode == 0


def test_what_is_no_environment_is_left_alone(make, tmp_path):
    (tmp_path / ".venv").mkdir()
    precious = tmp_path / ".venv" / "thesis.txt"
    precious.write_text("mine")
    done = make(".test", venv=failing("never called"))
    assert ".venv is no virtual environment" in done.stderr
    assert precious.read_text() == "mine"
