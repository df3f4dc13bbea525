"""Names of the tensors in the published checkpoints of ExCB and DINO, from their public code.

Both releases write files with ``torch.save``. A file holds a dict with the weights of student and
teacher, the state of the training, and the arguments of the run.

=============  ==========================================  ======================================
part           ExCB                                        DINO
=============  ==========================================  ======================================
f              ``backbone.``, names of torchvision, timm   the same
h              ``classifier.projector.mlp.``               ``head.mlp.``
C              ``classifier.centroid_layer.weight_g, _v``  ``head.last_layer.weight_g, _v``
not needed     ``classifier.predictor``                    ``dino_loss.center``
architecture   ``args.backbone``, ``args.patch_size``      ``args.arch``, ``args.patch_size``
whole images   bilinear, red's deviation .228              bicubic, .229
=============  ==========================================  ======================================

Centroids are under weight norm, with rows ``g v / |v|``, and are multiplied by unit projections. A
network that was wrapped in DistributedDataParallel has ``module.`` before every name. DINO also
publishes backbones alone, as a dict of the tensors of f without arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sklearn_excb.networks.heads import HeadShape

_IMAGE_SIZE = 224  # pixels, in both releases, if a file does not contain the size
_SHOWN = 4  # names that an error message lists
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
State = dict[str, Tensor]


@dataclass(frozen=True)
class Release:
    """Tensor names, image preparation and balancing of a release; see the module."""

    name: Literal["ExCB", "DINO"]
    projector: str
    centroids: str
    unused: tuple[str, ...]
    architecture: str
    std: tuple[float, float, float]
    whole_filter: Literal["bicubic", "bilinear"]
    balancing: str
    backbone: str = "backbone."

    @property
    def parts(self) -> dict[str, str]:
        """Prefix of the tensor names of each part."""
        return {
            "backbone": self.backbone,
            "projector": self.projector,
            "centroids": self.centroids,
        }


EXCB = Release(
    "ExCB",
    projector="classifier.projector.mlp.",
    centroids="classifier.centroid_layer.",
    unused=("classifier.predictor.", "classifier.predictor_activation."),
    architecture="backbone",
    std=(0.228, 0.224, 0.225),
    whole_filter="bilinear",
    balancing="linear",
)
DINO = Release(
    "DINO",
    projector="head.mlp.",
    centroids="head.last_layer.",
    unused=(),
    architecture="arch",
    std=(0.229, 0.224, 0.225),
    whole_filter="bicubic",
    balancing="centering",
)
_BACKBONE_ALONE = replace(DINO, backbone="")
_ONLY_IN_BACKBONES = ("cls_token", "conv1.weight")

_WEIGHT_NORM = (  # the two spellings of weight norm: lengths g, directions v
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)
_EARLY_NAMES = {"layer0.0.": "conv1.", "layer0.1.": "bn1."}  # names in early ResNets of ExCB
_VIT_SIZES = {192: "tiny", 384: "small", 768: "base"}
_VITS = tuple(
    f"vit_{size}_patch{patch}_224"
    for size, patch in (("tiny", 16), ("small", 16), ("small", 8), ("base", 16), ("base", 8))
)
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {  # (has bottlenecks, blocks of each stage)
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


@dataclass(frozen=True)
class TeacherTensors:
    """Tensors of the teacher in a checkpoint.

    Attributes
    ----------
    release : Release
        Release of the checkpoint, ExCB or DINO.
    backbone, projector : dict of str to Tensor
        Tensors of each part, by their names without the prefix.
    lengths : Tensor of shape (K,)
        Lengths g of the centroids.
    directions : Tensor of shape (K, D)
        Directions v of the centroids, not normalised; of shape (0, 0) for a backbone alone.
    architecture : str
        Name of the backbone in timm.
    image_size : int
        Side of the images in pixels.
    head : HeadShape
        Shape of the projector, which has no layers for a backbone alone.
    """

    release: Release
    backbone: State
    projector: State
    lengths: Tensor
    directions: Tensor
    architecture: str
    image_size: int
    head: HeadShape


def teacher_tensors(checkpoint: Mapping[Any, Any], args: Mapping[str, Any]) -> TeacherTensors:
    """Return the teacher in a checkpoint, or the backbone if the file holds nothing else.

    Parameters
    ----------
    checkpoint : mapping
        Content of the file.
    args : mapping
        Arguments of the run in the file, as plain values.

    Raises
    ------
    ValueError
        If the checkpoint is of neither release, or if the teacher has no head, an unknown
        architecture or tensors that are not finite numbers.
    """
    if "teacher" not in checkpoint:
        return _backbone_alone(checkpoint)
    teacher = checkpoint["teacher"]
    if not isinstance(teacher, dict) or not teacher:
        raise ValueError("the entry 'teacher' holds no tensors.")
    state = _sound_state(teacher, "module.")
    release = _release_of(state)
    parts = _parts(release, state)
    lengths, directions = _centroids(release, parts["centroids"])
    head = _head_shape(release, args, parts["projector"])
    if directions.shape[1] != head.widths[-1]:
        raise ValueError(
            f"the centroids {release.centroids}* have {directions.shape[1]} features, but the "
            f"projector {release.projector}* returns {head.widths[-1]}."
        )
    return TeacherTensors(
        release,
        parts["backbone"],
        parts["projector"],
        lengths,
        directions,
        _architecture(release, args, parts["backbone"]),
        _image_size(args, parts["backbone"]),
        head,
    )


def _backbone_alone(checkpoint: Mapping[Any, Any]) -> TeacherTensors:
    """Return the tensors of a file that holds a backbone alone."""
    if not any(str(name).endswith(_ONLY_IN_BACKBONES) for name in checkpoint):
        raise ValueError(
            f"the file has no entry 'teacher', but {listed(map(str, checkpoint))}. It must have "
            "this entry, with the tensors of backbone and head, or hold the tensors of a backbone "
            f"alone ({' or '.join(_ONLY_IN_BACKBONES)} and so on)."
        )
    state = _sound_state(checkpoint, "module.", "backbone.")
    # the classifier of a ResNet is not part of f
    state = {name: t for name, t in state.items() if name not in ("fc.weight", "fc.bias")}
    backbone = _parts(_BACKBONE_ALONE, state)["backbone"]
    return TeacherTensors(
        _BACKBONE_ALONE,
        backbone,
        {},
        torch.empty(0),
        torch.empty(0, 0),
        _architecture(_BACKBONE_ALONE, {}, backbone),
        _image_size({}, backbone),
        HeadShape((), batch_norm=False, activation="gelu"),
    )


def _sound_state(state: Mapping[Any, Any], *prefixes: str) -> State:
    """Return the tensors of a network, without prefixes that all names share."""
    state = {str(name): tensor for name, tensor in state.items()}
    for prefix in prefixes:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    bad = [name for name, tensor in state.items() if not _is_sound(tensor)]
    if bad:
        raise ValueError(
            f"these tensors do not hold finite numbers: {listed(bad)}. The training diverged, or "
            "the file is damaged."
        )
    return state


def _is_sound(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in _DTYPES
        and bool(tensor.isfinite().all())
    )


def _release_of(state: State) -> Release:
    for release in (EXCB, DINO):
        if any(name.startswith((release.projector, release.centroids)) for name in state):
            return release
    raise ValueError(
        f"the teacher has neither {EXCB.centroids}* (ExCB) nor {DINO.centroids}* (DINO), but "
        f"{listed(state)}."
    )


def _parts(release: Release, state: State) -> dict[str, State]:
    """Split the tensors into backbone, projector and centroids, and remove the prefixes."""
    parts: dict[str, State] = {part: {} for part in release.parts}
    others = []
    for name, tensor in state.items():
        for part, prefix in release.parts.items():
            if name.startswith(prefix):
                parts[part][name.removeprefix(prefix)] = tensor
                break
        else:
            if not name.startswith(release.unused):
                others.append(name)
    if others:
        raise ValueError(
            f"the network has tensors that networks of {release.name} do not have: "
            f"{listed(others)}."
        )
    backbone = parts["backbone"]
    for early, now in _EARLY_NAMES.items():
        for name in [name for name in backbone if name.startswith(early)]:
            backbone[now + name.removeprefix(early)] = backbone.pop(name)
    return parts


def _centroids(release: Release, state: State) -> tuple[Tensor, Tensor]:
    """Return lengths (K,) and directions (K, D) of the centroids, in float32."""
    spelling = next((names for names in _WEIGHT_NORM if set(names) == set(state)), None)
    if spelling is None:
        raise ValueError(
            f"the centroids must be {release.centroids}weight_g and {release.centroids}weight_v, "
            f"but the file has {listed(release.centroids + name for name in state)}."
        )
    lengths, directions = (state[name].float() for name in spelling)
    K = len(directions) if directions.ndim == 2 else 0
    if K < 2 or lengths.shape != (K, 1):
        raise ValueError(
            f"the centroids have lengths of shape {tuple(lengths.shape)} and directions of shape "
            f"{tuple(directions.shape)}, but must have (K, 1) and (K, D) with K of at least 2."
        )
    if not directions.any(dim=1).all():
        raise ValueError("some centroids are 0 and have no direction.")
    return lengths[:, 0], directions


def _architecture(release: Release, args: Mapping[str, Any], backbone: State) -> str:
    """Return the name of the backbone in timm, by the arguments of the run or by the tensors."""
    said, known = args.get(release.architecture), (*_VITS, *_RESNETS.values())
    patches = backbone.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4:
        patch = patches.shape[-1]
        found = f"vit_{_VIT_SIZES.get(len(patches))}_patch{patch}_224"
    else:
        patch, found = None, _RESNETS.get(_blocks(backbone))
    if isinstance(said, str):
        found = said.replace("deit_", "vit_")  # the first names in DINO's code
        if found.startswith("vit_"):
            found = f"{found}_patch{args.get('patch_size') or patch}_224"
    if found not in known:
        source = f"args.{release.architecture}={said!r}" if isinstance(said, str) else "the tensors"
        raise ValueError(
            f"the architecture is unknown, by {source}. Known architectures are {', '.join(known)}."
        )
    return found


def _blocks(backbone: State) -> tuple[bool, tuple[int, ...]]:
    """Return whether a ResNet has bottlenecks, and the number of blocks of each stage."""
    names = [name.split(".") for name in backbone]
    stages = [{name[1] for name in names if name[0] == f"layer{stage}"} for stage in (1, 2, 3, 4)]
    return "layer1.0.conv3.weight" in backbone, tuple(map(len, stages))


def _image_size(args: Mapping[str, Any], backbone: State) -> int:
    """Return the side of the images, by the positions of a ViT or by the crops of the run."""
    patches, places = backbone.get("patch_embed.proj.weight"), backbone.get("pos_embed")
    if patches is not None and places is not None and patches.ndim == 4 and places.ndim == 3:
        return max(1, math.isqrt(max(places.shape[1] - 1, 0))) * patches.shape[-1]
    said = args.get("crop_size")
    return said if isinstance(said, int) and 32 <= said <= 4096 else _IMAGE_SIZE


def _head_shape(release: Release, args: Mapping[str, Any], projector: State) -> HeadShape:
    """Return the shape of the projector by its tensors, and the arguments or the recipe.

    The activation is that of the arguments. If these do not name one, it is that of the recipe.
    """
    if set(projector) == {"weight", "bias"}:  # DINO's head of one layer is not in a sequence
        for name in ("weight", "bias"):
            projector[f"0.{name}"] = projector.pop(name)
    linear = sorted(
        (int(name.removesuffix(".weight")), len(tensor))
        for name, tensor in projector.items()
        if name.removesuffix(".weight").isdecimal() and tensor.ndim == 2
    )
    if not linear:
        raise ValueError(
            f"the projector is missing: {release.projector}0.weight and so on are needed, but the "
            f"file has {listed(release.projector + name for name in projector)}."
        )
    batch_norm = any(name.endswith(".running_mean") for name in projector)
    said = args.get("mlp_activation") if release is EXCB else "gelu"
    activation = ("relu" if batch_norm else "gelu") if said is None else said
    if activation not in ("relu", "gelu"):
        raise ValueError(f"args.mlp_activation={said!r} is unknown. It must be 'relu' or 'gelu'.")
    return HeadShape(tuple(width for _, width in linear), batch_norm, activation)


def listed(names: Iterable[str]) -> str:
    """List the first names, and the number of further names."""
    shown = ", ".join((names := list(names))[:_SHOWN]) or "nothing"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
