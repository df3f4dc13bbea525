"""Inference as one network: raw samples in; embedding, cluster and similarities out.

It does what :mod:`sklearn_excb.views.batches` and :mod:`sklearn_excb.training.teacher_outputs` do,
in a form that can be traced. Sizes of images are tensors and a resize is a product with small
matrices, so that a runtime needs only the usual operators.

Axes: ``n`` images or rows, ``K`` clusters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sklearn_excb.data.resampling import filter_weights, to_unit
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.training.teacher_outputs import Embedding
from sklearn_excb.views.batches import whole_side
from sklearn_excb.views.multicrop import ViewRecipe
from sklearn_excb.views.row_views import RowRecipe


class WholeImages(nn.Module):
    """Raw images (n, c, h, w) of any size as inference sees them, (n, c, size, size).

    As :func:`sklearn_excb.views.batches.whole_images`, with height and width that are tensors: only
    the pixels of the crop are ever computed, so that no shape but that of the input is unknown.

    Parameters
    ----------
    recipe : ViewRecipe
        Size, filter, mean and standard deviation.
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
        """Images (n, c, size, size), normalised."""
        n_pixels = images.shape[-2:]
        sides = torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in n_pixels])
        short = sides.min()
        # of images longer than 3 : 1 the ends are left out, as trim_length does
        cut = short * ((sides - 3 * short) // (2 * short)).clamp(min=0)
        length = sides - 2 * cut
        resized = _rounded(length * self.short_side, short)
        first = _rounded(resized - self.size, torch.full_like(short, 2))  # of the crop
        of_sides = zip(n_pixels, cut, first, length.float(), resized.float(), strict=True)
        rows, columns = (self._weights(*of_side) for of_side in of_sides)
        return ((rows @ to_unit(images) @ columns.T).clamp(0, 1) - self.mean) / self.std

    def _weights(
        self, n_pixels: int, cut: Tensor, first: Tensor, length: Tensor, resized: Tensor
    ) -> Tensor:
        """Weights of the pixels of a side in those of the crop, (size, n_pixels)."""
        pixel = (torch.arange(n_pixels) - cut).float()
        out = (torch.arange(self.size) + first).float()[:, None]
        return filter_weights(pixel, out, length, length / resized, self.filter)


def _rounded(a: Tensor, b: Tensor) -> Tensor:
    """``round(a / b)`` of positive integers; halves to the even one, as Python does."""
    near = (2 * a + b) // (2 * b)
    half = near * 2 * b == 2 * a + b
    return near - half.long() * (near % 2)


class StandardRows(nn.Module):
    """Rows (n, d) about the training set's mean, in units of its scale, float32.

    As :func:`sklearn_excb.views.row_views.standardize`, the difference in float64.

    Parameters
    ----------
    recipe : RowRecipe
        Mean and scale.
    """

    mean: Tensor

    def __init__(self, recipe: RowRecipe) -> None:
        super().__init__()
        self.scale = recipe.scale
        self.register_buffer("mean", torch.from_numpy(recipe.mean).double())

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (n, d), standardised."""
        return ((rows.double() - self.mean) / self.scale).float()


class EndToEnd(nn.Module):
    """Everything from a sample to its embedding, cluster and similarities, as one function.

    Parameters
    ----------
    prepare : WholeImages or StandardRows
        From samples to what the backbone takes.
    teacher : ClusterNetwork
        On the CPU, in evaluation mode.
    embedding : {"projection", "backbone", "similarity"}
        What the first output is.
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
        """Embedding (n, d), cluster (n,) int64 and similarity (n, K) of raw samples."""
        return self.outputs(self.prepare(samples))

    def outputs(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of prepared ones."""
        features = self.backbone(inputs)
        projections = F.normalize(self.projector(features), dim=-1)
        similarity = (projections @ self.centroids.T).float()
        # a graph has each of its outputs once
        embeddings = {
            "projection": projections,
            "backbone": features,
            "similarity": similarity.clone(),
        }
        score = similarity if self.gain is None else similarity * self.gain
        return embeddings[self.embedding].float(), score.argmax(dim=1), similarity
