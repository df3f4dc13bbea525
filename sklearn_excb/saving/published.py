"""Published checkpoints of the authors of ExCB and of DINO, read as fitted networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.networks.backbones import build_backbone
from sklearn_excb.networks.heads import uses_batch_norm
from sklearn_excb.networks.student_teacher import ClusterNetwork, build_teacher
from sklearn_excb.runtime.compat import weightless
from sklearn_excb.runtime.devices import resolve_precision
from sklearn_excb.saving.release_tensors import Release, TeacherTensors, listed, teacher_tensors
from sklearn_excb.settings import auto_rules
from sklearn_excb.settings.resolve import Facts, resolve
from sklearn_excb.storage.torch_files import load_objects, plain_arguments
from sklearn_excb.training.build import IMAGENET_MEAN
from sklearn_excb.views.multicrop import ViewRecipe


@dataclass(frozen=True)
class Published:
    """A published network.

    Attributes
    ----------
    release : Release
        Release of the checkpoint, ExCB or DINO.
    args : dict
        Arguments of the training as plain values; {} if the file has none.
    teacher : ClusterNetwork
        Teacher on the CPU, in evaluation mode. If the file holds a backbone alone, h is empty and C
        has no centroids.
    n_backbone_features : int
        Number of features of the backbone f.
    own : dict
        Parameters of the estimator that the network determines.
    """

    release: Release
    args: dict[str, Any]
    teacher: ClusterNetwork
    n_backbone_features: int
    own: dict[str, Any]

    @property
    def has_clusters(self) -> bool:
        """Whether the file holds the head, and thus clusters."""
        return len(self.teacher.centroids.weight) > 0

    def parameters(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of an estimator: those of the network, and those the user chose.

        Raises
        ------
        ValueError
            If the user's choice contradicts the network of the file.
        """
        if not self.has_clusters:
            embedding = chosen.get("embedding", "backbone")
            if embedding != "backbone":
                raise ValueError(
                    f"embedding={embedding!r} cannot be used: the checkpoint holds a backbone "
                    'alone. Pass the full checkpoint, or set embedding="backbone".'
                )
            chosen = {**chosen, "embedding": embedding}
        for name, value in self.own.items():
            other = chosen.get(name, "auto")
            if other not in ("auto", value):
                raise ValueError(
                    f"{name}={other!r} cannot be used: the network of the checkpoint has "
                    f"{name}={value!r}. Leave {name} out here. To change it for a new fit, use "
                    f"set_params({name}=...) later."
                )
        return {"balancing": self.release.balancing, "settle_passes": 0, **chosen, **self.own}

    def fitted(self, parameters: Mapping[str, Any], device: torch.device) -> Fitted:
        """Return the network as the result of a fit, without training samples.

        Parameters
        ----------
        parameters : mapping
            Validated parameters of the estimator. "auto" is resolved as for ImageNet.
        device : torch.device
            Device for which the training precision is resolved.
        """
        size = self.own["image_size"]
        facts = Facts(auto_rules.IMAGENET, "images", (size, size), self.own["n_channels"])
        has_batch_norm = uses_batch_norm(self.teacher.backbone)
        settings = resolve(parameters, facts, has_batch_norm=has_batch_norm)
        settings = replace(settings, precision=resolve_precision(settings.precision, device))
        if not self.has_clusters:
            settings = replace(settings, K=0, head_width=0)
        recipe = ViewRecipe(
            global_size=size,
            local_size=settings.local_size,
            n_global=settings.n_global,
            n_local=settings.n_local,
            smallest_global=settings.smallest_global,
            smallest_local=settings.smallest_local,
            mean=IMAGENET_MEAN,
            std=self.release.std,
            flip=settings.flip,
            whole_filter=self.release.whole_filter,
        )
        none = np.empty(0, dtype=np.int64)
        n_features = self.n_backbone_features
        return Fitted(self.teacher, settings, recipe, n_features, facts.shape, none, history=[])


def read_published(path: str | os.PathLike[str]) -> Published:
    """Read a checkpoint of ExCB or DINO.

    Parameters
    ----------
    path : str or path-like
        Path of the file.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the file does not exist, or is a folder.
    ValueError
        If the file is not such a checkpoint, contains code, is damaged, or holds tensors that do
        not fit together.
    """
    checkpoint = load_objects(path)
    try:
        if not isinstance(checkpoint, dict):
            raise ValueError(f"the file holds a {type(checkpoint).__name__}, but must hold a dict.")
        args = plain_arguments(checkpoint.get("args"))
        return _network(teacher_tensors(checkpoint, args), args)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} cannot be used: {error}") from error


def _network(tensors: TeacherTensors, args: dict[str, Any]) -> Published:
    """Build a teacher from its tensors."""
    K, size, g = len(tensors.directions), tensors.image_size, tensors.lengths
    # if all centroids have the same length, the cosine alone decides
    with_gain = K > 0 and not ((g == g[0]).all() and g[0] > 0)
    with weightless():
        backbone = build_backbone(tensors.architecture, n_channels=3, image_size=size).eval()
        n_features = backbone(torch.empty(1, 3, size, size)).shape[1]
        teacher = build_teacher(
            backbone, n_features, n_clusters=K, head=tensors.head, with_gain=with_gain
        )
    found = {f"backbone.{name}": tensor for name, tensor in tensors.backbone.items()}
    found |= {f"projector.{name}": tensor for name, tensor in tensors.projector.items()}
    found["centroids.weight"] = tensors.directions if K else torch.empty(0, n_features)
    if with_gain:
        found["centroids.gain"] = g
    wanted = teacher.state_dict()
    _check_fit(wanted, found, tensors)
    # copies, since the tensors of a file may share memory
    options: dict[str, Any] = {"copy": True, "memory_format": torch.contiguous_format}
    copies = {name: found[name].to(tensor.dtype, **options) for name, tensor in wanted.items()}
    teacher.load_state_dict(copies, assign=True)
    teacher.backbone.to(memory_format=torch.channels_last)  # as in build_backbone
    own = {"backbone": tensors.architecture, "image_size": size, "n_channels": 3}
    own |= {"pretrained": False, "freeze_backbone": False}
    if K:
        own |= {"K": K, "head_width": tensors.head.widths[0]}
    return Published(tensors.release, args, teacher.requires_grad_(False).eval(), n_features, own)


def _check_fit(
    wanted: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], tensors: TeacherTensors
) -> None:
    """Check that no tensor is missing, unknown or of another shape; name them as in the file."""
    prefixes = tensors.release.parts

    def in_file(name: str) -> str:
        part, _, rest = name.partition(".")
        return prefixes[part] + rest

    misfits = [
        f"{in_file(name)} {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    wrong = {
        "missing": [in_file(name) for name in wanted if name not in found],
        "unknown": [in_file(name) for name in found if name not in wanted],
        "of another shape": misfits,
    }
    told = "; ".join(f"{what}: {listed(names)}" for what, names in wrong.items() if names)
    if told:
        raise ValueError(
            f"the tensors do not fit {tensors.architecture}"
            f"{' with a head of ' + tensors.release.name if tensors.head.widths else ''}: {told}."
        )
