"""The blocked loss against the plain ones, at sizes where blocks matter, and what it promises."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

import sklearn_excb.fitting.run
import sklearn_excb.training.loop
from benchmarks import plain_loss
from sklearn_excb import ExCBEstimator
from sklearn_excb.method.attention import attend, lengths, nearest
from sklearn_excb.method.balancing import TIE_FLOOR, ClusterSizes, affine_form
from sklearn_excb.method.entropy import mean_entropies
from sklearn_excb.method.loss import excb_loss, teacher_targets

B, D = 3, 16
PLAIN = {"per pair": plain_loss.per_pair, "per view": plain_loss.per_view}


def inputs(n_clusters, n_views=4, dtype=torch.float64, dim=D):
    """Teacher rows, teacher centroids, affine; then the leaves h, g, C of the student."""
    torch.manual_seed(0)
    sizes = torch.rand(n_clusters, dtype=dtype) ** 4
    sizes[0] = 0
    teacher = (
        torch.randn(2, B, dim, dtype=dtype),
        torch.randn(n_clusters, dim, dtype=dtype),
        affine_form(sizes / sizes.sum()),
    )
    shapes = ((n_views, B, dim), (n_views, B, dim), (n_clusters, dim))
    return teacher, [torch.randn(*shape, dtype=dtype) for shape in shapes]


def run(teacher, leaves, dtype=torch.float64, **options):
    projections, centroids, affine = teacher
    affine = type(affine)(*(part.to(dtype) for part in affine))
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    targets = teacher_targets(projections.to(dtype), centroids.to(dtype), affine, temperature=0.04)
    loss = excb_loss(targets, *leaves, temperature=0.1, **options)
    return targets, loss, torch.autograd.grad(loss.total, leaves)


def run_plain(teacher, leaves, which="per pair"):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    p, *labels = plain_loss.targets(*teacher, temperature=0.04)
    loss = PLAIN[which](p, *leaves, temperature=0.1)
    return p, labels, loss, torch.autograd.grad(loss.total, leaves)


def error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("which", PLAIN)
@pytest.mark.parametrize("n_clusters", [2, 100, 2048, 5003])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_the_plain_loss(which, n_clusters, dtype, tolerance):
    teacher, leaves = inputs(n_clusters)
    targets, loss, gradients = run(teacher, leaves, dtype)
    p, labels, expected, expected_gradients = run_plain(teacher, leaves, which)
    for actual, value in zip(loss, expected, strict=True):
        assert error(actual.detach(), value.detach()) < tolerance
    for actual, value in zip(gradients, expected_gradients, strict=True):
        assert error(actual, value) < tolerance
    assert torch.equal(targets.labels, labels[0])
    assert torch.equal(targets.plain_labels, labels[1])
    assert error(targets.probabilities(slice(0, n_clusters)).unflatten(0, (2, B)), p) < tolerance


def test_each_half_has_its_own_gradient():
    teacher, leaves = inputs(50)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    targets = teacher_targets(*teacher, temperature=0.04)
    _, _, plain, _ = run_plain(teacher, [leaf.detach() for leaf in leaves])
    weighted = excb_loss(targets, *leaves, temperature=0.1)
    (3 * weighted.projector + 0.5 * weighted.predictor).backward()
    whole = run(teacher, [leaf.detach() for leaf in leaves])[2]
    for leaf, gradient, factor in zip(leaves, whole, (6, 1, 6), strict=True):
        torch.testing.assert_close(leaf.grad, factor * gradient)
    assert plain.projector.item() == pytest.approx(weighted.projector.item())


def test_temperatures_at_which_a_plain_exponential_overflows():
    rows = torch.nn.functional.normalize(torch.randn(5, D, dtype=torch.float64), dim=-1)
    centroids = torch.randn(5003, D, dtype=torch.float64)
    unit = torch.nn.functional.normalize(centroids, dim=-1)
    logits = rows @ unit.T / 1e-3
    attended = attend(
        rows.float(),
        centroids.float(),
        lengths(centroids.float()),
        temperature=1e-3,
        dtype=torch.float32,
    )
    assert error(attended.log_sum_exp, torch.logsumexp(logits, dim=-1)) < 1e-5
    assert torch.isfinite(attended.mean).all()
    assert error(attended.mean, torch.softmax(logits, dim=-1) @ unit) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_targets_alone_and_the_gradients_near(dtype):
    teacher, leaves = inputs(5003, dtype=torch.float32, dim=256)
    exact, loss, gradients = run(teacher, leaves, torch.float32)
    with torch.autocast("cpu", dtype):
        half, near, near_gradients = run(teacher, leaves, torch.float32)
    assert torch.equal(exact.labels, half.labels)
    assert torch.equal(exact.log_sum_exp, half.log_sum_exp)
    assert near.total.dtype == torch.float32
    assert near.total.item() == pytest.approx(loss.total.item(), rel=1e-3)
    for actual, value in zip(near_gradients, gradients, strict=True):
        assert actual.dtype == torch.float32
        assert error(actual, value.double()) < 0.02


def test_float16_keeps_the_gradient_of_the_centroids():
    """The weight of a row times a probability is too little for a float16 product."""
    teacher, leaves = inputs(5003, dtype=torch.float32, dim=256)
    rows = [torch.randn(len(t), 256, 256) for t in (teacher[0], *leaves[:2])]
    teacher, leaves = (rows[0], *teacher[1:]), [*rows[1:], leaves[2]]
    exact = run(teacher, leaves, torch.float32)[2][2]
    with torch.autocast("cpu", torch.float16):
        near = run(teacher, leaves, torch.float32)[2][2]
    assert error(near, exact.double()) < 5e-3


class LargestTensor(TorchDispatchMode):
    """Most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_grows_with_rows_times_clusters():
    K, n_images = 20_000, 64
    torch.manual_seed(0)
    teacher = torch.randn(2, n_images, D), torch.randn(K, D), affine_form(torch.full((K,), 1 / K))
    leaves = [torch.randn(8, n_images, D), torch.randn(8, n_images, D), torch.randn(K, D)]
    with LargestTensor() as largest:
        run(teacher, leaves, torch.float32)
    assert largest.elements <= max(K * D, 2**20) < 2 * n_images * K


