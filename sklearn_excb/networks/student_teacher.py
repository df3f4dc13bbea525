"""Student and teacher: heads and centroids C on a backbone f. [METHOD.md 2]

Axes: ``rows`` are (view, image) pairs, views global first, the images of a view contiguous.
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
    """K centroids, unit rows at use; returns cosine similarities. [seed, Alg. 2]

    Parameters
    ----------
    n_clusters, dim : int
        K and D.
    with_gain : bool, default=False
        Whether each cluster has a factor, ``gain``, by which its similarity is multiplied when
        clusters compete for a sample, as in some networks of DINO. The similarities are without.
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
            Gradients go through the division.
        """
        return F.normalize(self.weight, dim=-1)

    def forward(self, x: Tensor, *, detach: bool = False) -> Tensor:
        """Cosine similarity of rows to the centroids.

        Parameters
        ----------
        x : Tensor of shape (rows, D)
            Projections of any length.
        detach : bool, default=False
            Whether no gradient goes to the centroids.

        Returns
        -------
        Tensor of shape (rows, K)
            In [-1, 1].
        """
        unit = self.unit()
        return F.normalize(x, dim=-1) @ (unit.detach() if detach else unit).T


class ClusterNetwork(nn.Module):
    """f, h and C, and in the student g: from crops to projections and similarities.

    Parameters
    ----------
    backbone : nn.Module
        f, from a batch of crops to features (rows, d).
    projector : nn.Module
        h, from (rows, d) to (rows, D).
    centroids : CentroidLayer
        C.
    predictor : nn.Module, optional
        g, from (rows, D) to (rows, D); the student's only.
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
            One batch of crops a resolution. The backbone sees each by itself, the head all rows
            together, so its BatchNorm statistics are joint.

        Returns
        -------
        Tensor of shape (rows, D)
            Raw projections of all groups, in their order.
        """
        return self.projector(torch.cat([self.backbone(crops) for crops in groups]))


class StudentTeacher(nn.Module):
    """A student, and a teacher that is an EMA of its parameters. [METHOD.md 2, 6]

    The teacher has no predictor and takes no gradient. While fitting, its BatchNorm layers are in
    training mode with running statistics of their own; everything else of it (dropout, drop
    path) is in evaluation mode.

    Parameters
    ----------
    student : ClusterNetwork
        With a predictor.
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
        """d, what f gives."""
        layers = self.student.projector.modules()
        return next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))

    @torch.no_grad()
    def set_feature_statistics(
        self, constant: float, mean: npt.NDArray[np.float64] | None = None, scale: float = 1.0
    ) -> None:
        """Tell the projectors, which are linear, what they will be given; once, before training.

        Parameters
        ----------
        constant : float
            Value of the feature that :func:`keep_distances` has added, in units of the scale.
        mean : ndarray of shape (d,), optional
            Of each feature, if it is the projector that standardises them.
        scale : float, default=1.0
            What they are divided by then.
        """
        for network in (self.student, self.teacher):
            standardize, layer = layers_without_hidden(network.projector)
            layer.bias.mul_(constant)
            if standardize is not None:
                assert mean is not None
                standardize.mean.copy_(torch.from_numpy(mean))
                standardize.scale.fill_(scale)

    def fitting(self) -> StudentTeacher:
        """Set the modes of training; see the class.

        Returns
        -------
        StudentTeacher
            Itself.
        """
        self.student.train()
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """``m_t <- m m_t + (1 - m) m_s`` for every parameter of f, h and C; buffers stay.

        A frozen f is the teacher's alone, and stays.

        Parameters
        ----------
        momentum : float
            m, in [0, 1].
        """
        of_teacher = dict(self.teacher.named_parameters())
        for name, parameter in self.student.named_parameters():
            if name in of_teacher:  # not g
                of_teacher[name].lerp_(parameter, 1.0 - momentum)


@contextmanager
def compiled(networks: StudentTeacher, *, wanted: bool) -> Iterator[None]:
    """Have the backbones run as torch.compile makes them, while this is entered, if wanted.

    Parameters, their names, and what is pickled stay as they are.
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
    """Student and teacher on a backbone, with fresh heads.

    Parameters
    ----------
    backbone : nn.Module
        f; becomes the student's.
    n_features : int
        d, what f gives.
    n_clusters : int
        K.
    head_width : int
        Hidden width of predictor and, unless that is linear, projector.
    batch_norm : bool, optional
        Whether they have BatchNorm inside; by default if the backbone has it.
    linear : bool, default=False
        Whether the projector is one linear layer, which begins as :func:`keep_distances` says.
    standardized : bool, default=False
        Whether it takes features as they are, to be standardised.
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
    """Let a linear projector begin as an isometry of its inputs and one more, constant feature.

    Directions are all that is left of projections. With the constant, inputs that differ in
    length alone differ in direction too. It is 1 until
    :meth:`StudentTeacher.set_feature_statistics` sets it.

    Parameters
    ----------
    networks : StudentTeacher
        Whose projectors are linear; changed in place. Distances of d features are kept for d < D;
        of more, on average, as by any random projection.
    """
    _, layer = layers_without_hidden(networks.student.projector)
    D, d = layer.weight.shape
    unit = torch.linalg.qr(torch.randn(max(d + 1, D), min(d + 1, D)))[0]
    columns = unit if len(unit) == D else unit.T * ((d + 1) / D) ** 0.5
    layer.weight.copy_(columns[:, :d])
    layer.bias.copy_(columns[:, d])
    networks.update_teacher(0.0)  # begins as the student does


def build_teacher(
    backbone: nn.Module,
    n_features: int,
    *,
    n_clusters: int,
    head: HeadShape,
    with_gain: bool = False,
) -> ClusterNetwork:
    """Teacher on a backbone for inference, with a fresh head.

    Parameters
    ----------
    backbone : nn.Module
        f; becomes the teacher's.
    n_features, n_clusters : int
        d, what f gives, and K; 0 for a backbone alone.
    head : HeadShape
        Of h.
    with_gain : bool, default=False
        See :class:`CentroidLayer`.
    """
    return ClusterNetwork(
        backbone,
        mlp(n_features, head),
        CentroidLayer(n_clusters, (n_features, *head.widths)[-1], with_gain=with_gain),
    ).requires_grad_(False)
