"""Tests of two processes together, each of which runs all of them; see ``test_ranks.py``."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_blobs
from sklearn.preprocessing import normalize
from torch import nn

from sklearn_excb import ExCBEstimator
from sklearn_excb.data.sources import Rows
from sklearn_excb.exceptions import RankError
from sklearn_excb.method.kmeans import spherical_kmeans
from sklearn_excb.networks.backbones import RowMLP
from sklearn_excb.networks.student_teacher import build_networks
from sklearn_excb.networks.sync_batch_norm import synchronized_batch_norm
from sklearn_excb.runtime.ranks import ALONE
from sklearn_excb.runtime.rendezvous import join
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.build import build_balancing
from sklearn_excb.training.loop import start_centroids, train
from sklearn_excb.training.optimizer import Plan, build_optimizer
from sklearn_excb.training.settling import are_distinct, settle
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.row_views import row_recipe
from tests.small_runs import tell_threads_at_the_end

tell_threads_at_the_end()
RANKS, _ = join("cpu", "auto")
N, K, STEPS = 240, 8, 20


@pytest.fixture(scope="module", autouse=True)
def _parting():
    """Hold on to nothing that would keep threads alive when Python ends."""
    yield
    del globals()["RANKS"]


def test_there_are_two():
    assert RANKS.count == 2
    assert join("cpu", 1)[0] is ALONE
    with pytest.raises(ValueError, match="devices=3, but a launcher has started 2 processes"):
        join("cpu", 3)


@pytest.mark.parametrize("n", [2, 7, 16])
def test_shares_are_all_there_is(n):
    mine = torch.arange(n)[RANKS.span(n)]
    assert RANKS.fewest(n) <= len(mine) <= RANKS.most(n)
    torch.testing.assert_close(RANKS.concatenate_spans(mine, n), torch.arange(n))
    rows = torch.arange(2 * n).view(n, 2)[RANKS.span(n)]
    torch.testing.assert_close(RANKS.concatenate(rows), torch.arange(2 * n).view(n, 2))
    torch.testing.assert_close(RANKS.concatenate(rows.T, dim=1), torch.arange(2 * n).view(n, 2).T)


def test_sums():
    tensors = [torch.full((3, 2), 1.0 + RANKS.rank), torch.full((2,), RANKS.rank).long()]
    tensors.append(torch.full((600, 600), 1.0))
    RANKS.sum_each(tensors)
    assert [tensor.unique().tolist() for tensor in tensors] == [[3.0], [1], [2.0]]
    places = np.arange(9)[RANKS.rank :: 2]
    np.testing.assert_array_equal(RANKS.placed(places**2, places, 9), np.arange(9) ** 2)
    assert RANKS.any(RANKS.rank == 1, False) == [True, False]
    assert RANKS.objects(RANKS.rank) == [0, 1]
    assert RANKS.broadcast(str(RANKS.rank)) == "0"
    tensor = torch.tensor([RANKS.rank])
    RANKS.broadcast_([tensor])
    assert tensor.item() == 0


def test_an_error_of_one_is_raised_on_all():
    expected = [(RankError, r"rank 1 of 2.*IndexError"), (IndexError, "out of range")]
    kind, said = expected[RANKS.rank]
    with pytest.raises(kind, match=said), RANKS.together():
        [0][RANKS.rank]
    with RANKS.together():
        pass


def test_what_differs_is_named():
    with pytest.raises(RankError, match=r"Rank 1 does not run the same fit.*K was 0, now 1"):
        RANKS.agree(RANKS.rank, lambda first, other: [f"K was {first}, now {other}"])
    RANKS.agree(0, lambda first, other: ["differs"] if first != other else [])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (6, 3, 4, 4)])
def test_batch_norm_sees_the_rows_of_both(shape, affine):
    torch.manual_seed(0)
    x = (3 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
    towards = torch.randn(shape, dtype=torch.float64)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    whole = kind(3, affine=affine).double()
    if affine:
        nn.init.normal_(whole.weight)
        nn.init.normal_(whole.bias)
    shared = copy.deepcopy(whole)
    (whole(x) * towards).sum().backward()

    mine = RANKS.span(len(x))
    part = x.detach()[mine].requires_grad_()
    with synchronized_batch_norm(RANKS):
        y = shared(part)
    (y * towards[mine]).sum().backward()
    torch.testing.assert_close(y, whole(x)[mine])
    torch.testing.assert_close(part.grad, x.grad[mine])
    RANKS.sum_each(p.grad for p in shared.parameters())
    for ours, theirs in zip(shared.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    whole = kind(3).double()
    whole(x)
    torch.testing.assert_close(shared.running_mean, whole.running_mean)
    torch.testing.assert_close(shared.running_var, whole.running_var)
    with synchronized_batch_norm(RANKS):  # inference is each one's own
        torch.testing.assert_close(shared.eval()(part), shared(part))


def test_batch_norm_keeps_the_precision_of_its_input():
    x = torch.randn(8, 3).bfloat16()
    with synchronized_batch_norm(RANKS):
        y = nn.BatchNorm1d(3)(x[RANKS.span(8)])
    assert y.dtype == torch.bfloat16
    expected = F.batch_norm(x.float(), None, None, training=True)
    torch.testing.assert_close(y.float(), expected[RANKS.span(8)], rtol=0.02, atol=0.02)


def blobs(n, n_features, centers=4):
    X, _ = make_blobs(n, centers=centers, n_features=n_features, random_state=0)
    return X.astype(np.float32)


@pytest.mark.parametrize(("n_clusters", "n_starts"), [(5, 1), (40, 1), (5, 3)])
def test_kmeans_of_shares_is_that_of_all(n_clusters, n_starts):
    rows, options = blobs(130, 6), {"seed": 0, "n_starts": n_starts}
    places = np.arange(130)[RANKS.rank :: 2]
    alone = spherical_kmeans(rows, n_clusters, **options)
    shared = spherical_kmeans(rows[places], n_clusters, ranks=RANKS, places=places, **options)
    np.testing.assert_allclose(shared.unit, alone.unit, atol=1e-5)
    np.testing.assert_allclose(shared.means, alone.means, atol=1e-5)


@pytest.mark.parametrize(("balancing", "passes"), [("linear", 4), ("sinkhorn", 1)])
@pytest.mark.parametrize("n", [10, 200])
def test_settling_on_shares_is_that_on_all(n, balancing, passes):
    rows = normalize(blobs(n, 16)).astype(np.float32)
    params = {"K": K, "balancing": balancing, "settle_passes": passes}
    facts = Facts(n_samples=600, kind="rows", shape=(0, 0), n_channels=16)
    settings = resolve(ExCBEstimator(**params).get_params(), facts, has_batch_norm=True)
    generator = torch.Generator().manual_seed(0)
    centroids = F.normalize(torch.randn(K, 16, generator=generator), dim=-1)
    alone = settle(rows, centroids, settings, seed=0)
    mine = rows[RANKS.span(n)]
    assert are_distinct(mine, RANKS)
    shared = settle(mine, centroids, settings, n_samples=n, seed=0, ranks=RANKS)
    torch.testing.assert_close(shared.centroids, alone.centroids, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(shared.labels_before, alone.labels_before)


def trained(ranks, dtype, **parameters):
    """Networks and operator after 20 steps, what the steps found, and their labels."""
    torch.manual_seed(0)
    few = {"K": K, "epochs": 4, "batch_size": 45, "head_width": 16, "precision": "32", "n_jobs": 1}
    parameters = ExCBEstimator(**(few | parameters)).get_params()
    X = blobs(N, 5, 10)
    facts = Facts(n_samples=N, kind="rows", shape=(0, 0), n_channels=5)
    settings = resolve(parameters, facts, has_batch_norm=True)
    with_batch_norm = settings.optimizer == "sgd"
    backbone = RowMLP(5, 16) if with_batch_norm else nn.Sequential(nn.Linear(5, 16), nn.GELU())
    networks = build_networks(backbone, 16, n_clusters=K, head_width=16).to(dtype)
    source = Rows(X)
    recipe = row_recipe(source.load, N, n_clusters=K, n_global=2, n_local=settings.n_local)
    batches = ViewBatches(
        source, recipe, settings.batch_size, 4, 0, 1, torch.device("cpu"), ranks=ranks
    )

    def precise(some):
        for batch in some:
            yield batch._replace(groups=[group.to(dtype) for group in batch.groups])

    start_centroids(networks, precise(batches.start()), settings, seed=0, ranks=ranks)
    balancing = build_balancing(settings, "cpu")
    optimizer = build_optimizer(networks.student, settings)
    plan = Plan.of(settings, N)
    assert plan.total_steps == STEPS
    steps = train(
        networks, balancing, optimizer, precise(batches), settings, plan, seed=0, ranks=ranks
    )
    labels, losses = [], []
    for report in steps:
        labels.append(report.outcome.labels)
        losses.append(torch.stack([*report.outcome.loss]))
    weights = torch.cat([tensor.flatten() for tensor in networks.state_dict().values()])
    operator = torch.cat([*balancing.affine()])
    return [weights, operator, torch.stack(losses)], torch.stack(labels)


def apart(ours, theirs):
    """Distance of two tensors, relative in norm."""
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"n_local": 0},
        {"optimizer": "adamw"},
        {"balancing": "centering"},
        {"balancing": "sinkhorn"},
        {"balancing": "exponential"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_twenty_steps_of_two_are_those_of_one(parameters, dtype, most):
    alone, labels = trained(ALONE, dtype, **parameters)
    together, shared_labels = trained(RANKS, dtype, **parameters)
    distances = [apart(*of) for of in zip(together, alone, strict=True)]
    assert max(distances) < most
    torch.testing.assert_close(shared_labels, labels)
    first, second = RANKS.objects(together)
    for ours, theirs in zip(first, second, strict=True):  # or the two would part
        assert torch.equal(ours, theirs)


def test_a_stream_of_each_is_one_fit_of_both():
    def stream(rank):
        """Every other image."""
        images = np.random.default_rng(0).integers(0, 255, (80, 8, 8), dtype=np.uint8)
        return itertools.cycle(images[rank::2])

    parameters = {"K": 4, "steps_per_epoch": 5, "epochs": 2, "batch_size": 15, "n_local": 2}
    excb = ExCBEstimator(**parameters, head_width=16, random_state=0)
    excb.fit(stream(RANKS.rank))
    assert excb.resolved_params_["devices"] == 2
    weights = torch.cat([v.flatten() for v in excb._fitted.teacher.state_dict().values()])
    first, second = RANKS.objects((weights, excb.history_))
    assert torch.equal(first[0], second[0])
    assert repr(first[1]) == repr(second[1])  # nan is not itself
    assert 0 <= excb.history_[-1]["empty_fraction"] < 1
    alone = ExCBEstimator(**parameters, head_width=16, random_state=0, devices=1)
    assert not np.array_equal(alone.fit(stream(0)).cluster_centers_, excb.cluster_centers_)


@pytest.mark.parametrize("place", [3, 12, 8 * 7])  # the first part, the start, a step
def test_a_stream_that_fails_on_one_fails_on_both(place):
    def stream():
        rng = np.random.default_rng(RANKS.rank)
        for number in itertools.count():
            if number == place and RANKS.rank == 1:
                raise OSError("the disk is gone")
            yield rng.random((8, 8))

    kind, said = [(RankError, "rank 1 of 2.*disk is gone"), (OSError, "disk is gone")][RANKS.rank]
    excb = ExCBEstimator(K=4, steps_per_epoch=3, epochs=5, batch_size=16, head_width=16)
    with pytest.raises(kind, match=said):
        excb.fit(stream())
