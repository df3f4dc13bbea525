"""The loss of ExCB over pairs of views, computed as attention over the centroids.

This is the loss of Algorithm 1 in the paper's supplementary. The teacher assigns each global view v
of an image to the clusters, with probabilities ``p_t = softmax(z^B / tau_t)``. The student sees all
views u, and gives similarities from the projector h and from the predictor g. Each half of the loss
is a mean cross-entropy over pairs (v, u), and the half of h skips the pairs of a global view with
itself. (The listing omits the minus sign of the cross-entropy and the mean over v.)

Cross-entropy is linear in its target. Let t be the sum of the m targets of a student row x, and C
the unit centroids. Then the loss of the row is

    loss(x) = m logsumexp(x C^T / tau_s) - x . (t C) / tau_s,

and t C is attention over the centroids with the teacher's rows as queries. Both terms and their
gradients are computed over blocks of clusters. No tensor of shape (rows, K) is ever made, neither
in the forward nor in the backward pass.

Axes: ``G`` global views, ``V = G + L`` all views (global first), ``B`` images, ``K`` clusters,
``D`` dimensions, ``n`` clusters of one block. A row is one view of one image.
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
    """Targets of the teacher for a batch: labels, and probabilities block by block.

    Attributes
    ----------
    labels : Tensor of shape (G, B), int64
        Labels after balancing, argmax of z^B.
    plain_labels : Tensor of shape (G, B), int64
        Labels before balancing, argmax of z.
    log_sum_exp : Tensor of shape (G, B)
        Log-sum-exp of the logits z^B / tau_t over the clusters.
    rows : Tensor of shape (G, B, D)
        Unit projections of the teacher.
    centroids : Tensor of shape (K, D)
        Centroids of the teacher, of any length. They are not a copy, so the targets are valid until
        the teacher changes.
    affine : Affine
        Map from inner products with these centroids to the logits z^B / tau_t. It is the balancing
        operator divided by the temperature, with the norms of the centroids in its scale.
    """

    labels: Tensor
    plain_labels: Tensor
    log_sum_exp: Tensor
    rows: Tensor
    centroids: Tensor
    affine: Affine

    def probabilities(self, columns: slice) -> Tensor:
        """Return p_t = softmax(z^B / tau_t) for a block of clusters, (G * B, n)."""
        products = self.rows.flatten(0, 1) @ self.centroids[columns].T
        logits = _to_logits(products, self.affine, columns)
        return logits.sub_(self.log_sum_exp.flatten()[:, None]).exp_()


class Loss(NamedTuple):
    """Loss and its two halves as scalars: ``total = (projector + predictor) / 2``."""

    total: Tensor
    projector: Tensor
    predictor: Tensor


def _full(tensor: Tensor) -> Tensor:
    """Return the tensor in float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(tensor.device.type, enabled=False)


def _product_dtype(rows: Tensor) -> torch.dtype:
    """Return the dtype of the student's matrix products: that of autocast, if it is enabled."""
    device = rows.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return _full(rows).dtype


def _to_logits(block: Tensor, affine: Affine, columns: slice) -> Tensor:
    """Map a block of similarities, or of inner products, to logits in place."""
    return block.mul_(affine.scale[columns]).add_(affine.bias[columns])


