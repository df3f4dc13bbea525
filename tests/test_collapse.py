"""What a fit watches for: clusters that collapse, and a training that diverges."""

import copy
import math
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import sklearn_excb.fitting.run
from sklearn_excb import ExCBEstimator
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.collapse import collapse
from sklearn_excb.training.final_labels import in_one_cluster, why_alike

DIGITS = (load_digits().images[:240] / 16).astype(np.float32)
SMALL = {"image_size": 12, "local_size": 8, "n_local": 1, "head_width": 32}
HEALTHY = {
    "epoch": 30,
    "loss": 2.1,
    "effective_clusters": math.nan,
    "effective_clusters_balanced": 73.0,
    "effective_clusters_plain": 71.0,
    "teacher_entropy": 0.3,
}


def settings(**parameters):
    facts = Facts(1437, "images", (8, 8), 1)
    return resolve(ExCBEstimator(**parameters).get_params(), facts, has_batch_norm=True)


def found_in(record, **parameters):
    return collapse(HEALTHY | record, settings(**parameters), steps_per_epoch=22)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"epoch": 1, "effective_clusters_balanced": 3.0},
        {"epoch": 3, "effective_clusters_plain": 3.0},
        {"effective_clusters_plain": 3.0},
        {"epoch": 4, "effective_clusters": 3.0, "empty_fraction": 0.9},
        {"epoch": 3, "loss": math.log(74), "teacher_entropy": 0.99},
    ],
    ids=[
        "trained",
        "first epoch",
        "before balancing, early",
        "will settle",
        "88 steps",
        "warming up",
    ],
)
def test_healthy_epochs_pass(record):
    assert found_in(record) is None


@pytest.mark.parametrize(
    ("record", "parameters", "said"),
    [
        ({"effective_clusters_balanced": 30.0}, {}, "after balancing. Raise size_momentum"),
        (
            {"effective_clusters_balanced": 30.0},
            {"balancing": "centering"},
            'Set balancing="linear"',
        ),
        ({"effective_clusters_balanced": 30.0}, {"count_labels": "plain"}, '"balanced"'),
        (
            {"effective_clusters_plain": 30.0},
            {"settle_passes": 0},
            "only 30 without it, .* Train longer",
        ),
        ({"effective_clusters_plain": 30.0}, {"balancing": "sinkhorn"}, '="linear"'),
        ({"effective_clusters": 9.0, "empty_fraction": 0.8}, {}, "80% are empty. Train longer"),
        ({"loss": math.log(74)}, {}, "does not follow the teacher: .* Train longer"),
        ({"loss": 9.0}, {"learning_rate": 1.0}, 'Set learning_rate="auto", 0.075 here'),
        ({"teacher_entropy": 0.99}, {}, "learned little so far: .* Raise epochs"),
        ({"teacher_entropy": 0.99}, {"teacher_temperature": 0.2}, "Lower teacher_temperature"),
    ],
)
def test_every_collapse_has_its_advice(record, parameters, said):
    reason = found_in(record, **parameters)
    assert reason is not None
    assert re.search(said, reason)


@pytest.mark.parametrize("K", [2, 3])
def test_two_or_three_clusters_may_be_uneven(K):
    record = HEALTHY | {"loss": 0.3, "effective_clusters_plain": 1.2}
    record["effective_clusters_balanced"] = 1.2
    assert collapse(record, settings(K=K), steps_per_epoch=22) is None


def test_few_images_cannot_fill_many_clusters():
    K = 90
    labels = np.random.default_rng(0).integers(0, K, 64)
    share = np.bincount(labels) / 64
    used = float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
    even = HEALTHY | {"effective_clusters_balanced": used, "effective_clusters_plain": used}
    assert used < K / 2
    assert collapse(even, settings(K=K), steps_per_epoch=1) is None  # of 64 images


def test_labels_in_few_clusters_are_told_at_the_end_of_a_short_run():
    soon = {"epochs": 2, "batch_size": 4, "learning_rate": 0.5}
    excb = ExCBEstimator(K=40, balancing="none", random_state=0, **SMALL, **soon)
    with pytest.warns(ConvergenceWarning, match='have collapsed: labels_ .*"linear"') as caught:
        excb.fit(DIGITS)
    assert len(caught) == 1
    assert caught[0].filename == __file__


