"""Named sets of parameters for :meth:`sklearn_excb.ExCBEstimator.from_recipe`.

The backbone of "photos" is DINOv2's ViT-S/14: it learned without labels, its licence is Apache 2.0,
and its published k-NN accuracy on ImageNet is 79.0 %; k-NN depends on neighbourhoods, as clusters
do. It computed 2.3 images of 224 pixels per second on a core that had other work. DINOv3's ViT-S
(3.1) and ConvNeXt-T (2.7) have a licence with conditions of its own; SigLIP-B (0.9) learned from
texts and has four times the weights. None of them was compared here by its clusters.
"""

from __future__ import annotations

import difflib
from typing import Any

_PAPER: dict[str, Any] = {
    "K": 65_536,
    "image_size": 224,
    "local_size": 96,
    "n_global": 2,
    "n_local": 6,
    "batch_size": 1024,
    "head_width": 2048,
    "warmup_epochs": 10,
    "teacher_momentum": 0.996,
    "size_momentum": 0.999,
    "settle_passes": 0,
}

RECIPES: dict[str, dict[str, Any]] = {
    # for images of 8 to 32 pixels, or a first look at larger ones; a CPU is enough
    "tiny": {
        "backbone": "cnn",
        "image_size": 24,
        "local_size": 16,
        "n_local": 2,
        "epochs": 16,
        "head_width": 512,
    },
    # for photos, from a few hundred on: their features by published weights, and a head that learns
    "photos": {
        "backbone": "vit_small_patch14_dinov2.lvd142m",
        "pretrained": True,
        "freeze_backbone": True,
    },
    # for 10,000 photos and more; from fewer it learns little: see auto_rules.image_size
    "small": {
        "backbone": "resnet18",
        "image_size": 64,
        "local_size": 32,
        "n_local": 4,
        "head_width": 512,
    },
    # the recipes of the published checkpoints, from the README of the authors' code
    "paper-resnet50": _PAPER
    | {
        "backbone": "resnet50",
        "epochs": 400,
        "optimizer": "sgd",
        "learning_rate": 0.6,
        "weight_decay": 1e-4,
    },
    "paper-vit-s16": _PAPER
    | {
        "backbone": "vit_small_patch16_224",
        "epochs": 800,
        "optimizer": "adamw",
        "learning_rate": 2e-3,
        "weight_decay": (0.04, 0.4),
    },
}


def recipe(name: str) -> dict[str, Any]:
    """Return the parameters of a recipe.

    Parameters
    ----------
    name : {"tiny", "photos", "small", "paper-resnet50", "paper-vit-s16"}
        Name of the recipe. "tiny" is for images of 8 to 32 pixels, "photos" for photos with
        pretrained weights, "small" for photos without, on a CPU or a small GPU. The other two are
        the published recipes for ImageNet. Parameters that a recipe does not name keep their
        defaults, mostly "auto".

    Raises
    ------
    ValueError
        If the name is unknown. The message suggests similar names.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=2, cutoff=0.4)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        known = ", ".join(map(repr, RECIPES))
        raise ValueError(f"Unknown recipe {name!r}.{meant} The recipes are {known}.")
    return dict(RECIPES[name])
