"""The view-pair cross-entropy of ExCB, as attention over the centroids. [seed, Alg. 1; METHOD.md 5]

Axes: ``G`` global views, ``V = G + L`` all views (global first), ``B`` images, ``K`` clusters,
``D`` dimensions, ``n`` the clusters of one block. Cross-entropy is linear in its target, so with
the sum t of the m targets that a student row x meets, and unit centroids C,

    loss(x) = m logsumexp(x C^T / tau_s) - x . (t C) / tau_s.

Both terms are taken over blocks of clusters, and the gradients with them: nothing of shape
(rows, K) is ever made, let alone kept for the backward pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sklearn_excb.method.attention import (
    RunningArgmax,
    RunningSoftmax,
    add_product,
    attend,
    blocks,
    lengths,
    put_product,
)
from sklearn_excb.method.balancing import Affine


class Targets(NamedTuple):
    """What the teacher says of a batch: its labels, and its probabilities block by block.

    Attributes
    ----------
    labels : Tensor of shape (G, B), int64
        argmax of z^B, the similarities after balancing.
    plain_labels : Tensor of shape (G, B), int64
        argmax of z, the similarities before balancing.
    log_sum_exp : Tensor of shape (G, B)
        Of z^B / tau_t over the clusters.
    rows : Tensor of shape (G, B, D)
        The teacher's unit projections.
    centroids : Tensor of shape (K, D)
        The teacher's, of any length: not a copy, so the targets hold until the teacher changes.
    affine : Affine
        From inner products with these centroids to logits z^B / tau_t: the balancing operator
        over the lengths of the centroids and the temperature.
    """

    labels: Tensor
    plain_labels: Tensor
    log_sum_exp: Tensor
    rows: Tensor
    centroids: Tensor
    affine: Affine

    def probabilities(self, columns: slice) -> Tensor:
        """Return p_t = softmax(z^B / tau_t) of a block of clusters, (G * B, n)."""
        products = self.rows.flatten(0, 1) @ self.centroids[columns].T
        logits = _to_logits(products, self.affine, columns)
        return logits.sub_(self.log_sum_exp.flatten()[:, None]).exp_()


class Loss(NamedTuple):
    """The loss and its two halves, scalars: ``total = (projector + predictor) / 2``."""

    total: Tensor
    projector: Tensor
    predictor: Tensor


def _full(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(tensor.device.type, enabled=False)


def _product_dtype(rows: Tensor) -> torch.dtype:
    """Dtype of the student's matrix products: autocast's, where that is on."""
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return _full(rows).dtype


def _to_logits(block: Tensor, affine: Affine, columns: slice) -> Tensor:
    """Map a block of similarities, or of inner products, in place."""
    return block.mul_(affine.scale[columns]).add_(affine.bias[columns])


@torch.no_grad()
def teacher_targets(
    projections: Tensor, centroids: Tensor, affine: Affine, *, temperature: float
) -> Targets:
    """Balance the teacher's similarities: labels, and all that its probabilities take.

    In float32 also under autocast: bfloat16 similarities would move labels, hence sizes.

    Parameters
    ----------
    projections : Tensor of shape (G, B, D)
        Teacher projections of the global views; normalised here.
    centroids : Tensor of shape (K, D)
        Teacher centroids; normalised here.
    affine : Affine
        The balancing operator of this step.
    temperature : float
        tau_t.

    Returns
    -------
    Targets
        Labels of shape (G, B), int64, in [0, K), and what the loss needs of the probabilities.
    """
    shape = projections.shape[:2]
    logits_of = Affine(affine.scale / temperature, affine.bias / temperature)
    with _no_autocast(projections):
        rows = F.normalize(_full(projections).flatten(0, 1), dim=-1)
        centroids = _full(centroids.detach())
        inverse = 1 / lengths(centroids)
        softmax, balanced, plain = RunningSoftmax(rows), RunningArgmax(rows), RunningArgmax(rows)
        for columns in blocks(len(centroids), len(rows)):
            z = (rows @ centroids[columns].T).mul_(inverse[columns])  # (G * B, n)
            plain.add(z, columns.start)
            logits = _to_logits(z, logits_of, columns)
            softmax.add(logits, balanced.add(logits, columns.start))
        return Targets(
            labels=balanced.index.unflatten(0, shape),
            plain_labels=plain.index.unflatten(0, shape),
            log_sum_exp=softmax.log_sum_exp().unflatten(0, shape),
            rows=rows.unflatten(0, shape),
            centroids=centroids,
            affine=Affine(logits_of.scale * inverse, logits_of.bias),
        )


class _CrossEntropy(torch.autograd.Function):
    """Both halves of the loss of unit rows; their gradients are ready when the values are."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,  # (V, B, D) unit projections; the first H views take part
        g: Tensor,  # (V, B, D) unit predictions
        centroids: Tensor,  # (K, D), of any length
        n_projected: int,  # H
        targets: Targets,
        temperature: float,
        dtype: torch.dtype,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        (n_global, n_images), n_views, H = targets.labels.shape, len(g), n_projected
        pairs_h, pairs_g = n_global * (H - 1), n_global * n_views
        weight_h = 1 / (pairs_h * n_images) if pairs_h else 0.0  # of a pair of rows
        x = torch.cat([h[:H], g])  # (H + V, B, D)
        weight = x.new_full((len(x), 1), 1 / (pairs_g * n_images))
        weight[:H] = weight_h
        n_met = x.new_full((len(x), 1), n_global)  # targets that a row meets
        n_met[:n_global] -= 1  # not that of the same view, in h

        of_centroids = lengths(centroids)
        attended = attend(
            x.flatten(0, 1), centroids, of_centroids, temperature=temperature, dtype=dtype
        )
        log_sum_exp, mean = (part.unflatten(0, x.shape[:2]) for part in attended)

        rows = h[:n_global]  # of these alone the gradient reaches the centroids
        means, d_centroids = _through_centroids(
            targets,
            rows.flatten(0, 1),
            log_sum_exp[:n_global].flatten(),
            towards=(rows - rows.sum(dim=0)).flatten(0, 1),
            away=(n_global - 1) * rows.flatten(0, 1),
            weight=weight_h / temperature,
            centroids=centroids,
            lengths=of_centroids,
            temperature=temperature,
            dtype=dtype,
            memory=memory,
        )
        means = means.unflatten(0, rows.shape[:2])  # (G, B, D)
        met = means.sum(dim=0).repeat(len(x), 1, 1)  # (H + V, B, D), t C
        met[:n_global] -= means

        loss = weight * (n_met * log_sum_exp - (x * met).sum(dim=-1) / temperature)
        d_x = (n_met[:, :, None] * mean - met) * (weight[:, :, None] / temperature)
        ctx.gradients = F.pad(d_x[:H], [0, 0, 0, 0, 0, len(h) - H]), d_x[H:], d_centroids
        return loss[:H].sum(), loss[H:].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_g: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("A loss goes through one backward pass: compute it again.")
        d_h, d_g, d_centroids = ctx.gradients
        ctx.gradients = None  # scaled in place below
        return (
            d_h * grad_h,
            d_g * grad_g,
            d_centroids.mul_(grad_h),
            *(None for _ in range(5)),
        )


