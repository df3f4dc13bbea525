"""Student and teacher networks. Both have f, h and C, and the student also has the predictor g.

Axes: a row is one view of one image. Global views come first, and the images of a view are
contiguous.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sklearn_excb.networks.heads import (
    PROJECTION_DIM,
    HeadShape,
    head_shape,
    layers_without_hidden,
    mlp,
    predictor,
    uses_batch_norm,
)


class CentroidLayer(nn.Module):
    """Centroid layer q of Algorithm 2: K centroids, to which it gives cosine similarities.

    Parameters
    ----------
    n_clusters, dim : int
        Number of clusters K, and dimension D.
    with_gain : bool, default=False
        Whether each cluster has a factor, ``gain``, as in some networks of DINO. The factor
        multiplies the similarity when clusters compete for a sample. The similarities that the
        layer returns do not include it.
    """

    gain: Tensor | None

    def __init__(self, n_clusters: int, dim: int, *, with_gain: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(n_clusters, dim), dim=-1))
        self.register_buffer("gain", torch.ones(n_clusters) if with_gain else None)

    def unit(self) -> Tensor:
        """Return the centroids as unit rows.

        Returns
        -------
        Tensor of shape (K, D)
            Centroids of length 1. Gradients pass through the normalisation.
        """
        return F.normalize(self.weight, dim=-1)

    def forward(self, x: Tensor, *, detach: bool = False) -> Tensor:
        """Compute the cosine similarities of rows to the centroids.

        Parameters
        ----------
        x : Tensor of shape (rows, D)
            Projections of any length.
        detach : bool, default=False
            Whether to keep the gradient from the centroids.

        Returns
        -------
        Tensor of shape (rows, K)
            Cosine similarities, in [-1, 1].
        """
        unit = self.unit()
        return F.normalize(x, dim=-1) @ (unit.detach() if detach else unit).T


class ClusterNetwork(nn.Module):
    """Network of a student or a teacher: f, h, C and, in the student, g.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f, which maps a batch of crops to features (rows, d).
    projector : nn.Module
        Projector h, from (rows, d) to (rows, D).
    centroids : CentroidLayer
        Centroids C.
    predictor : nn.Module, optional
        Predictor g, from (rows, D) to (rows, D). Only the student has one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        centroids: CentroidLayer,
        predictor: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.centroids = centroids
        self.predictor = predictor

    def project(self, groups: Sequence[Tensor]) -> Tensor:
        """Project crops: h(f(x)).

        Parameters
        ----------
        groups : sequence of Tensor (rows, c, size, size)
            One batch of crops per resolution. The backbone sees each batch by itself. The projector
            sees all rows together, so its BatchNorm statistics are joint.

        Returns
        -------
        Tensor of shape (rows, D)
            Raw projections of all groups, in the order of the groups.
        """
        return self.projector(torch.cat([self.backbone(crops) for crops in groups]))


