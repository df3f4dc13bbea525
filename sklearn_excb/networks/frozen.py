"""A backbone that is not trained: its features are computed once, and the head learns from them."""

from __future__ import annotations

from torch import Tensor, nn


class Frozen(nn.Module):
    """A backbone whose weights stay: it gives features of images, and lets features pass.

    Parameters
    ----------
    backbone : nn.Module
        f; changed in place.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, d) of images (n, c, h, w); or features as they are."""
        return x if x.ndim == 2 else self.backbone(x)


def thawed(backbone: nn.Module) -> nn.Module:
    """The backbone itself, frozen or not."""
    return backbone.backbone if isinstance(backbone, Frozen) else backbone