def test_the_gradient_takes_the_memory_of_the_last_one():
    teacher, leaves = inputs(300, dtype=torch.float32)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    centroids, places, gradients = leaves[2], [], []
    for _ in range(2):
        memory, centroids.grad = centroids.grad, None
        targets = teacher_targets(*teacher, temperature=0.04)
        loss = excb_loss(targets, *leaves, temperature=0.1, gradient_memory=memory)
        del memory
        loss.total.backward()
        places.append(centroids.grad.data_ptr())
        gradients.append(centroids.grad.clone())
    assert places[0] == places[1]
    assert torch.equal(*gradients)


def test_a_second_backward_pass_is_refused():
    teacher, leaves = inputs(10)
    targets = teacher_targets(*teacher, temperature=0.04)
    loss = excb_loss(targets, *[leaf.requires_grad_() for leaf in leaves], temperature=0.1)
    loss.total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.total.backward()


def test_nearest_is_the_first_of_the_most_similar():
    torch.manual_seed(0)
    rows, centroids = torch.randn(40, D, dtype=torch.float64), torch.zeros(5003, D).double()
    centroids[:, 0], centroids[:, 1] = -1, torch.linspace(1, 2, 5003)
    centroids[[7, 8, 5000]] = torch.eye(D, dtype=torch.float64)[3]  # sums without rounding
    rows[0] = centroids[7]
    found = nearest(rows, centroids)
    assert found[0] == 7
    z = rows @ torch.nn.functional.normalize(centroids, dim=-1).T
    best = z.max(dim=-1).values
    torch.testing.assert_close(z.gather(1, found[:, None])[:, 0], best, rtol=1e-12, atol=0)


def test_gradient_memory_has_to_fit():
    teacher, leaves = inputs(100)
    targets = teacher_targets(*teacher, temperature=0.04)
    leaves[2].requires_grad_().grad = torch.zeros(100, D, dtype=torch.float64)
    for memory, said in (
        (leaves[2].grad, r"is centroids\.grad"),
        (torch.zeros(99, D, dtype=torch.float64), r"shape \(99, 16\)"),
        (torch.zeros(100, D), r"torch\.float32 .* is torch\.float64"),
    ):
        with pytest.raises(ValueError, match=said):
            excb_loss(targets, *leaves, temperature=0.1, gradient_memory=memory)


@pytest.mark.parametrize("below", ["linear", "exponential"])
def test_empty_clusters_are_shared_out_by_similarity(below):
    """Without the floor the first empty cluster would take every row."""
    torch.manual_seed(0)
    projections, centroids = torch.randn(2, 30, D), torch.randn(50, D)
    labels = {}
    for floor in (0.0, TIE_FLOOR):
        sizes = ClusterSizes(50, 0.9, below=below, relative_floor=floor)
        sizes.sizes = torch.cat([torch.zeros(40), torch.full((10,), 0.1)])
        targets = teacher_targets(projections, centroids, sizes.affine(), temperature=0.04)
        labels[floor] = targets.labels.flatten()
    assert labels[0.0].unique().tolist() == [0]
    assert torch.equal(labels[TIE_FLOOR], nearest(projections.flatten(0, 1), centroids[:40]))


