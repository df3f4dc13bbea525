"""Backbones by name (timm, torchvision, and small ones for small images and rows), or modules."""

from __future__ import annotations

import copy
import difflib
import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_excb.networks.pretrained import TORCHVISION, torchvision_weights, with_weights
from sklearn_excb.networks.small_map_convolution import with_matrix_products

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
        Number of channels of the images.
    width : int
        Number of channels of the first stage. It doubles each of the three times that the
        resolution halves.

    Notes
    -----
    The network maps (n, n_channels, h, w) to (n, 32 * width). Its features are means over the four
    quarters of the last maps, since positions matter in small images. With one mean over the whole
    map, the k-NN accuracy on 2,000 MNIST images is .854 (raw pixels .928; one seed), and with four
    means .944. On CIFAR-10 it is .426 and .444, and on digits (two seeds) .988 and .988 (NMI .671
    and .686).
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
    """Two hidden layers for feature vectors, from (n, d) to (n, width).

    Parameters
    ----------
    n_features : int
        Number of features d of the input.
    width : int, default=256
        Number of features of the output.
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
    """Return a sentence that suggests known names similar to this one."""
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def _unknown(name: str, known: list[str]) -> ValueError:
    return ValueError(
        f"Unknown backbone {name!r}.{_near(name, known)} A backbone is 'auto', one of "
        f"{', '.join(map(repr, SMALL))}, the name of a timm model such as 'resnet50', the name of "
        "a torchvision model such as 'torchvision:resnet50', or an nn.Module that maps images "
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
            f"Unknown pretrained weights {name!r}.{_near(name, known)} The weights that timm has "
            f"for this model are: {', '.join(known) or 'none'}."
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
    """Return the arguments with which timm builds a backbone of this kind."""
    from timm.models.vision_transformer import VisionTransformer

    options: dict[str, Any] = {"num_classes": 0, "in_chans": n_channels}
    if isinstance(model, VisionTransformer):
        # local views are smaller than global views, so the position embeddings are resampled
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
            f"has {n_channels}. Set n_channels=3, which repeats gray images, or use a timm "
            "backbone, whose weights adapt to other channels."
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
    """Return the arguments with which torchvision builds a backbone of this name."""
    if name not in _WITH_AUXILIARY:
        return {}
    # heads take one output only, and published weights expect their own scale of the input
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
    """Build the backbone f by its name, with random or pretrained weights, or copy a module.

    Parameters
    ----------
    backbone : str or nn.Module
        "cnn", "identity" or "mlp" (rows only), the name of a timm model, ``"torchvision:"`` and the
        name of a torchvision model, or a module.
    n_channels : int
        Number of channels of the images, or of features of the rows.
    image_size : int or None
        Side of the global views in pixels; None for rows.
    pretrained : bool or path-like, default=False
        True for the pretrained weights that timm or torchvision names, or a file of weights.

    Raises
    ------
    ValueError
        If the name is unknown (the message suggests similar names), or has no pretrained weights.
    PretrainedWeightsError
        If the weights are not available or do not fit.
    """
    if pretrained and (isinstance(backbone, nn.Module) or backbone in SMALL):
        named = "a module of your own" if isinstance(backbone, nn.Module) else repr(backbone)
        raise ValueError(
            f"pretrained={pretrained!r} is for backbones of timm and torchvision, but backbone is "
            f"{named}. Choose one of those, such as backbone='resnet18', or set pretrained=False. "
            "A module keeps the weights it has."
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
    # convolutions use the memory format of their weights, and channels last is the faster one
    return with_matrix_products(built).to(memory_format=torch.channels_last)


def rebuilding(
    name: str | nn.Module, backbone: nn.Module, *, n_channels: int, image_size: int | None
) -> dict[str, Any]:
    """Describe how to build a backbone again, without this package if timm or torchvision has it.

    Parameters
    ----------
    name, n_channels, image_size
        Arguments of :func:`build_backbone`.
    backbone : nn.Module
        Result of :func:`build_backbone`.

    Returns
    -------
    dict
        "library", "architecture" and "arguments". For a user's module, only the name of its class
        as "architecture". For torchvision, also "identity", the name of the linear layer that an
        ``nn.Identity`` replaces, and, if images do not have three channels, "stem", the name of the
        first convolution.
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
    """Return the number of features of a backbone for the crops of a run.

    Parameters
    ----------
    backbone : nn.Module
        Backbone f.
    examples : list of Tensors
        Batch of zeros for each resolution.

    Raises
    ------
    ValueError
        If the backbone fails on an example, or does not return (n, d) features with the same d for
        all resolutions.
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
            raise ValueError(f"The backbone fails on {came}: {error}") from error
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != len(example):
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"The backbone must map images (n, c, h, w) to features (n, d), but it maps {came} "
                f"to {shape}. End it with pooling and nn.Flatten()."
            )
        dims.append(out.shape[1])
    backbone.train(mode)
    if len(set(dims)) != 1:
        raise ValueError(
            f"The backbone returns {dims} features for views of sizes "
            f"{[tuple(e.shape[2:]) for e in examples]}, but the number must be the same for all "
            "sizes. End the backbone with nn.AdaptiveAvgPool2d(1)."
        )
    return dims[0]
