"""BatchNorm with the statistics of the whole batch, over the rows of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from sklearn_excb.runtime.ranks import Ranks


def synchronized_batch_norm(ranks: Ranks) -> AbstractContextManager[Any]:
    """Return a context in which BatchNorm layers in training mode see the rows of all ranks."""
    return nullcontext() if ranks.count == 1 else SynchronizedBatchNorm(ranks)


class SynchronizedBatchNorm(TorchFunctionMode):
    """Context of :func:`synchronized_batch_norm`.

    It replaces the function that all BatchNorm layers call, whether they are torch's, timm's or the
    user's. No layer is replaced, and weights keep their names. On CUDA the computation is that of
    :class:`torch.nn.SyncBatchNorm`, which does not support other devices.

    Parameters
    ----------
    ranks : Ranks
        Ranks that take part. Each needs at least one row.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace BatchNorm, and pass on every other call."""
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(
                input, running_mean, running_var, weight, bias, False, momentum, eps
            )
        if input.device.type != "cuda":
            return _Normalize.apply(
                input, weight, bias, running_mean, running_var, momentum, eps, self._ranks
            )
        from torch.nn.modules._functions import SyncBatchNorm

        group, count = self._ranks.device_group, self._ranks.count
        of = (weight, bias, running_mean, running_var, eps, momentum, group, count)
        return SyncBatchNorm.apply(input, *of)


class _Normalize(torch.autograd.Function):
    """Normalise each channel (the second axis) by its mean and variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (rows, C, ...)
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(wide, axes, correction=0)
        n = mean.new_full((1,), x.numel() // x.shape[1])
        of_ranks = ranks.concatenate_spans(torch.cat([mean, var, n])[None], ranks.count)
        means, variances, counts = of_ranks.split([len(mean), len(mean), 1], dim=1)
        n = counts.sum()
        mean = (counts * means).sum(dim=0) / n
        var = (counts * (variances + (means - mean) ** 2)).sum(dim=0) / n
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)

        inverse = torch.rsqrt(var + eps)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        ctx.save_for_backward(x, weight, mean, inverse, n)
        ctx.ranks, ctx.axes = ranks, axes
        return torch.addcmul(_channels(shift, x), wide, _channels(scale, x)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, n = ctx.saved_tensors
        wide = d_y.to(mean.dtype)
        centred = x.to(mean.dtype) - _channels(mean, x)
        d_bias = wide.sum(ctx.axes)
        d_weight = (wide * centred).sum(ctx.axes) * inverse
        of_all = ctx.ranks.sum_(torch.stack([d_bias, d_weight])) / n
        scale = inverse if weight is None else inverse * weight
        along = _channels(of_all[1] * inverse, x)
        d_x = (wide - _channels(of_all[0], x) - centred * along) * _channels(scale, x)
        none_after_bias = (None for _ in range(5))
        if weight is None:
            return d_x.to(x.dtype), None, None, *none_after_bias
        return d_x.to(x.dtype), d_weight, d_bias, *none_after_bias


def _channels(values: Tensor, like: Tensor) -> Tensor:
    """View values (C,) in a shape that broadcasts with (rows, C, ...)."""
    return values.view(-1, *[1] * (like.ndim - 2))
