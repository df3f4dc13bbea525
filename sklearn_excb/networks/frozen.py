"""Frozen backbones: the features are computed once, and only heads and centroids are trained."""

from __future__ import annotations

from torch import Tensor, nn


class Frozen(nn.Module):
    """Backbone with frozen weights, which maps images to features and returns features as they are.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f; its modes change in place.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return features (n, d) of images (n, c, h, w), or features as they are."""
        return x if x.ndim == 2 else self.backbone(x)


def unfrozen(backbone: nn.Module) -> nn.Module:
    """Return the backbone itself, without the wrapper of a frozen backbone."""
    return backbone.backbone if isinstance(backbone, Frozen) else backbone
