"""Examples of several processes, run as a person would."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator
from tests.test_ranks import HERE, torchrun

EXAMPLES = HERE.parent / "examples"


def run(*arguments, cwd, **environment):
    """Run an example in a folder."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        # Ray would have its workers wait for whatever else runs here, other tests among them
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "RAY_worker_niceness": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=1500,  # Ray takes minutes to begin where cores are few and busy
    )


@pytest.mark.slow
def test_every_launcher_gives_the_same_to_the_bit(tmp_path):
    pytest.importorskip("ray")
    script = EXAMPLES / "several_devices.py"
    done = run(script, "--devices", 2, "--out", "itself", cwd=tmp_path)
    assert "2 processes, 0% of 50 clusters are empty" in done.stdout, done.stderr
    done = torchrun(script, "--out", tmp_path / "torchrun")
    assert "2 processes, 0% of 50 clusters are empty" in done.stdout, done.stderr
    done = run(EXAMPLES / "ray_train.py", cwd=tmp_path)
    assert "2 workers, 1,797 images" in done.stdout, done.stderr

    folders = ("itself", "torchrun", "fitted-by-ray")
    itself, *others = (ExCBEstimator.load(tmp_path / name) for name in folders)
    for other in others:
        np.testing.assert_array_equal(other.labels_, itself.labels_)
        np.testing.assert_array_equal(other.cluster_centers_, itself.cluster_centers_)
        np.testing.assert_equal(other.history_, itself.history_)


def srun(rank):
    """What srun leaves for one of two processes."""
    names = {"STEP_NUM_TASKS": 2, "STEP_NODELIST": "localhost", "PROCID": rank, "LOCALID": rank}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


@pytest.mark.slow
def test_what_srun_leaves_is_enough(tmp_path):
    command = [sys.executable, str(EXAMPLES / "several_devices.py"), "--run", "run"]
    common = os.environ | {"PYTHONPATH": str(HERE.parent), "SLURM_JOB_ID": "4711"}
    processes = [
        subprocess.Popen(
            command, cwd=tmp_path, env=common | srun(rank), stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    first, second = (process.communicate(timeout=540)[0] for process in processes)
    assert "2 processes" in first
    assert not second
    assert (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.slow
def test_imagenet_in_small(tmp_path):
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images[:240], digits.target, strict=False)):
        split = "validation" if number % 4 == 0 else "train"
        file = tmp_path / split / f"digit {digit}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(file)
    small = {"K": 10, "backbone": "cnn", "image_size": 24, "local_size": 16, "batch_size": 32}
    changes = small | {"n_local": 2, "epochs": 4, "warmup_epochs": 1, "head_width": 64}
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    command = [EXAMPLES / "train_imagenet.py", "train", "--validation", "validation", *words]
    told = run(*command, "--dry-run", cwd=tmp_path)
    assert "to go" in told.stdout, told.stderr
    done = run(*command, cwd=tmp_path)
    assert "of the clusters are empty" in done.stdout, done.stderr
    assert "of 60 held-out images" in done.stdout
    assert float(done.stdout.split()[-1]) > 0.5
    assert ExCBEstimator.load(tmp_path / "run" / "fitted").labels_.shape == (180,)