@torch.no_grad()
def teacher_targets(
    projections: Tensor, centroids: Tensor, affine: Affine, *, temperature: float
) -> Targets:
    """Compute the teacher's balanced targets for a batch.

    The computation is in float32, also under autocast. Similarities in bfloat16 would change labels
    and thus the measured sizes.

    Parameters
    ----------
    projections : Tensor of shape (G, B, D)
        Projections of the global views by the teacher; normalised here.
    centroids : Tensor of shape (K, D)
        Centroids of the teacher; normalised here.
    affine : Affine
        Balancing operator of this step.
    temperature : float
        Temperature tau_t of the teacher.

    Returns
    -------
    Targets
        Labels in [0, K), and everything that the loss needs to compute the probabilities.
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
    """Both halves of the loss for unit rows. The forward pass computes the gradients too."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,  # (V, B, D) unit projections, of which the loss uses the first H views
        g: Tensor,  # (V, B, D) unit predictions
        centroids: Tensor,  # (K, D), of any length
        n_projected: int,  # H = V, or G without the local views
        targets: Targets,
        temperature: float,
        dtype: torch.dtype,
        memory: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        (n_global, n_images), n_views, H = targets.labels.shape, len(g), n_projected
        pairs_h, pairs_g = n_global * (H - 1), n_global * n_views
        weight_h = 1 / (pairs_h * n_images) if pairs_h else 0.0  # weight of a pair of rows
        x = torch.cat([h[:H], g])  # (H + V, B, D)
        weight = x.new_full((len(x), 1), 1 / (pairs_g * n_images))
        weight[:H] = weight_h
        n_targets = x.new_full((len(x), 1), n_global)  # m of each row
        n_targets[:n_global] -= 1  # h of a global view skips the target of the same view

        norms = lengths(centroids)
        attended = attend(x.flatten(0, 1), centroids, norms, temperature=temperature, dtype=dtype)
        log_sum_exp, mean = (part.unflatten(0, x.shape[:2]) for part in attended)

        rows = h[:n_global]  # only through these does the gradient reach the centroids
        means, d_centroids = _through_centroids(
            targets,
            rows.flatten(0, 1),
            log_sum_exp[:n_global].flatten(),
            towards=(rows - rows.sum(dim=0)).flatten(0, 1),
            away=(n_global - 1) * rows.flatten(0, 1),
            weight=weight_h / temperature,
            centroids=centroids,
            lengths=norms,
            temperature=temperature,
            dtype=dtype,
            memory=memory,
        )
        means = means.unflatten(0, rows.shape[:2])  # (G, B, D)
        t_C = means.sum(dim=0).repeat(len(x), 1, 1)  # (H + V, B, D), t C of each row
        t_C[:n_global] -= means

        loss = weight * (n_targets * log_sum_exp - (x * t_C).sum(dim=-1) / temperature)
        d_x = (n_targets[:, :, None] * mean - t_C) * (weight[:, :, None] / temperature)
        ctx.gradients = F.pad(d_x[:H], [0, 0, 0, 0, 0, len(h) - H]), d_x[H:], d_centroids
        return loss[:H].sum(), loss[H:].sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_h: Tensor, grad_g: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "The loss supports one backward pass only. Compute it again for another one."
            )
        d_h, d_g, d_centroids = ctx.gradients
        ctx.gradients = None  # they are scaled in place below
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
    towards: Tensor,  # (G * B, D), factor of the teacher's probabilities
    away: Tensor,  # (G * B, D), factor of the student's probabilities
    weight: float,
    centroids: Tensor,
    lengths: Tensor,
    temperature: float,
    dtype: torch.dtype,
    memory: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the means p_t C of the teacher's rows, (G * B, D), and d loss / d centroids, (K, D).

    The gradient with respect to unit centroids is ``(p_t^T towards + p_s^T away) * weight``. The
    gradient with respect to the raw centroids is its part orthogonal to the centroid, divided by
    the centroid's norm. The weight is tiny in large batches. It is multiplied last, since float16
    products would lose it.
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
            "gradient_memory is centroids.grad, to which the backward pass adds the gradient. Set "
            "centroids.grad to None first."
        )
    wanted = _full(centroids[:0]).dtype
    if memory.shape != centroids.shape or memory.dtype != wanted:
        raise ValueError(
            f"gradient_memory is {memory.dtype} of shape {tuple(memory.shape)}, but the gradient "
            f"of the centroids is {wanted} of shape {tuple(centroids.shape)}."
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
    """Compute the cross-entropy of the student's views under the teacher's targets.

    This is the loss of Algorithm 1 in the paper's supplementary. As in Algorithm 2, the gradient
    reaches the centroids only through the projections of global views. Local views and predictions
    see detached centroids.

    Parameters
    ----------
    targets : Targets
        Targets of the same batch, from :func:`teacher_targets`.
    projections, predictions : Tensors of shape (V, B, D)
        Outputs of the student's h and g for all views, global views first; normalised here.
    centroids : Tensor of shape (K, D)
        Raw centroids of the student; normalised here.
    temperature : float
        Temperature tau_s of the student.
    local_in_projector_loss : bool, default=True
        Whether local views take part in the projector's half of the loss. Algorithm 1 includes
        them, the authors' code leaves them out.
    gradient_memory : Tensor of shape (K, D), optional
        Memory for the gradient of the centroids, such as an old gradient that is no longer needed;
        overwritten. Writing to new memory of this size is slow. The dtype is float32, or float64 if
        the centroids are float64. It must not be the current ``centroids.grad``.

    Returns
    -------
    Loss
        ``projector`` is the mean over the G (G + L - 1) pairs without those of a global view with
        itself. ``predictor`` is the mean over all G (G + L) pairs. A half without pairs is 0.

    Raises
    ------
    ValueError
        If ``gradient_memory`` cannot take the gradient.

    Notes
    -----
    The function needs memory for the gradients, a few tensors of shape (rows, D) and a block of
    similarities. It computes the gradients with the values, so the loss supports one backward pass.
    Under autocast, the student's matrix products run in the dtype of autocast. Sums, log-sum-exps
    and the teacher stay in float32.
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
