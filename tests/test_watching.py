"""What a fit watches for: clusters that collapse, and a training that diverges."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

import sklearn_excb.fitting
from sklearn_excb import ExCBEstimator
from sklearn_excb.auto import Facts, resolve
from sklearn_excb.watching import collapse

DIGITS = (load_digits().images[:400] / 16).astype(np.float32)
HEALTHY = {
    "epoch": 30,
    "loss": 2.1,
    "effective_clusters_balanced": 73.0,
    "teacher_entropy": 0.3,
}


def settings(**parameters):
    facts = Facts(1437, "images", (8, 8), 1)
    return resolve(ExCBEstimator(**parameters).get_params(), facts, has_batch_norm=True)


@pytest.mark.parametrize(
    "record",
    [
        HEALTHY,
        HEALTHY | {"epoch": 1, "effective_clusters_balanced": 3.0},
        HEALTHY | {"epoch": 3, "loss": math.log(74), "teacher_entropy": 0.99},
    ],
    ids=["trained", "first epoch", "warming up"],
)
def test_healthy_epochs_pass(record):
    assert collapse(record, settings()) is None


@pytest.mark.parametrize(
    ("found", "parameters", "advice"),
    [
        ({"effective_clusters_balanced": 30.0}, {}, "Raise size_momentum"),
        ({"effective_clusters_balanced": 30.0}, {"balancing": "centering"}, 'set "linear"'),
        ({"effective_clusters_balanced": 30.0}, {"count_labels": "plain"}, '"balanced"'),
        ({"loss": math.log(74)}, {}, "Raise learning_rate"),
        ({"teacher_entropy": 0.99}, {}, "Raise learning_rate"),
    ],
)
def test_every_collapse_has_its_advice(found, parameters, advice):
    reason = collapse(HEALTHY | found, settings(**parameters))
    assert reason is not None
    assert advice in reason


def test_a_fit_without_balancing_is_told_so():
    excb = ExCBEstimator(K=40, epochs=6, balancing="none", random_state=0)
    with pytest.warns(
        ConvergenceWarning, match=r'collapsing: in epoch .*"none".*"linear"'
    ) as caught:
        excb.fit(DIGITS)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_a_fit_that_learns_nothing_is_told_so():
    excb = ExCBEstimator(K=40, epochs=6, learning_rate=1e-6, random_state=0)
    with pytest.warns(ConvergenceWarning, match="no image differs"):
        excb.fit(DIGITS)


def test_the_defaults_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        ExCBEstimator(random_state=0).fit(DIGITS)


def test_a_run_that_diverges_later_ends_with_the_last_sound_epoch(monkeypatch):
    train, sound = sklearn_excb.fitting.train, {}

    def poisoned(networks, *arguments, **options):
        for report in train(networks, *arguments, **options):
            if report.epoch == 3:
                networks.teacher.projector[0].weight.data.fill_(math.nan)
            else:
                sound.update(copy.deepcopy(networks.teacher.state_dict()))
            yield report

    monkeypatch.setattr(sklearn_excb.fitting, "train", poisoned)
    excb = ExCBEstimator(K=6, epochs=4, batch_size=64, random_state=0)
    with pytest.warns(ConvergenceWarning, match="diverged in epoch 3 of 4.*after epoch 2"):
        excb.fit(DIGITS)
    assert [entry["epoch"] for entry in excb.history_] == [0, 1, 2]
    assert not math.isnan(excb.history_[-1]["empty_fraction"])
    weight = excb._fitted.teacher.projector[0].weight
    torch.testing.assert_close(weight, sound["projector.0.weight"], rtol=0, atol=0)
    np.testing.assert_array_equal(excb.labels_, excb.predict(DIGITS))