@pytest.mark.slow
def test_a_million_clusters():
    """8 images against 10 ** 6 centroids: exact where it is looked at, and nothing (rows, K)."""
    torch.manual_seed(0)
    K, dim, n_images = 1_000_000, 256, 8
    teacher = torch.randn(2, n_images, dim)
    projections, predictions = (torch.randn(4, n_images, dim) for _ in range(2))
    centroids = torch.randn(K, dim, requires_grad=True)
    targets = teacher_targets(teacher, centroids, ClusterSizes(K, 0.9).affine(), temperature=0.04)
    loss = excb_loss(targets, projections, predictions, centroids, temperature=0.1)
    loss.total.backward()
    unit = torch.nn.functional.normalize(centroids.detach(), dim=-1)
    row = torch.nn.functional.normalize(teacher[0, 0], dim=-1)
    z = unit @ row
    assert z[targets.labels[0, 0]] == pytest.approx(z.max().item(), abs=1e-6)
    expected = torch.logsumexp(z.double() / 0.04, dim=0).item()
    assert targets.log_sum_exp[0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert centroids.grad.isfinite().all()
    along = torch.linalg.vecdot(centroids.grad, unit).abs().max()  # lengths do not matter
    assert along < 1e-4 * centroids.grad.norm(dim=-1).max()
    assert loss.total.item() == pytest.approx(np.log(K), rel=0.05)


class Enough(Exception):
    """Raised after the last step that is looked at."""


def digits_curve(monkeypatch, loss_of=None):
    """Losses of the first 50 steps of a fit in float64; plain where ``loss_of`` is given.

    In float32 no two ways to add the same numbers agree for 50 steps: labels are discrete, and
    the two plain losses part by .02 as well.
    """
    losses = []
    step, train = sklearn_excb.training.loop.train_step, sklearn_excb.training.loop.train

    def recorded(*arguments):
        report = step(*arguments)
        losses.append(report[0].total.item())
        if len(losses) == 50:
            raise Enough
        return report

    def in_float64(networks, sizes, optimizer, batches, *arguments, **options):
        networks.double()
        sizes.sizes = sizes.sizes.double()
        doubled = (batch._replace(groups=[g.double() for g in batch.groups]) for batch in batches)
        return train(networks, sizes, optimizer, doubled, *arguments, **options)

    def plain_targets(*arguments, **options):
        p, labels, plain_labels = plain_loss.targets(*arguments, **options)
        return SimpleNamespace(p=p, labels=labels, plain_labels=plain_labels)

    def plain(targets, *leaves, temperature, **ignored):
        return loss_of(targets.p, *leaves, temperature=temperature)

    def no_entropies(*arguments, **options):
        return torch.zeros(2)

    images = (load_digits().images / 16).astype(np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(sklearn_excb.training.loop, "train_step", recorded)
        patched.setattr(sklearn_excb.fitting.run, "train", in_float64)
        if loss_of is not None:
            patched.setattr(sklearn_excb.training.loop, "teacher_targets", plain_targets)
            patched.setattr(sklearn_excb.training.loop, "excb_loss", plain)
            patched.setattr(sklearn_excb.training.loop, "mean_entropies", no_entropies)
        small = {"batch_size": 16, "image_size": 16, "precision": "32", "random_state": 0}
        with pytest.raises(Enough):
            ExCBEstimator(**small).fit(images)
    return np.array(losses)


@pytest.mark.slow
def test_training_on_digits_follows_the_curve_of_the_plain_loss(monkeypatch):
    ours = digits_curve(monkeypatch)
    plain = digits_curve(monkeypatch, plain_loss.per_view)
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-3)
    assert ours[-1] < ours[0] - 0.04


@pytest.mark.parametrize("n_images", [2, 16])
def test_entropies_are_those_of_the_softmaxes(n_images):
    (rows, centroids, _), (projections, _, _) = inputs(5003)
    even = affine_form(torch.full((5003,), 1 / 5003, dtype=torch.float64))
    targets = teacher_targets(rows, centroids, even, temperature=0.04)
    found = mean_entropies(targets, projections, centroids, temperature=0.1, n_images=n_images)
    unit = torch.nn.functional.normalize(centroids, dim=-1)
    for entropy, x, temperature in zip(found, (rows, projections), (0.04, 0.1), strict=True):
        x = torch.nn.functional.normalize(x[:2, :n_images], dim=-1)
        p = torch.softmax(x @ unit.T / temperature, dim=-1)
        expected = -(p * p.log()).sum(dim=-1).mean() / np.log(5003)
        assert entropy.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_an_accelerator_gives_the_loss_of_the_cpu(dtype):
    device = torch.accelerator.current_accelerator()
    teacher, leaves = inputs(5003, dtype=torch.float32, dim=256)
    _, expected, expected_gradients = run(teacher, leaves, torch.float32)
    projections, centroids, affine = teacher
    there = (
        projections.to(device),
        centroids.to(device),
        type(affine)(*(p.to(device) for p in affine)),
    )
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        _, loss, gradients = run(there, [leaf.to(device) for leaf in leaves], torch.float32)
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-3 if dtype else 1e-5)
    for actual, value in zip(gradients, expected_gradients, strict=True):
        assert error(actual.cpu(), value.double()) < (0.02 if dtype else 1e-4)
