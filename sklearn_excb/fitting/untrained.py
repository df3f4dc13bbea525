"""The network of a fit before its training, for comparison with what the training made of it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from sklearn_excb.data.sources import Rows, Source
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.networks.backbones import Pretrained, build_backbone
from sklearn_excb.networks.frozen import unfrozen
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.training.build import networks_on
from sklearn_excb.training.frozen_features import feature_batches, features_of
from sklearn_excb.training.loop import start_centroids
from sklearn_excb.training.neighborhoods import row_batches
from sklearn_excb.views.batches import ViewBatches
from sklearn_excb.views.row_views import RowRecipe, constant_feature


def untrained_network(
    fitted: Fitted,
    source: Source,
    *,
    pretrained: Pretrained,
    seed: int,
    device: torch.device,
    n_jobs: int,
) -> ClusterNetwork:
    """Return the teacher with which a fit of these samples starts, on its first centroids.

    Parameters
    ----------
    fitted : Fitted
        Result of a fit. Its settings are taken as they are: the rules of "auto" might choose others
        for these samples.
    source : Source
        Usable samples of the kind that was fitted, at least K.
    pretrained : bool or path-like
        Weights with which the backbone started; a frozen backbone still has them.
    seed : int
        Seed of the fit.
    device : torch.device
        Device of the network.
    n_jobs : int
        Number of reading threads.
    """
    batch_size = min(len(source), fitted.settings.batch_size)
    micro_batch = min(batch_size, fitted.settings.micro_batch)
    settings = replace(fitted.settings, batch_size=batch_size, micro_batch=micro_batch, epochs=0)
    batches = ViewBatches(source, fitted.recipe, batch_size, 0, seed, n_jobs, device)
    with PrivateGenerator(seed):
        if settings.freeze_backbone:
            backbone = copy.deepcopy(unfrozen(fitted.teacher.backbone))
        else:
            backbone = build_backbone(
                settings.backbone,
                n_channels=settings.n_channels,
                image_size=settings.image_size or None,
                pretrained=pretrained,
            )
        networks = networks_on(backbone, fitted.n_backbone_features, settings).to(device)
        if isinstance(source, Rows) and not settings.has_backbone:
            assert isinstance(fitted.recipe, RowRecipe)
            constant = constant_feature(
                source.load, len(source), fitted.recipe, views=settings.views
            )
            networks.set_feature_statistics(constant)
        if settings.freeze_backbone:
            features = features_of(networks, batches, settings, np.arange(len(source)))
            batches = feature_batches(networks, batches, settings, features)
        else:
            batches = row_batches(networks, batches, settings)
        start_centroids(networks, batches.start(), settings, seed=seed)
    return networks.teacher.eval()
