"""Bytes of phases of a fit, from runs on fake tensors, or summed over NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sklearn_excb.fitting.memory.live_tensors import LiveTensors, fake, tensors_of
from sklearn_excb.method.attention import nearest
from sklearn_excb.networks.heads import PROJECTION_DIM
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.build import build_balancing
from sklearn_excb.training.loop import train_step
from sklearn_excb.training.optimizer import Plan, TeacherRates, build_optimizer, set_rates
from sklearn_excb.training.settling import PARTS, settling_sample
from sklearn_excb.training.teacher_outputs import outputs
from sklearn_excb.views.batches import Batch

Bytes = dict[str, int]
Shape = Sequence[int]  # (V, ...), the views of an image at a resolution

FLOAT = 4  # bytes


def step_bytes(
    networks: StudentTeacher, settings: Settings, shapes: Sequence[Shape]
) -> tuple[Bytes, Bytes]:
    """Return the bytes after a step, and those at its peak beyond networks and views.

    A step with many parts is run with two parts, because the others repeat the second.
    """
    n = min(settings.batch_size, 2 * settings.micro_batch)
    with fake(networks) as fakes:
        fakes.train_mode()
        optimizer = build_optimizer(fakes.student, settings)
        plan = Plan(1, 10)
        set_rates(optimizer, settings, 0, plan)
        rates = TeacherRates.of(settings, 0, plan)
        balancing = build_balancing(settings, "cpu")
        groups = [torch.empty(n_views * n, *shape) for n_views, *shape in shapes]
        batch = Batch(1, groups, n, n)
        counted = LiveTensors("activations")
        counted.count([*tensors_of(fakes), *groups], "held")
        for parameter in fakes.student.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda p: counted.count([p.grad], "gradients")
                )
        with counted:
            for _ in range(2):  # the second finds gradients and momenta of the first
                counted.reset_peak()
                train_step(fakes, balancing, optimizer, batch, settings, rates)
                state = [value for of in optimizer.state.values() for value in of.values()]
                counted.count([v for v in state if isinstance(v, Tensor)], "optimizer")
        after = {kind: counted.now[kind] for kind in ("optimizer", "gradients")}
    return after, {kind: held for kind, held in counted.at_peak.items() if kind != "held"}


@torch.no_grad()
def projection_bytes(networks: StudentTeacher, settings: Settings, shape: Shape) -> int:
    """Return the bytes to project one view of the images of a micro-batch."""
    with fake(networks) as fakes:
        views = torch.empty(settings.micro_batch, *shape[1:])
        counted = LiveTensors("activations")
        counted.count([*tensors_of(fakes), views], "held")
        with counted:
            fakes.train_mode().teacher.project([views])
    return counted.at_peak["activations"]


@torch.no_grad()
def assignment_bytes(networks: StudentTeacher, shape: Shape) -> tuple[int, int]:
    """Return the bytes to assign a batch of whole images, and the number of backbone features."""
    with fake(networks) as fakes:
        images = torch.empty(*shape)
        counted = LiveTensors("activations")
        counted.count([*tensors_of(fakes), images], "held")
        with counted:
            (rows,) = outputs(fakes.teacher, [images], "projection")
            nearest(rows, fakes.teacher.centroids.weight)
        n_features = fakes.teacher.backbone(images).shape[1]
    return counted.at_peak["activations"], n_features


def settling_bytes(n_samples: int, n_clusters: int) -> Bytes:
    """Return the bytes of the arrays of :func:`sklearn_excb.training.settling.settle`.

    The arrays are all rows; a part of the rows, indexed, copied and normalised; and two means.
    """
    row = PROJECTION_DIM * FLOAT
    n_rows = len(settling_sample(n_samples, n_clusters))
    part = 3 * -(-n_rows // PARTS) * row
    return {"projections": n_rows * row, "settling": part + 5 * n_clusters * row}


def kmeans_bytes(n_rows: int, n_clusters: int) -> Bytes:
    """Return the bytes of the arrays of :func:`sklearn_excb.method.kmeans.spherical_kmeans`."""
    row = PROJECTION_DIM * FLOAT
    return {"projections": 2 * n_rows * row, "k-means": 4 * n_clusters * row}
