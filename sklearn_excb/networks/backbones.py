"""Backbones by name (timm, torchvision, two small ones of ours), or any module of the user's."""

from __future__ import annotations

import copy
import difflib
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_excb.networks.pretrained import TORCHVISION, torchvision_weights, with_weights
from sklearn_excb.networks.small_map_convolution import with_products

Pretrained = bool | str | os.PathLike[str]

OF_ROWS = ("identity", "mlp")
SMALL = ("cnn", *OF_ROWS)
_WITH_AUXILIARY = ("googlenet", "inception_v3")
_DROP_PATH = 0.1


class SmallCNN(nn.Sequential):
    """Six 3 x 3 convolutions with BatchNorm and ReLU, for images of 8 to 63 pixels.

    Parameters
    ----------
    n_channels : int
        Channels of the images.
    width : int
        Channels of the first stage; doubled at each of three halvings of the resolution.

    Notes
    -----
    Maps (n, n_channels, h, w) to (n, 32 * width): means over the four quarters of the last maps,
    for in small images much lies in where something is. With one mean over the whole, neighbours
    of 2,000 MNIST images were of the same class in .854 of them (raw pixels: .928; one seed), with
    four in .944; CIFAR-10 .426 and .444; digits, two seeds, .988 and .988 (NMI .671 and .686).
    """

    def __init__(self, n_channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        in_channels = n_channels
        for out_channels, stride in (
            (width, 1),
            (2 * width, 2),
            (2 * width, 1),
            (4 * width, 2),
            (4 * width, 1),
            (8 * width, 2),
        ):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            in_channels = out_channels
        super().__init__(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


class RowMLP(nn.Sequential):
    """Two hidden layers for feature vectors: (n, d) to (n, width).

    Parameters
    ----------
    n_features : int
        d.
    width : int, default=256
        Features of the result.
    """

    def __init__(self, n_features: int, width: int = 256) -> None:
        super().__init__(
            nn.Linear(n_features, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )


def _cnn_width(image_size: int) -> int:
    return min(64, image_size)


def _near(name: str, known: list[str]) -> str:
    """Sentence that names the known names most like this one."""
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _unknown(name: str, known: list[str]) -> ValueError:
    return ValueError(
        f"Unknown backbone {name!r}.{_near(name, known)} A backbone is 'auto', one of "
        f"{', '.join(map(repr, SMALL))}, the name of a timm model such as 'resnet50', that of a "
        "torchvision model such as 'torchvision:resnet50', or an nn.Module that maps images "
        "(n, c, h, w) to features (n, d)."
    )


def _timm(name: str, n_channels: int, image_size: int, pretrained: Pretrained) -> nn.Module:
    import timm

    if not timm.is_model(name):
        known = [*SMALL, *timm.list_models()]
        raise _unknown(name, known)
    _, _, tag = name.partition(".")
    if tag and not timm.is_model_pretrained(name):
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise ValueError(
            f"Unknown weights {name!r}.{_near(name, known)} timm has {', '.join(known) or 'none'}."
        )
    model = timm.create_model(name, num_classes=0, in_chans=n_channels)
    options = _timm_options(model, n_channels, image_size)
    if "img_size" in options:
        options["drop_path_rate"] = _DROP_PATH
    elif not pretrained:
        return model
    create = partial(timm.create_model, **options)
    return with_weights(create, name, pretrained) if pretrained else create(name)


def _timm_options(model: nn.Module, n_channels: int, image_size: int) -> dict[str, Any]:
    """What timm builds a backbone with, by what it is."""
    from timm.models.vision_transformer import VisionTransformer

    options: dict[str, Any] = {"num_classes": 0, "in_chans": n_channels}
    if isinstance(model, VisionTransformer):
        # local views are smaller than global ones: its positions are resampled for them
        options |= {"img_size": image_size, "dynamic_img_size": True}
    return options


def _torchvision(name: str, n_channels: int, pretrained: Pretrained) -> nn.Module:
    from torchvision import models

    known = [m for m in models.list_models() if "." not in m and "/" not in m]
    short = name.removeprefix(TORCHVISION)
    if short not in models.list_models(module=models):
        raise _unknown(name, [TORCHVISION + m for m in known])
    start = {"zero_init_residual": True} if short.startswith(("resnet", "resnext")) else {}
    model = models.get_model(
        short, weights=None, **start, **_torchvision_options(short, n_channels)
    )
    if pretrained and n_channels != 3:
        raise ValueError(
            f"The pretrained weights of backbone={name!r} are for images with 3 channels, but X "
            f"has {n_channels}. Set n_channels=3, which repeats gray, or take one of timm's, whose "
            "weights are fitted to other channels."
        )
    classifier = _last(model, nn.Linear)
    _replace(model, classifier, nn.Identity())
    if pretrained:
        torchvision_weights(model, short, pretrained, classifier=classifier)
    if n_channels != 3:
        first = _first(model, nn.Conv2d)
        conv = model.get_submodule(first)
        assert isinstance(conv, nn.Conv2d)
        stem = nn.Conv2d(
            n_channels,
            conv.out_channels,
            conv.kernel_size,  # pyright: ignore[reportArgumentType]
            conv.stride,  # pyright: ignore[reportArgumentType]
            conv.padding,  # pyright: ignore[reportArgumentType]
            bias=conv.bias is not None,
        )
        _replace(model, first, stem)
    return model


def _torchvision_options(name: str, n_channels: int) -> dict[str, Any]:
    """What torchvision builds a backbone with, by its name."""
    if name not in _WITH_AUXILIARY:
        return {}
    # more than one output is none that a head can take; published weights want their own scale
    return {"aux_logits": False, "transform_input": n_channels == 3, "init_weights": True}


def _first(model: nn.Module, kind: type[nn.Module]) -> str:
    return next(name for name, m in model.named_modules() if isinstance(m, kind))


def _last(model: nn.Module, kind: type[nn.Module]) -> str:
    return [name for name, m in model.named_modules() if isinstance(m, kind)][-1]


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


def build_backbone(
    backbone: str | nn.Module,
    *,
    n_channels: int,
    image_size: int | None,
    pretrained: Pretrained = False,
) -> nn.Module:
    """Backbone f by its name, with fresh or pretrained weights, or a copy of the user's module.

    Parameters
    ----------
    backbone : str or nn.Module
        "cnn", "identity" or "mlp" (rows only), a timm name, ``"torchvision:"`` and a torchvision
        name, or a module.
    n_channels : int
        Channels of the images; the number of features for rows.
    image_size : int or None
        Side of the global views in pixels; None for rows.
    pretrained : bool or path-like, default=False
        Whether weights of others are taken, the ones that timm or torchvision names, or a file.

    Raises
    ------
    ValueError
        If the name is unknown, with the names most like it; or has no pretrained weights.
    PretrainedWeightsError
        If the weights cannot be had.
    """
    if pretrained and (isinstance(backbone, nn.Module) or backbone in SMALL):
        named = "a module of your own" if isinstance(backbone, nn.Module) else repr(backbone)
        raise ValueError(
            f"pretrained={pretrained!r} is for backbones of timm and torchvision, but backbone is "
            f"{named}. Name one of those, such as 'resnet18'; or leave pretrained=False: a module "
            "keeps the weights it has."
        )
    if isinstance(backbone, nn.Module):
        return copy.deepcopy(backbone).cpu()
    takes_rows, has_rows = backbone in OF_ROWS, image_size is None
    if takes_rows != has_rows:
        takes, came = ("2-D rows", "images") if takes_rows else ("images", "2-D rows")
        raise ValueError(
            f"backbone={backbone!r} takes {takes}, but X holds {came}. Pass a module that maps "
            'them to features (n, d), or leave backbone="auto".'
        )
    if image_size is None:
        return RowMLP(n_channels) if backbone == "mlp" else nn.Identity()
    if backbone == "cnn":
        built = SmallCNN(n_channels, _cnn_width(image_size))
    elif backbone.startswith(TORCHVISION):
        built = _torchvision(backbone, n_channels, pretrained)
    else:
        built = _timm(backbone, n_channels, image_size, pretrained)
    # channels last: convolutions take the order of their weights, and this one is the faster
    return with_products(built).to(memory_format=torch.channels_last)


def rebuilding(
    name: str | nn.Module, backbone: nn.Module, *, n_channels: int, image_size: int | None
) -> dict[str, Any]:
    """What builds a backbone again, without this package where it is another's.

    Parameters
    ----------
    name, n_channels, image_size
        As in :func:`build_backbone`.
    backbone : nn.Module
        What that made of them.

    Returns
    -------
    dict
        "library", "architecture" and "arguments"; of a module of the user's only the class, as
        "architecture". Of torchvision's also "identity", the name of the linear layer in whose
        place an ``nn.Identity`` is, and "stem", that of the convolution of other images than RGB.
    """
    if isinstance(name, nn.Module):
        return {"architecture": f"{type(name).__module__}.{type(name).__qualname__}"}
    if image_size is None:
        return _described("sklearn_excb.networks.backbones", "RowMLP", n_features=n_channels)
    if name == "cnn":
        width = _cnn_width(image_size)
        return _described(
            "sklearn_excb.networks.backbones", "SmallCNN", n_channels=n_channels, width=width
        )
    if name.startswith(TORCHVISION):
        short = name.removeprefix(TORCHVISION)
        options = _torchvision_options(short, n_channels)
        found = _described("torchvision", short, weights=None, **options)
        found["identity"] = _last(backbone, nn.Identity)
        return found if n_channels == 3 else found | {"stem": _first(backbone, nn.Conv2d)}
    return _described("timm", name, **_timm_options(backbone, n_channels, image_size))


def _described(library: str, architecture: str, **arguments: Any) -> dict[str, Any]:
    return {"library": library, "architecture": architecture, "arguments": arguments}


def output_dim(backbone: nn.Module, examples: list[Tensor]) -> int:
    """Number of features that a backbone gives for the crops of a run.

    Parameters
    ----------
    backbone : nn.Module
        f.
    examples : list of Tensors
        A batch of zeros for each resolution.

    Raises
    ------
    ValueError
        If the backbone cannot take one of them, or does not give a matrix (n, d) with one d.
    """
    dims = []
    mode = backbone.training
    backbone.eval()
    for example in examples:
        came = f"a batch of shape {tuple(example.shape)}"
        try:
            with torch.no_grad():
                out = backbone(example)
        except Exception as error:
            raise ValueError(f"The backbone cannot take {came}: {error}") from error
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(example):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"The backbone must map images (n, c, h, w) to features (n, d), but {came} gave "
                f"{shape}. End it with pooling and nn.Flatten()."
            )
        dims.append(out.shape[1])
    backbone.train(mode)
    if len(set(dims)) != 1:
        raise ValueError(
            f"The backbone gives {dims} features for the view sizes "
            f"{[tuple(e.shape[2:]) for e in examples]}; it must give as many for each. "
            "End it with nn.AdaptiveAvgPool2d(1)."
        )
    return dims[0]
