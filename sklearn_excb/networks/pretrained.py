"""Pretrained weights of timm and torchvision: how to load them, and errors if that fails."""

from __future__ import annotations

import logging
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_excb.exceptions import PretrainedWeightsError
from sklearn_excb.networks.weight_names import explained, learned, translated
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.storage.tensor_files import open_safetensors
from sklearn_excb.storage.torch_files import load_objects
from sklearn_excb.storage.weight_files import existing

Filter = Literal["bilinear", "bicubic"]
TORCHVISION = "torchvision:"  # prefix of the name of a backbone
_HUB_FILES = ["model.safetensors", "pytorch_model.bin"]
_PATIENCE = 5.0  # seconds to wait for the hub


class InputStatistics(NamedTuple):
    """Preparation of images that the weights of a backbone were trained with.

    Attributes
    ----------
    mean, std : tuple of float
        Mean and standard deviation of each channel, for pixels in [0, 1].
    whole_filter : {"bilinear", "bicubic"}
        Filter for resizing whole images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole_filter: Filter


def with_weights(
    create: Callable[..., nn.Module], name: str, pretrained: bool | str | os.PathLike[str]
) -> nn.Module:
    """Create a backbone of timm with pretrained weights.

    Parameters
    ----------
    create : callable
        ``timm.create_model`` with all arguments except the name and the weights.
    name : str
        Name of the model.
    pretrained : True or path-like
        True for the weights that timm names, from its cache or from the Hugging Face Hub. A path is
        a file of weights, with timm's names or names that timm translates.

    Raises
    ------
    PretrainedWeightsError
        If there are no such weights, they are not available, or the file holds those of another
        network.
    """
    if pretrained is True:
        try:
            _check_hub(name)
            return create(name, pretrained=True)
        except Exception as error:  # the Hub and its readers raise many kinds
            raise _unavailable(name, pretrained, error) from error
    file = existing(pretrained)

    with PrivateGenerator(0):
        plain = create(name)

    def filled(state: dict[str, Tensor]) -> nn.Module:
        # weights that the file does not set are always the same
        with PrivateGenerator(0), _quiet_timm():
            overlay = {"state_dict": state}
            model: Any = create(name, pretrained=True, pretrained_cfg_overlay=overlay)
        del model.pretrained_cfg["state_dict"]  # it would go into pickles
        return model

    state: dict[str, Tensor] = {}
    try:
        state = translated(_read(file), plain, name)
        model = filled(dict(state))
        # timm loads the weights that fit and ignores the rest silently. Load the file again with
        # every weight changed: weights of the model that stay the same are not in the file.
        other = filled({n: w + 1 if w.is_floating_point() else w for n, w in state.items()})
        weights = learned(model)
        missing = [n for n, w in learned(other).items() if torch.equal(w, weights[n])]
        if missing:
            raise ValueError(f"The file has no weights for {_first(missing)}.")
        surplus = _surplus(model, state) if weights.keys() <= state.keys() else []
        if surplus:
            raise ValueError(f"The file has weights that the backbone lacks: {_first(surplus)}.")
    except Exception as error:  # files that do not fit raise many kinds
        raise _unavailable(name, pretrained, error, explained(state, plain, error)) from error
    return model


def _check_hub(name: str) -> None:
    """Raise at once if weights have to come from a hub that is out of reach.

    The hub's own client tries for a minute and logs every attempt.
    """
    import huggingface_hub
    from timm.models import get_pretrained_cfg

    known = get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id or urllib.request.getproxies():
        return
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    files = [known.hf_hub_filename] if known.hf_hub_filename else _HUB_FILES
    if any(huggingface_hub.try_to_load_from_cache(known.hf_hub_id, file) for file in files):
        return
    hub = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    address = hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)
    try:
        socket.create_connection(address, timeout=_PATIENCE).close()
    except OSError as error:
        raise ConnectionError(f"{hub.netloc} cannot be reached: {error}") from error


@contextmanager
def _quiet_timm() -> Iterator[None]:
    """Keep timm from logging the names of all weights that a file lacks or has in addition."""
    logger = logging.getLogger("timm.models._builder")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _surplus(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Return weights of layers that a part of the model lacks, as files of deeper networks have."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    parts = {part for part, child in model.named_children() if [*child.parameters()]}
    surplus = state.keys() - model.state_dict().keys()
    return sorted(
        name
        for name in surplus
        if name.partition(".")[0] in parts
        and name.endswith(("weight", "bias"))
        and not name.startswith(tuple(f"{head}." for head in heads))
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def torchvision_weights(
    model: nn.Module, name: str, pretrained: bool | str | os.PathLike[str], *, classifier: str
) -> None:
    """Load pretrained weights into a backbone of torchvision without its classifier.

    Parameters
    ----------
    model : nn.Module
        Backbone; changed in place.
    name : str
        Name of the model.
    pretrained : True or path-like
        True for the best weights that torchvision names, or a file of weights.
    classifier : str
        Name of the layer that classifies. Its weights are ignored, as are those of auxiliary
        classifiers.

    Raises
    ------
    PretrainedWeightsError
        If the weights are not available, or the file holds those of another network.
    """
    file = None if pretrained is True else existing(pretrained)
    state: Mapping[str, Tensor] = {}
    without = (f"{classifier}.", "aux1.", "aux2.", "AuxLogits.")
    try:
        if file is None:
            state = _best(name).get_state_dict(progress=False, check_hash=True)
        else:
            state = translated(_read(file), model, name)
        model.load_state_dict({n: w for n, w in state.items() if not n.startswith(without)})
    except Exception as error:
        why = explained(state, model, error)
        raise _unavailable(f"torchvision:{name}", pretrained, error, why) from error


def _best(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name)["DEFAULT"]


def _read(file: Path) -> dict[str, Tensor]:
    """Read the weights of a file by name, also if a checkpoint contains them among other things."""
    if file.suffix == ".safetensors":
        with open_safetensors(file) as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    from timm.models import clean_state_dict

    found = load_objects(file)
    for inside in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inside), Mapping):
            found = found[inside]
            break
    state = clean_state_dict(dict(found)) if isinstance(found, Mapping) else {}
    if not state or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise ValueError("The file holds no state_dict, a mapping of names to tensors.")
    return state


def _unavailable(
    name: str, pretrained: Any, error: Exception, why: str | None = None
) -> PretrainedWeightsError:
    lines = [line.strip() for line in str(error).splitlines()]
    # the first line of torch's lists of keys contains no information
    said = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
    if pretrained is not True:
        return PretrainedWeightsError(
            f"The weights in {os.fspath(pretrained)} do not fit backbone={name!r}: "
            f"{why or said[:300]}"
        )
    return PretrainedWeightsError(
        f"The pretrained weights of backbone={name!r} are not available "
        f"({type(error).__name__}: {said[:300]}). Without internet access, download the file on "
        f"another machine{_source(name)} and pass its path, pretrained=FILE or --weights FILE. Or "
        'train from scratch with pretrained=False; the recipe "tiny" does so in minutes.'
    )


def _source(name: str) -> str:
    """Return the address of the weights of a backbone, if its library knows it."""
    try:
        if name.startswith(TORCHVISION):
            return f", {_best(name.removeprefix(TORCHVISION)).url},"
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(name)
    except Exception:  # there are no weights, as the original error says
        return ""
    if known is None or not known.hf_hub_id:
        return ""
    return f", model.safetensors of https://huggingface.co/{known.hf_hub_id},"


def input_statistics(
    name: str | nn.Module, backbone: nn.Module, n_channels: int
) -> InputStatistics | None:
    """Return the image preparation of a pretrained backbone, or None if it is not known.

    It is only known for images with three channels. For others, the weights of the first layer were
    adapted.

    Parameters
    ----------
    name : str or nn.Module
        The parameter ``backbone`` of the estimator.
    backbone : nn.Module
        The backbone itself. Models of timm know their preparation, also if the user passes one.
    n_channels : int
        Number of channels of the images.
    """
    if n_channels != 3:
        return None
    if isinstance(name, str) and name.startswith(TORCHVISION):
        of = _best(name.removeprefix(TORCHVISION)).transforms()
        mean, std, interpolation = of.mean, of.std, of.interpolation.value
    elif said := getattr(backbone, "pretrained_cfg", None):
        mean, std, interpolation = said["mean"], said["std"], said.get("interpolation")
    else:
        return None
    whole: Filter = "bilinear" if interpolation == "bilinear" else "bicubic"
    return InputStatistics(tuple(mean), tuple(std), whole)
