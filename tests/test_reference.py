"""The package against the equations as plain float64 loops: values, gradients, one whole step."""

import math

import pytest
import torch
from torch import nn

import sklearn_excb.networks.heads
import sklearn_excb.networks.student_teacher
from sklearn_excb import ExCBEstimator
from sklearn_excb.method.balancing import ClusterSizes, affine_form
from sklearn_excb.method.loss import excb_loss, teacher_targets
from sklearn_excb.method.schedules import cosine
from sklearn_excb.networks.backbones import RowMLP
from sklearn_excb.networks.student_teacher import ClusterNetwork, StudentTeacher, build_networks
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.training.loop import train_step
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.views.batches import Batch
from tests import reference
from tests.test_balancing import SIZES, sizes_of
from tests.tiers import others_slow

B, K, D = 4, 6, 5
VIEWS = [(2, 2), (1, 0), (3, 6), (1, 2), (1, 6), (2, 0), (2, 6), (3, 0), (3, 2)]
TOLERANCE = 1e-6


def close(actual, expected, tolerance=TOLERANCE):
    """Relative in norm; absolute where the reference is zero, as of biases before a norm."""
    error, norm = (actual - expected).norm().item(), expected.norm().item()
    assert error <= tolerance * (norm if norm > 1e-12 else 1), f"{error} of {norm}"


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("n_global", "n_local"), others_slow(VIEWS, default=3))
@pytest.mark.parametrize("local_in_loss_h", [True, False])
def test_loss_and_its_gradients(kind, n_global, n_local, local_in_loss_h):
    torch.manual_seed(0)
    n_views = n_global + n_local
    teacher = torch.randn(n_global, B, D, dtype=torch.float64)
    teacher_centroids = torch.randn(K, D, dtype=torch.float64)
    sizes = sizes_of(kind, K)
    leaves = [torch.randn(n_views, B, D, dtype=torch.float64) for _ in range(2)]
    leaves.append(torch.randn(K, D, dtype=torch.float64))
    ours, theirs = ([t.clone().requires_grad_() for t in leaves] for _ in range(2))

    targets = teacher_targets(teacher, teacher_centroids, affine_form(sizes), temperature=0.04)
    loss = excb_loss(targets, *ours, temperature=0.1, local_in_projector_loss=local_in_loss_h)

    h, g, centroids = theirs
    z_h = [
        reference.similarities(rows, centroids, detach=view >= n_global)
        for view, rows in enumerate(h)
    ]
    z_g = [reference.similarities(rows, centroids, detach=True) for rows in g]
    z_t = [reference.similarities(rows, teacher_centroids, detach=True) for rows in teacher]
    expected = reference.loss(
        torch.stack(z_t),
        torch.stack(z_h),
        torch.stack(z_g),
        sizes,
        n_global=n_global,
        teacher_temperature=0.04,
        student_temperature=0.1,
        local_in_loss_h=local_in_loss_h,
    )
    for actual, value in zip(loss, expected, strict=True):
        close(actual.detach(), torch.as_tensor(value).detach())
    if n_global == 1 and (n_local == 0 or not local_in_loss_h):
        assert loss.projector == 0
    zeros = [torch.zeros_like(t) for t in leaves]
    grads = torch.autograd.grad(loss.total, ours, allow_unused=True)
    wanted = torch.autograd.grad(expected[0], theirs, allow_unused=True)
    for actual, value, zero in zip(grads, wanted, zeros, strict=True):
        close(zero if actual is None else actual, zero if value is None else value)
    balanced = torch.stack([reference.balance(z, sizes) for z in z_t])
    for view in range(n_global):
        assert targets.labels[view].tolist() == list(reference.labels_of(balanced[view]))
        assert targets.plain_labels[view].tolist() == list(reference.labels_of(z_t[view]))


def layers(module):
    """A head or a backbone as the reference takes it: a list of layers with their tensors."""
    found = []
    for layer in module:
        if isinstance(layer, nn.Linear):
            found.append(("linear", layer.weight, layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            found.append(("batch_norm", layer.weight, layer.bias, layer.eps))
        else:
            found.append((type(layer).__name__.lower(),))
    return found


def as_reference(network: ClusterNetwork):
    parts = {"backbone": network.backbone, "projector": network.projector}
    if network.predictor is not None:
        parts["predictor"] = network.predictor
    state = {name: layers(part) for name, part in parts.items()}
    return {
        name: [tuple(detached(value) for value in layer) for layer in part]
        for name, part in state.items()
    } | {"centroids": network.centroids.weight.detach().clone()}


def detached(value):
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@pytest.fixture(autouse=True)
def few_dimensions(monkeypatch):
    """The loops of the reference are slow: a projection space of 5 dimensions instead of 256."""
    for room in (sklearn_excb.networks.heads, sklearn_excb.networks.student_teacher):
        monkeypatch.setattr(room, "PROJECTION_DIM", D)


def networks_in_float64(batch_norm=True) -> StudentTeacher:
    backbone = (
        RowMLP(3, width=4)
        if batch_norm
        else nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 4))
    )
    networks = build_networks(backbone, 4, n_clusters=K, head_width=5).double().train_mode()
    with torch.no_grad():  # a teacher of its own, and gains and biases that are not at their start
        for parameter in networks.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return networks


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("n_global", "n_local"), others_slow(VIEWS))
def test_one_whole_step(kind, n_global, n_local):
    check_steps(1, kind, n_global=n_global, n_local=n_local)