class StudentTeacher(nn.Module):
    """A student, and a teacher whose parameters are an EMA of the student's.

    The teacher has no predictor and gets no gradient. During a fit, its BatchNorm layers are in
    training mode, with running statistics of their own. All its other layers (dropout, drop path)
    are in evaluation mode.

    Parameters
    ----------
    student : ClusterNetwork
        Network with a predictor.
    """

    def __init__(self, student: ClusterNetwork) -> None:
        super().__init__()
        self.student = student
        self.teacher = ClusterNetwork(
            copy.deepcopy(student.backbone),
            copy.deepcopy(student.projector),
            copy.deepcopy(student.centroids),
        ).requires_grad_(False)

    @property
    def n_features(self) -> int:
        """Number of features d of the backbone f."""
        layers = self.student.projector.modules()
        return next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))

    @torch.no_grad()
    def set_feature_statistics(
        self, constant: float, mean: npt.NDArray[np.float64] | None = None, scale: float = 1.0
    ) -> None:
        """Set the statistics of the features in linear projectors, once before training.

        Parameters
        ----------
        constant : float
            Value of the constant feature of :func:`keep_distances`, in units of the scale.
        mean : ndarray of shape (d,), optional
            Mean of each feature. Needed if the projector standardises the features.
        scale : float, default=1.0
            Divisor of the centred features, if the projector standardises them.
        """
        for network in (self.student, self.teacher):
            standardize, layer = layers_without_hidden(network.projector)
            layer.bias.mul_(constant)
            if standardize is not None:
                assert mean is not None
                standardize.mean.copy_(torch.from_numpy(mean))
                standardize.scale.fill_(scale)

    @torch.no_grad()
    def set_directions(
        self, directions: npt.NDArray[np.float32], constant: float, seed: int
    ) -> None:
        """Let linear projectors keep distances along given directions, once before training.

        Parameters
        ----------
        directions : ndarray of shape (m, d)
            Orthonormal directions of the features, m < D.
        constant : float
            Value of the constant feature of :func:`keep_distances`.
        seed : int
            Seed of the rotation of the directions. Without it, a dimension of the projections would
            hold next to nothing, and the BatchNorm of the predictor would enlarge its noise.
        """
        D, m = PROJECTION_DIM, len(directions)
        random = torch.Generator().manual_seed(seed)
        unit = torch.linalg.qr(torch.randn(D, m + 1, generator=random))[0]
        for network in (self.student, self.teacher):
            _, layer = layers_without_hidden(network.projector)
            layer.weight.copy_(unit[:, :m] @ torch.from_numpy(directions))
            layer.bias.copy_(unit[:, m] * constant)

    def train_mode(self) -> StudentTeacher:
        """Set the modes of all layers for training; see the class.

        Returns
        -------
        StudentTeacher
            The object itself.
        """
        self.student.train()
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: ``m_t <- m m_t + (1 - m) m_s``.

        The update covers every parameter of f, h and C, and no buffers. A frozen f does not change.

        Parameters
        ----------
        momentum : float
            Momentum m, in [0, 1].
        """
        teacher_parameters = dict(self.teacher.named_parameters())
        for name, parameter in self.student.named_parameters():
            if name in teacher_parameters:  # the teacher has no g
                teacher_parameters[name].lerp_(parameter, 1.0 - momentum)


@contextmanager
def compiled(networks: StudentTeacher, *, wanted: bool) -> Iterator[None]:
    """Compile the backbones with torch.compile inside this context, if ``wanted``.

    Parameters, their names and pickles do not change.
    """
    backbones = [networks.student.backbone, networks.teacher.backbone] if wanted else []
    for backbone in backbones:
        backbone.compile()
    try:
        yield
    finally:
        for backbone in backbones:
            backbone._compiled_call_impl = None


def build_networks(
    backbone: nn.Module,
    n_features: int,
    *,
    n_clusters: int,
    head_width: int,
    batch_norm: bool | None = None,
    linear: bool = False,
    standardized: bool = False,
) -> StudentTeacher:
    """Build a student and a teacher on a backbone, with untrained heads.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f. It becomes part of the student, and the teacher gets a copy.
    n_features : int
        Number of features d of the backbone.
    n_clusters : int
        Number of clusters K.
    head_width : int
        Hidden width of the predictor and, unless it is linear, of the projector.
    batch_norm : bool, optional
        Whether the heads contain BatchNorm. By default they do if the backbone does.
    linear : bool, default=False
        Whether the projector is one linear layer, initialised by :func:`keep_distances`.
    standardized : bool, default=False
        Whether the projector standardises the features first.
    """
    if batch_norm is None:
        batch_norm = uses_batch_norm(backbone)
    hidden = () if linear else (head_width, head_width)
    shape = head_shape(*hidden, PROJECTION_DIM, batch_norm=batch_norm)
    networks = StudentTeacher(
        ClusterNetwork(
            backbone,
            mlp(n_features, replace(shape, standardized=standardized)),
            CentroidLayer(n_clusters, PROJECTION_DIM),
            predictor(head_width, batch_norm=batch_norm),
        )
    )
    if linear:
        keep_distances(networks)
    return networks


@torch.no_grad()
def keep_distances(networks: StudentTeacher) -> None:
    """Initialise linear projectors as an isometry of the features and one constant feature.

    The method uses only the directions of projections. With the constant feature, inputs that
    differ only in length also differ in direction. The constant is 1 until
    :meth:`StudentTeacher.set_feature_statistics` sets it.

    Parameters
    ----------
    networks : StudentTeacher
        Networks with linear projectors; changed in place. Distances are kept exactly for d < D
        features. For more features they are kept on average, as by any random projection.
    """
    _, layer = layers_without_hidden(networks.student.projector)
    D, d = layer.weight.shape
    unit = torch.linalg.qr(torch.randn(max(d + 1, D), min(d + 1, D)))[0]
    columns = unit if len(unit) == D else unit.T * ((d + 1) / D) ** 0.5
    layer.weight.copy_(columns[:, :d])
    layer.bias.copy_(columns[:, d])
    networks.update_teacher(0.0)  # the teacher starts with the weights of the student


def build_teacher(
    backbone: nn.Module,
    n_features: int,
    *,
    n_clusters: int,
    head: HeadShape,
    with_gain: bool = False,
) -> ClusterNetwork:
    """Build a teacher for inference on a backbone, with an untrained head.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f. It becomes part of the teacher.
    n_features, n_clusters : int
        Number of features d of the backbone, and number of clusters K (0 for a backbone alone).
    head : HeadShape
        Shape of the projector h.
    with_gain : bool, default=False
        Whether clusters have a gain; see :class:`CentroidLayer`.
    """
    return ClusterNetwork(
        backbone,
        mlp(n_features, head),
        CentroidLayer(n_clusters, (n_features, *head.widths)[-1], with_gain=with_gain),
    ).requires_grad_(False)
