"""The rivals of balancing by size, against their equations and lightly's versions of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from sklearn_excb import ExCBEstimator
from sklearn_excb.method.balancing import ClusterSizes
from sklearn_excb.method.baselines import Centering, NoBalancing, Sinkhorn
from sklearn_excb.method.loss import excb_loss, teacher_targets
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.build import build_balancing
from tests import reference

G, B, D, K = 2, 12, 16, 3000  # more clusters than a block holds
IMAGES = (load_digits().images[:120] / 16).astype(np.float32)


def batch(seed=0, n_clusters=K):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(G, B, D, generator=generator)
    centroids = torch.randn(n_clusters, D, generator=generator)
    similarity = F.normalize(rows, dim=-1) @ F.normalize(centroids, dim=-1).T
    return rows, centroids, similarity


def probabilities(balancing, rows, centroids, temperature):
    balancing.observe(rows, centroids, temperature)
    targets = teacher_targets(rows, centroids, balancing.affine(), temperature=temperature)
    return targets, targets.probabilities(slice(None)).unflatten(0, rows.shape[:2])


def test_nothing_is_the_softmax():
    rows, centroids, similarity = batch()
    _, p = probabilities(NoBalancing(K), rows, centroids, 0.04)
    torch.testing.assert_close(p, torch.softmax(similarity / 0.04, dim=-1), rtol=1e-4, atol=1e-7)


def lightlys_sinkhorn(z, temperature, n_iterations):
    from lightly.loss.swav_loss import sinkhorn

    return sinkhorn(z.double(), iterations=n_iterations, epsilon=temperature)


ORACLES = [reference.sinkhorn_knopp, pytest.param(lightlys_sinkhorn, marks=pytest.mark.slow)]


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("n_clusters", [7, K])
def test_sinkhorn_is_that_of_swav(n_clusters, oracle):
    rows, centroids, similarity = batch(n_clusters=n_clusters)
    ours = Sinkhorn(n_clusters, rows_a_cluster=0)
    _, p = probabilities(ours, rows, centroids, 0.05)
    theirs = oracle(similarity.flatten(0, 1), 0.05, 3)
    torch.testing.assert_close(p.flatten(0, 1), theirs.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("oracle", ORACLES)
def test_sinkhorn_keeps_earlier_rows_where_a_batch_has_few(oracle):
    n_clusters = 20  # 30 rows wanted, 24 a batch
    ours = Sinkhorn(n_clusters)
    rows, centroids, _ = batch(0, n_clusters)
    probabilities(ours, rows, centroids, 0.05)
    ours.update(torch.zeros(G, B, dtype=torch.int64))
    later, *_ = batch(1, n_clusters)
    _, p = probabilities(ours, later, centroids, 0.05)
    unit = F.normalize(centroids, dim=-1)
    together = torch.cat([later.flatten(0, 1), rows.flatten(0, 1)[:6]])
    theirs = oracle(F.normalize(together, dim=-1) @ unit.T, 0.05, 3)
    torch.testing.assert_close(p.flatten(0, 1), theirs[:24].float(), rtol=1e-3, atol=1e-6)


def test_centering_subtracts_the_running_mean():
    n_clusters = 300
    ours, center = Centering(n_clusters), torch.zeros(n_clusters, dtype=torch.float64)
    for seed in range(3):
        rows, centroids, similarity = batch(seed, n_clusters)
        targets, p = probabilities(ours, rows, centroids, 0.07)
        expected = reference.centred(similarity.flatten(0, 1), center, 0.07)
        torch.testing.assert_close(p.flatten(0, 1), expected.float(), rtol=1e-4, atol=1e-7)
        ours.update(targets.labels)
        center = reference.center_update(center, similarity.flatten(0, 1), 0.9)


@pytest.mark.slow
def test_centering_gives_the_loss_of_dino():
    from lightly.loss import DINOLoss

    rates = {"warmup_teacher_temp": 0.07, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 0}
    theirs = DINOLoss(K, **rates)
    ours = Centering(K)
    for seed in range(3):
        rows, centroids, similarity = batch(seed)
        student = torch.randn(G + 2, B, D, generator=torch.Generator().manual_seed(9))
        student_similarity = F.normalize(student, dim=-1) @ F.normalize(centroids, dim=-1).T
        expected = theirs(list(similarity), list(student_similarity))
        targets, _ = probabilities(ours, rows, centroids, 0.07)
        ours.update(targets.labels)
        loss = excb_loss(targets, student, student, centroids, temperature=0.1)
        torch.testing.assert_close(loss.projector, expected, rtol=1e-5, atol=0)


def test_settings_name_what_is_built():
    def built(balancing):
        parameters = ExCBEstimator(K=9, balancing=balancing).get_params()
        facts = Facts(90, "images", (8, 8), 1)
        return type(build_balancing(resolve(parameters, facts, has_batch_norm=True), "cpu"))

    assert built("linear") is built("exponential") is ClusterSizes
    assert built("centering") is Centering
    assert built("sinkhorn") is Sinkhorn
    assert built("none") is NoBalancing


@pytest.mark.parametrize("balancing", ["centering", "sinkhorn", "none"])
def test_fits_with_a_rival(balancing):
    excb = ExCBEstimator(
        K=6,
        epochs=2,
        batch_size=32,
        micro_batch=20,
        image_size=12,
        local_size=8,
        head_width=16,
        balancing=balancing,
        teacher_temperature=(0.04, 0.07),
        random_state=0,
    ).fit(IMAGES)
    assert excb.resolved_params_["balancing"] == balancing
    assert np.isfinite(excb.history_[-1]["loss"])
    np.testing.assert_array_equal(excb.labels_, excb.predict(IMAGES))