def _through_centroids(
    targets: Targets,
    rows: Tensor,  # (G * B, D)
    log_sum_exp: Tensor,  # (G * B,)
    *,
    towards: Tensor,  # (G * B, D), what the teacher's probabilities multiply
    away: Tensor,  # (G * B, D), what the student's multiply
    weight: float,
    centroids: Tensor,
    lengths: Tensor,
    temperature: float,
    dtype: torch.dtype,
    memory: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Means p_t C of the teacher's rows, (G * B, D), and the gradient of the centroids, (K, D).

    The gradient of unit centroids is (p_t^T towards + p_s^T away) weight; of raw ones, that without
    its part along the centroid, over the centroid's length. The weight, tiny in large batches,
    comes last: float16 products would lose it.
    """
    means = torch.zeros_like(rows)
    gradient = torch.empty_like(centroids) if memory is None else memory
    factor = (weight / lengths)[:, None]  # (K, 1)
    queries, towards, away = (part.to(dtype) for part in (rows / temperature, towards, away))
    for columns in blocks(len(centroids), 2 * len(rows)):
        c = centroids[columns] / lengths[columns, None]  # (n, D)
        keys = c.to(dtype)
        p_t = targets.probabilities(columns).to(dtype)  # (G * B, n)
        p_s = (queries @ keys.T).sub_(log_sum_exp[:, None]).exp_()  # (G * B, n)
        add_product(means, p_t, keys)
        block = gradient[columns]
        put_product(block, p_t.T, towards)
        add_product(block, p_s.T, away)
        along = torch.linalg.vecdot(block, c)[:, None]
        block.addcmul_(c, along, value=-1).mul_(factor[columns])
    return means, gradient


def _check_memory(memory: Tensor, centroids: Tensor) -> None:
    if centroids.is_leaf and memory is centroids.grad:
        raise ValueError(
            "gradient_memory is centroids.grad, to which the backward pass would add itself. Set "
            "centroids.grad to None before."
        )
    wanted = _full(centroids[:0]).dtype
    if memory.shape != centroids.shape or memory.dtype != wanted:
        raise ValueError(
            f"gradient_memory is {memory.dtype} of shape {tuple(memory.shape)}, but the centroids' "
            f"gradient is {wanted} of shape {tuple(centroids.shape)}."
        )


def excb_loss(
    targets: Targets,
    projections: Tensor,
    predictions: Tensor,
    centroids: Tensor,
    *,
    temperature: float,
    local_in_projector_loss: bool = True,
    gradient_memory: Tensor | None = None,
) -> Loss:
    """Cross-entropy of the student's views under the teacher's targets. [METHOD.md 5]

    The gradient reaches the centroids only through the projections of global views; local views
    and predictions see them detached [seed, Alg. 2]. Beyond its arguments it takes the gradients
    themselves, a few (rows, D) and a block of similarities. Gradients come with the values, so one
    loss can go through one backward pass. Under autocast the student's matrix products run in its
    dtype; sums, log-sum-exps and the teacher stay in float32.

    Parameters
    ----------
    targets : Targets
        Of the same batch; G global views.
    projections, predictions : Tensors of shape (V, B, D)
        The student's h and g outputs for all views, global views first; normalised here.
    centroids : Tensor of shape (K, D)
        The student's centroids, raw rows; normalised here.
    temperature : float
        tau_s.
    local_in_projector_loss : bool, default=True
        Whether local views take part in the projector's half of the loss.
    gradient_memory : Tensor of shape (K, D), optional
        Overwritten by the gradient of the centroids, like one of an earlier step that nobody
        needs any more: touching new memory of that size is slow. Float32, or the centroids' own
        float64; not their ``grad`` of now.

    Returns
    -------
    Loss
        ``projector`` is the mean over the G (G + L - 1) pairs that are not one and the same global
        view, ``predictor`` the mean over all G (G + L) pairs. A half without pairs is 0.

    Raises
    ------
    ValueError
        If ``gradient_memory`` cannot take the gradient.
    """
    if gradient_memory is not None:
        _check_memory(gradient_memory, centroids)
    dtype = _product_dtype(projections)
    with _no_autocast(projections):
        projector, predictor = _CrossEntropy.apply(
            F.normalize(_full(projections), dim=-1),
            F.normalize(_full(predictions), dim=-1),
            _full(centroids),
            len(projections) if local_in_projector_loss else len(targets.labels),
            targets,
            temperature,
            dtype,
            gradient_memory,
        )
        return Loss((projector + predictor) / 2, projector, predictor)
