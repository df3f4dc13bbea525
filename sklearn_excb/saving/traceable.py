"""Inference as one network that can be traced, for export.

The network maps raw samples to embedding, cluster and similarities. It does the work of
:mod:`sklearn_excb.views.batches` and :mod:`sklearn_excb.training.teacher_outputs`, with common
operators only: image sizes are tensors, and a resize is a product with small matrices.

Axes: ``n`` images or rows, ``K`` clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sklearn_excb.data.pixels import to_unit
from sklearn_excb.data.resampling import filter_weights
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.training.teacher_outputs import Embedding
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe
from sklearn_excb.views.whole_images import whole_side


class WholeImages(nn.Module):
    """Preparation of raw images (n, c, h, w) of any size for inference, (n, c, size, size).

    It computes the result of :func:`sklearn_excb.views.batches.whole_images`, with height and width
    as tensors. Only the pixels of the crop are computed, so only the input has an unknown shape.

    Parameters
    ----------
    recipe : ViewRecipe
        Recipe with size, filter, mean and standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: ViewRecipe) -> None:
        super().__init__()
        self.size, self.short_side = recipe.global_size, whole_side(recipe)
        self.filter = recipe.whole_filter
        self.register_buffer("mean", torch.tensor(recipe.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(recipe.std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images (n, c, size, size)."""
        n_pixels = images.shape[-2:]
        sides = torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in n_pixels])
        short = sides.min()
        # the ends of images longer than 3 : 1 are left out, as in trim_length
        cut = short * ((sides - 3 * short) // (2 * short)).clamp(min=0)
        length = sides - 2 * cut
        resized = _rounded(length * self.short_side, short)
        first = _rounded(resized - self.size, torch.full_like(short, 2))  # first pixel of the crop
        of_sides = zip(n_pixels, cut, first, length.float(), resized.float(), strict=True)
        rows, columns = (self._weights(*of_side) for of_side in of_sides)
        return ((rows @ to_unit(images) @ columns.T).clamp(0, 1) - self.mean) / self.std

    def _weights(
        self, n_pixels: int, cut: Tensor, first: Tensor, length: Tensor, resized: Tensor
    ) -> Tensor:
        """Return the weight of each input pixel of a side in each pixel of the crop."""
        pixel = (torch.arange(n_pixels) - cut).float()
        out = (torch.arange(self.size) + first).float()[:, None]
        return filter_weights(pixel, out, length, length / resized, self.filter)


def _rounded(a: Tensor, b: Tensor) -> Tensor:
    """Return ``round(a / b)`` of positive integers, with halves to even as in Python."""
    near = (2 * a + b) // (2 * b)
    half = near * 2 * b == 2 * a + b
    return near - half.long() * (near % 2)


class StandardRows(nn.Module):
    """Preparation of rows (n, d): subtract the mean of the training set, divide by its scale.

    It computes the result of :func:`sklearn_excb.views.row_views.standardize`, in float32. The
    difference is in float64.

    Parameters
    ----------
    recipe : RowRecipe
        Recipe with mean and scale.
    """

    mean: Tensor

    def __init__(self, recipe: RowRecipe) -> None:
        super().__init__()
        self.scale = recipe.scale
        self.register_buffer("mean", torch.from_numpy(recipe.mean).double())

    def forward(self, rows: Tensor) -> Tensor:
        """Return standardised rows (n, d)."""
        return ((rows.double() - self.mean) / self.scale).float()


class EndToEnd(nn.Module):
    """Network from raw samples to embedding, cluster and similarities.

    Parameters
    ----------
    prepare : WholeImages or StandardRows
        Preparation of samples for the backbone.
    teacher : ClusterNetwork
        Teacher on the CPU, in evaluation mode.
    embedding : {"projection", "backbone", "similarity"}
        Kind of the first output.
    """

    centroids: Tensor
    gain: Tensor | None

    def __init__(self, prepare: nn.Module, teacher: ClusterNetwork, embedding: Embedding) -> None:
        super().__init__()
        self.prepare, self.backbone, self.projector = prepare, teacher.backbone, teacher.projector
        self.embedding = embedding
        self.register_buffer("centroids", teacher.centroids.unit().detach())
        self.register_buffer("gain", teacher.centroids.gain)

    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embedding (n, d), cluster (n,) int64 and similarity (n, K) of raw samples."""
        return self.outputs(self.prepare(samples))

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return embedding, cluster and similarity of prepared samples."""
        features = self.backbone(inputs)
        projections = F.normalize(self.projector(features), dim=-1)
        similarity = (projections @ self.centroids.T).float()
        # a graph cannot have the same tensor as two outputs
        embeddings = {
            "projection": projections,
            "backbone": features,
            "similarity": similarity.clone(),
        }
        score = similarity if self.gain is None else similarity * self.gain
        return embeddings[self.embedding].float(), score.argmax(dim=1), similarity
