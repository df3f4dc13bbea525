"""Heads on features: projector h and predictor g, as in the published recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

PROJECTION_DIM = 256


@dataclass(frozen=True)
class HeadShape:
    """Architecture of an MLP head.

    Attributes
    ----------
    widths : tuple of int
        Output features of each linear layer; the last is the output of the head. () means no head.
    batch_norm : bool
        Whether BatchNorm follows each linear layer except the last.
    activation : {"relu", "gelu"}
        Activation after each linear layer (and its BatchNorm) except the last.
    standardized : bool
        Whether the head centres and scales its input first.
    """

    widths: tuple[int, ...]
    batch_norm: bool
    activation: Literal["relu", "gelu"]
    standardized: bool = False  # the value in files that are older than this field

    @classmethod
    def of(cls, head: nn.Module) -> Self:
        """Return the shape of a head that :func:`mlp` built."""
        layers = list(head.modules())
        widths = tuple(layer.out_features for layer in layers if isinstance(layer, nn.Linear))
        has_gelu, standardized = (
            any(isinstance(layer, kind) for layer in layers) for kind in (nn.GELU, Standardize)
        )
        activation = "gelu" if has_gelu else "relu"
        return cls(widths, uses_batch_norm(head), activation, standardized)


class Standardize(nn.Module):
    """Layer that centres features and divides all of them by one number.

    With one number for all features, distances keep their ratios.

    Parameters
    ----------
    n_features : int
        Number of features d.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise features (rows, d)."""
        return (x - self.mean) / self.scale


def head_shape(*widths: int, batch_norm: bool) -> HeadShape:
    """Return the shape of a head of the published recipes: BatchNorm and ReLU, or GELU alone."""
    return HeadShape(widths, batch_norm, "relu" if batch_norm else "gelu")


def mlp(in_dim: int, shape: HeadShape) -> nn.Sequential:
    """Build a head, with weights from a truncated normal distribution (0.02) and zero biases."""
    if not shape.widths:
        return nn.Sequential()
    layers: list[nn.Module] = [Standardize(in_dim)] if shape.standardized else []
    for width in shape.widths[:-1]:
        layers.append(nn.Linear(in_dim, width))
        if shape.batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU() if shape.activation == "relu" else nn.GELU())
        in_dim = width
    head = nn.Sequential(*layers, nn.Linear(in_dim, shape.widths[-1]))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return head


def predictor(width: int, *, batch_norm: bool = True) -> nn.Sequential:
    """Build the predictor g: BatchNorm on its input (always), one hidden layer, a linear layer."""
    layers = mlp(PROJECTION_DIM, head_shape(width, PROJECTION_DIM, batch_norm=batch_norm))
    return nn.Sequential(nn.BatchNorm1d(PROJECTION_DIM), *layers)


def uses_batch_norm(backbone: nn.Module) -> bool:
    """Whether the backbone has BatchNorm.

    Backbones without BatchNorm (vision transformers, ConvNeXt) get the heads of the published ViT
    recipe, which have no BatchNorm inside. Other backbones get the heads of the ResNet recipe.
    """
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules())


def layers_without_hidden(projector: nn.Module) -> tuple[Standardize | None, nn.Linear]:
    """Return the layers of a linear projector: Standardize, if it has one, and the linear layer."""
    *before, layer = projector.children()
    assert isinstance(layer, nn.Linear)
    standardize = before.pop() if before else None
    assert not before
    assert standardize is None or isinstance(standardize, Standardize)
    return standardize, layer