class WithMore(torch.nn.Sequential):
    """A backbone that keeps a mask of infinities, and a state that is no tensor."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(16))
        self.register_buffer("mask", torch.full((3,), -math.inf))

    def get_extra_state(self):
        return {"of": "its own"}

    def set_extra_state(self, state):
        assert state == {"of": "its own"}


def test_other_state_than_parameters_is_no_divergence():
    backbone = WithMore()
    backbone(torch.zeros(2, 1, 24, 24))  # sets the shape of its layer
    excb = ExCBEstimator(K=4, epochs=1, backbone=backbone, n_local=0, random_state=0)
    assert len(excb.fit(DIGITS[:80]).history_) == 2


def test_a_fit_without_balancing_is_told_so():
    excb = ExCBEstimator(K=40, epochs=6, balancing="none", random_state=0, **SMALL)
    with pytest.warns(
        ConvergenceWarning, match=r'collapsing: in epoch .*"none".*"linear"'
    ) as caught:
        excb.fit(DIGITS)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_fit_that_learns_nothing_is_told_so():
    excb = ExCBEstimator(K=40, epochs=6, learning_rate=1e-6, random_state=0, **SMALL)
    with pytest.warns(ConvergenceWarning, match=r'Set learning_rate="auto", .* \(now 1e-06\)'):
        excb.fit(DIGITS)


def test_a_run_that_diverges_later_ends_with_the_last_sound_epoch(monkeypatch):
    train, sound = sklearn_excb.fitting.run.train, {}

    def poisoned(networks, *arguments, **options):
        for report in train(networks, *arguments, **options):
            if report.epoch == 3:
                networks.teacher.projector[0].weight.data.fill_(math.nan)
                networks.teacher.projector[1].running_var.fill_(math.nan)
            else:
                sound.update(copy.deepcopy(networks.teacher.state_dict()))
            yield report

    monkeypatch.setattr(sklearn_excb.fitting.run, "train", poisoned)
    excb = ExCBEstimator(K=6, epochs=4, batch_size=64, settle_passes=0, random_state=0, **SMALL)
    with pytest.warns(ConvergenceWarning, match="diverged in epoch 3 of 4.*after epoch 2"):
        excb.fit(DIGITS)
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert not math.isnan(excb.history_[-1]["empty_fraction"])
    for name, tensor in excb._fitted.teacher.state_dict().items():
        torch.testing.assert_close(tensor, sound[name], rtol=0, atol=0)
    np.testing.assert_array_equal(excb.labels_, excb.predict(DIGITS))


def slow_if(route):
    return [pytest.mark.slow] if route == "two processes" else []


TINY = {"K": 4, "epochs": 2, "batch_size": 16, "image_size": 12, "n_local": 0, "head_width": 16}
ROUTES = ["images", "rows", "mlp", "frozen", "two processes", "stream", "partial_fit"]


def fit_by(route, images, **parameters):
    """Fit the same samples by each route; what was learned is asked for."""
    excb = ExCBEstimator(**(TINY | {"random_state": 0, "devices": 1} | parameters))
    rows = images.reshape(len(images), -1)
    if route in ("rows", "mlp"):
        excb.set_params(image_size="auto", backbone="auto" if route == "rows" else "mlp").fit(rows)
    elif route == "frozen":
        backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 8))
        excb.set_params(backbone=backbone, freeze_backbone=True).fit(images)
    elif route == "two processes":
        excb.set_params(devices=2, device="cpu").fit(images)
    elif route == "stream":
        excb.set_params(steps_per_epoch=3).fit(iter_again(images))
    elif route == "partial_fit":
        excb.partial_fit(images[:30]).partial_fit(images[30:])
    else:
        excb.fit(images)
    return excb.predict(rows if route in ("rows", "mlp") else images)


def iter_again(images):
    class Again(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(images)

    return Again()


@pytest.mark.parametrize("route", [pytest.param(r, marks=slow_if(r)) for r in ROUTES])
@pytest.mark.parametrize("parameters", [{}, {"K": 2}, {"settle_passes": 0}], ids=str)
def test_copies_are_named_by_every_route(route, parameters):
    images = np.repeat(DIGITS[:1], 48, axis=0)
    with pytest.warns(ConvergenceWarning, match="in one cluster .* copies of one another") as told:
        labels = fit_by(route, images, **parameters)
    assert len(set(labels)) == 1
    assert len(told) == 1
    assert told[0].filename == __file__


def test_copies_are_named_by_early_warnings_too():
    with pytest.warns(ConvergenceWarning, match="copies of one another") as told:
        fit_by("images", np.repeat(DIGITS[:1], 48, axis=0), epochs=60)
    assert len(told) == 1


def test_the_labels_of_a_short_fit_are_judged():
    with pytest.warns(ConvergenceWarning, match=r"all 48 .*took 3 steps.*epochs \(now 1\)"):
        fit_by("images", DIGITS[:48], epochs=1)


def test_a_warning_of_the_run_before_does_not_hide_the_result(tmp_path):
    images, again = np.repeat(DIGITS[:1], 48, axis=0), {"checkpoint_dir": tmp_path}
    for _ in range(2):  # the second time it resumes after the last step
        with pytest.warns(ConvergenceWarning, match="have collapsed"):
            fit_by("images", images, **again)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ([40, 0, 0, 0], "all 40 samples are in one cluster of 4"),
        ([37, 3, 0, 0], "37 of 40 samples"),
        ([30, 10, 0, 0], None),
        ([39, 1], None),
        ([40, 0], "one cluster of 2"),
        ([1, 0, 0, 0], None),
        ([0, 0, 0, 0], None),
    ],
    ids=str,
)
def test_labels_that_are_all_alike(counts, told):
    labels = np.repeat(np.arange(len(counts)), counts)
    found = in_one_cluster(np.append(labels, -1), len(counts))
    assert (told is None and found is None) or told in found


NOISE = np.random.default_rng(0).normal(size=(60, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e15])
@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (NOISE, None),
        (NOISE + 30, None),
        (NOISE[:1].repeat(60, 0), "copies of one another"),
        (np.zeros_like(NOISE), "copies of one another"),
        (np.concatenate([NOISE[:1].repeat(40, 0), NOISE[1:21]]), "67% of the samples are copies"),
        (NOISE[:5].repeat(12, 0), "Only 5 of 60 .*lower K to 5"),
        (NOISE / 1000 + 1, "hardly differ: by 0.001"),
    ],
    ids=["noise", "offset", "one", "zeros", "most", "few", "alike"],
)
def test_what_makes_labels_alike(samples, told, unit):
    samples = torch.from_numpy(samples * np.float32(unit))
    cause = why_alike(samples.split(7), n_clusters=8)
    assert (told is None and cause is None) or re.search(told, cause)