@pytest.mark.parametrize("variant", ["exponential", "plain", "without batch norm", "global only"])
def test_one_whole_step_of_the_variants(variant):
    check_steps(
        1,
        "random",
        balancing="exponential" if variant == "exponential" else "linear",
        count_labels="plain" if variant == "plain" else "balanced",
        local_in_loss_h=variant != "global only",
        batch_norm=variant != "without batch norm",
    )


def test_three_steps_with_momentum_weight_decay_and_schedules():
    check_steps(3, "Zipf", weight_decay=0.05, warmup_epochs=1.0, learning_rate=0.02)


def check_steps(n_steps, kind, *, batch_norm=True, **chosen):
    """Run some steps beside the reference, and compare all there is after each."""
    torch.manual_seed(1)
    networks = networks_in_float64(batch_norm)
    parameters = ExCBEstimator().get_params() | {
        "K": K,
        "backbone": networks.student.backbone,
        "n_local": 2,
        "epochs": 10,
        "batch_size": B,
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "warmup_epochs": 0.0,
        "teacher_momentum": 0.9,
        "size_momentum": 0.9,
    }
    facts = Facts(B, "rows", (0, 0), 3)
    settings = resolve(parameters | chosen, facts, has_batch_norm=batch_norm)
    plan = Plan(2, 20)
    optimizer = build_optimizer(networks.student, settings)
    sizes = ClusterSizes(K, settings.size_momentum, below=settings.balancing)
    sizes.sizes = sizes_of(kind, K)
    state = {
        "student": as_reference(networks.student),
        "teacher": as_reference(networks.teacher),
        "sizes": sizes_of(kind, K),
        "momentum_buffers": None,
    }
    for step in range(n_steps):
        x_global = torch.randn(settings.n_global, B, 3, dtype=torch.float64)
        x_local = torch.randn(settings.n_local, B, 3, dtype=torch.float64)
        groups = [x_global.flatten(0, 1), *([x_local.flatten(0, 1)] if len(x_local) else [])]
        set_rates(optimizer, settings, step, plan)
        momentum = cosine(settings.teacher_momentum, 1.0, step / plan.total_steps)
        rates = TeacherRates.of(settings, step, plan)
        assert rates.momentum == momentum
        batch = Batch(1, groups, B, B)
        loss, labels, plain, _ = train_step(networks, sizes, optimizer, batch, settings, rates)
        state = reference.training_step(
            state["student"],
            state["teacher"],
            state["sizes"],
            x_global,
            x_local,
            teacher_temperature=rates.temperature,
            student_temperature=settings.student_temperature,
            teacher_momentum=momentum,
            size_momentum=settings.size_momentum,
            learning_rate=expected_rate(settings, step, plan),
            sgd_momentum=0.9,
            momentum_buffers=state["momentum_buffers"],
            weight_decay=expected_decay(settings, step, plan),
            below=settings.balancing,
            local_in_loss_h=settings.local_in_loss_h,
            count_labels=settings.count_labels,
        )
        for actual, wanted in zip(loss, ("loss", "loss_h", "loss_g"), strict=True):
            close(actual, state[wanted])
        counted = labels if settings.count_labels == "balanced" else plain
        assert counted.tolist() == state["labels"].tolist()
        close(sizes.sizes, state["sizes"])
        compare_parameters(networks, state)


def expected_rate(settings, step, plan):
    """Linear warm-up, then the cosine over what remains, to 1e-4 of the peak. [METHOD.md 6]"""
    warmup = settings.warmup_epochs * plan.steps_per_epoch
    if step < warmup:
        return settings.learning_rate * step / warmup
    share = (step - warmup) / (plan.total_steps - warmup)
    return settings.learning_rate * (1e-4 + (1 - 1e-4) * (1 + math.cos(math.pi * share)) / 2)


def expected_decay(settings, step, plan):
    """None on biases and norms, the centroids' from 10 times to once the rest. [METHOD.md 6]"""
    decay = settings.weight_decay[0]  # constant for SGD
    factor = 1 + 9 * (1 + math.cos(math.pi * step / plan.total_steps)) / 2

    def of(name):
        if name == "centroids":
            return factor * decay
        return 0.0 if name.endswith("bias") or name in NORMS else decay

    return of


NORMS = {
    *("backbone.1.weight", "backbone.4.weight", "projector.1.weight", "projector.4.weight"),
    *("predictor.0.weight", "predictor.2.weight"),
}


def compare_parameters(networks, state):
    """Gradients of the student, and both networks after the update."""
    gradients = dict(networks.student.named_parameters())
    gradients["centroids"] = gradients.pop("centroids.weight")
    assert set(gradients) == set(state["gradients"])
    for name, parameter in gradients.items():
        zero = torch.zeros_like(parameter)
        close(zero if parameter.grad is None else parameter.grad, state["gradients"][name])
    for which in ("student", "teacher"):
        actual = reference.parameters(as_reference(getattr(networks, which)))
        expected = reference.parameters(state[which])
        assert set(actual) == set(expected)
        for name, value in expected.items():
            close(actual[name], value.detach())
