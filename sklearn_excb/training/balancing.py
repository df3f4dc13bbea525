"""The balancing that the settings name: measured sizes, or a baseline in their place."""

from __future__ import annotations

import torch

from sklearn_excb.method.balancing import TIE_FLOOR, Balancing, ClusterSizes
from sklearn_excb.method.baselines import Centering, NoBalancing, Sinkhorn
from sklearn_excb.settings.settings import Settings


def build_balancing(settings: Settings, device: torch.device | str) -> Balancing:
    """Build the measured sizes, or the baseline that the settings name."""
    if settings.balancing == "centering":
        return Centering(settings.K, device=device)
    if settings.balancing == "sinkhorn":
        return Sinkhorn(settings.K, device=device)
    if settings.balancing == "none":
        return NoBalancing(settings.K, device=device)
    return ClusterSizes(
        settings.K,
        settings.size_momentum,
        below=settings.balancing,
        relative_floor=TIE_FLOOR,
        device=device,
    )
