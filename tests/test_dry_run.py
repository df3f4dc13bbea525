"""A fit tried before it starts: what it says, and that it changes nothing."""

import itertools
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator
from sklearn_excb.cli.commands import main
from sklearn_excb.data.sources import ArrayImages
from sklearn_excb.fitting.dry_run import dry_run
from sklearn_excb.training.context import FitContext
from tests.small_runs import BreaksOffError, breaking_off

DIGITS = (load_digits().images[:60] / 16).astype(np.float32)
SMALL = {"K": 6, "epochs": 3, "batch_size": 20, "n_local": 1, "random_state": 0, "device": "cpu"}
SMALL |= {"image_size": 12, "local_size": 8, "head_width": 16}
OF_ROWS = {"image_size": "auto", "local_size": "auto"}


def small(**parameters):
    return ExCBEstimator(**(SMALL | parameters))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(DIGITS[:24]):
        Image.fromarray((image * 255).astype(np.uint8)).resize((40, 40)).save(folder / f"{i}.png")
    return folder


def test_times_add_up():
    """With a clock that ticks each time it is read."""
    source = ArrayImages(DIGITS[..., None])
    found = dry_run(
        source,
        FitContext(small(epochs=4).get_params(), 0, torch.device("cpu")),
        clock=itertools.count().__next__,
    )
    assert (found.n_samples, found.steps_per_epoch, found.n_steps) == (60, 3, 12)
    assert found.seconds_per_step == 3  # read before and after the batch, and after the step
    assert found.waiting == pytest.approx(1 / 3)
    assert found.images_per_second == pytest.approx(20 / 3)
    assert found.seconds["training"] == 12 * 3
    assert found.seconds["start"] == 3 * 1  # three batches of 20
    assert found.seconds["labels"] == pytest.approx(2 * 60 * 1 / 60)  # twice, a batch of 60 a tick
    a_comparison = 1 / 1024
    assert found.seconds["k-means"] == pytest.approx(50 * 60 * a_comparison)
    assert found.seconds["settling"] == pytest.approx(60 * (1 / 60 + 10 * 2 * a_comparison))
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))


def test_nothing_is_changed(tmp_path):
    never = small().fit(DIGITS)
    excb = small(checkpoint_dir=tmp_path / "run")
    before = dict(vars(excb))
    np.random.seed(3)  # noqa: NPY002 - the global state that is left alone
    states = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()  # noqa: NPY002
    excb.dry_run(DIGITS)
    assert vars(excb) == before
    mine, other = np.random.RandomState(4), np.random.RandomState(4)
    small(random_state=mine).dry_run(DIGITS)
    assert mine.randint(2**31) == other.randint(2**31)
    assert not (tmp_path / "run").exists()
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[1])
    assert random.getstate() == states[2]
    np.testing.assert_array_equal(excb.fit(DIGITS).transform(DIGITS), never.transform(DIGITS))
    fitted = dict(vars(never))
    never.dry_run(DIGITS)
    assert vars(never) == fitted


def test_what_a_state_has_behind_it_is_not_to_be_done_again(tmp_path):
    with breaking_off(after=5), pytest.raises(BreaksOffError):
        small(checkpoint_dir=tmp_path, checkpoint_every=1).fit(DIGITS)
    left = sorted(tmp_path.iterdir())
    found = small(checkpoint_dir=tmp_path).dry_run(DIGITS)
    assert found.n_done == 4
    assert "start" not in found.seconds
    assert found.seconds["training"] == pytest.approx(
        (found.n_steps - found.n_done) * found.seconds_per_step
    )
    assert f"{found.n_done} of them done" in str(found)
    assert sorted(tmp_path.iterdir()) == left


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"K": 61}, "61"),
        ({"precision": "8"}, "precision"),
        ({"steps_per_epoch": 5}, "has no dry run"),
        ({"backbone": "resnet0"}, "resnet0"),
        ({"resume": True, "checkpoint_dir": "nowhere"}, "holds no checkpoint"),
    ],
)
def test_errors_are_those_of_the_fit(parameters, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        small(**parameters).dry_run(DIGITS)


@pytest.mark.parametrize(
    ("X", "parameters"),
    [
        (DIGITS[:3], {"K": 2, "batch_size": "auto"}),
        (DIGITS.reshape(60, 64), OF_ROWS),
        (DIGITS, {"epochs": 0}),
        (DIGITS, {"micro_batch": "auto", "settle_passes": 0}),
        (iter(DIGITS), {}),
    ],
    ids=["three images", "rows", "no epochs", "micro-batch", "stream"],
)
def test_whatever_can_be_fitted_has_a_dry_run(X, parameters):
    found = small(**parameters).dry_run(X)
    assert np.isfinite(found.total_seconds)
    assert found.total_seconds > 0
    assert np.isfinite(found.seconds_per_step) == (found.resolved["epochs"] > 0)
    assert "to go" in str(found)


def test_of_several_devices_each_has_its_share():
    alone, shared = small().dry_run(DIGITS), small(devices=2).dry_run(DIGITS)
    assert shared.n_devices == 2
    assert shared.n_steps == alone.n_steps
    assert shared.memory.phases["step"]["views"] == alone.memory.phases["step"]["views"] / 2
    assert shared.resolved["batch_size"] == 20
    assert "each of 2 x cpu" in str(shared)
    assert "without messages between devices" in str(shared)


def test_a_backbone_that_cannot_be_followed_has_a_dry_run_all_the_same():
    class Looking(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Linear(24 * 24, 8)

        def forward(self, x):
            assert float(x.flatten()[0]) < 100
            return self.weight(torch.nn.functional.interpolate(x, 24).flatten(1))

    assert "cannot be estimated" in str(small(backbone=Looking()).dry_run(DIGITS))


def test_from_the_shell(photos, capsys):
    words = ["fit", str(photos), "--dry-run", "--K", "4", "--epochs", "2", "--batch-size", "8"]
    assert main(words) == 0
    said = capsys.readouterr().out
    for part in ("K=4", "at the peak", "waiting for images", "6 (3 per epoch)", "to go"):
        assert part in said
    (photos / "broken.png").write_bytes(b"no picture")
    assert main([*words, "--on-error", "skip"]) == 0
    assert "images   24" in capsys.readouterr().out
    assert main(["fit", str(photos)]) == 2
    assert "--out" in capsys.readouterr().err
