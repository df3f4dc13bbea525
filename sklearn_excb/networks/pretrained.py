"""Weights that others have trained: where they come from, and what to do when they do not come."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_excb.exceptions import PretrainedWeightsError
from sklearn_excb.runtime.generator_state import seeded_generators
from sklearn_excb.storage.torch_files import load_objects
from sklearn_excb.storage.weight_files import existing

Filter = Literal["bilinear", "bicubic"]
TORCHVISION = "torchvision:"  # before the name of a backbone


class InputStatistics(NamedTuple):
    """How images were prepared for the weights of a backbone.

    Attributes
    ----------
    mean, std : tuple of float
        Of each channel, in [0, 1].
    whole_filter : {"bilinear", "bicubic"}
        With which whole images were resized.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    whole_filter: Filter


def with_weights(
    create: Callable[..., nn.Module], name: str, pretrained: bool | str | os.PathLike[str]
) -> nn.Module:
    """Backbone of timm with pretrained weights.

    Parameters
    ----------
    create : callable
        ``timm.create_model``, with all but the name and what weights it gets.
    name : str
        Of the model.
    pretrained : True or path-like
        Those that timm names, which it takes from its cache or from the Hugging Face Hub; or a
        file of weights with timm's names, or with those that timm translates.

    Raises
    ------
    PretrainedWeightsError
        If there are none, they cannot be had, or those in the file are of another network.
    """
    if pretrained is True:
        try:
            return create(name, pretrained=True)
        except Exception as error:  # of the Hub, of what it reads with
            raise _unavailable(name, pretrained, error) from error
    file = existing(pretrained)

    def filled(state: dict[str, Tensor]) -> nn.Module:
        with seeded_generators(0):  # the same where nothing is filled in
            overlay = {"state_dict": state}
            model: Any = create(name, pretrained=True, pretrained_cfg_overlay=overlay)
        del model.pretrained_cfg["state_dict"]  # which would go into pickles
        return model

    try:
        state = _read(file)
        model = filled(dict(state))
        # timm takes what fits of a file and says nothing of the rest: what stays the same although
        # all in the file is another is not from there
        other = filled({n: w + 1 if w.is_floating_point() else w for n, w in state.items()})
        learned = _learned(model)
        left = [n for n, w in _learned(other).items() if torch.equal(w, learned[n])]
        if left:
            raise ValueError(f"There is nothing in it for {_first(left)}.")
        more = _more(model, state) if learned.keys() <= state.keys() else []
        if more:
            raise ValueError(f"It has more than that: {_first(more)}.")
    except Exception as error:  # of files that do not fit, anything can come
        raise _unavailable(name, pretrained, error) from error
    return model


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and statistics of BatchNorm."""
    statistics = {n: b for n, b in model.named_buffers() if "running_" in n}
    return {**dict(model.named_parameters()), **statistics}


def _more(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Weights of layers that the model has not, in parts that it has: of a deeper network."""
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
    """Load pretrained weights into a backbone of torchvision, its classifier gone.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    name : str
        Of the model.
    pretrained : True or path-like
        The best ones that torchvision names; or a file of them.
    classifier : str
        Name of the layer whose weights are not needed; nor are those of auxiliary classifiers.

    Raises
    ------
    PretrainedWeightsError
        As in :func:`with_weights`.
    """
    file = None if pretrained is True else existing(pretrained)
    without = (f"{classifier}.", "aux1.", "aux2.", "AuxLogits.")
    try:
        if file is None:
            state = _best(name).get_state_dict(progress=False, check_hash=True)
        else:
            state = _read(file)
        model.load_state_dict({n: w for n, w in state.items() if not n.startswith(without)})
    except Exception as error:
        raise _unavailable(f"torchvision:{name}", pretrained, error) from error


def _best(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name)["DEFAULT"]


def _read(file: Path) -> dict[str, Tensor]:
    """Named weights of a file, also of one that holds more."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    from timm.models import clean_state_dict

    found = load_objects(file)
    for inside in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inside), Mapping):
            found = found[inside]
            break
    state = clean_state_dict(dict(found)) if isinstance(found, Mapping) else {}
    if not state or not all(isinstance(weight, Tensor) for weight in state.values()):
        raise ValueError("It holds no state_dict, a mapping of names to tensors.")
    return state


def _unavailable(name: str, pretrained: Any, error: Exception) -> PretrainedWeightsError:
    lines = [line.strip() for line in str(error).splitlines()]
    # torch heads its lists of keys with a line that says nothing
    said = next((line for line in lines if line and not line.endswith(":")), type(error).__name__)
    if pretrained is not True:
        return PretrainedWeightsError(
            f"The weights in {os.fspath(pretrained)} are not those of backbone={name!r}: "
            f"{said[:300]}"
        )
    return PretrainedWeightsError(
        f"The pretrained weights of backbone={name!r} cannot be had "
        f"({type(error).__name__}: {said[:300]}). Without a way to the internet, fetch their file "
        f"elsewhere{_source(name)} and pass its path, pretrained=FILE or --weights FILE; or train "
        'from nothing, with pretrained=False: the recipe "tiny" does that in minutes.'
    )


def _source(name: str) -> str:
    """Where the weights of a backbone lie, as far as its library knows."""
    try:
        if name.startswith(TORCHVISION):
            return f", {_best(name.removeprefix(TORCHVISION)).url},"
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(name)
    except Exception:  # there are none: the error before said so
        return ""
    if known is None or not known.hf_hub_id:
        return ""
    return f", model.safetensors of https://huggingface.co/{known.hf_hub_id},"


def input_statistics(
    name: str | nn.Module, backbone: nn.Module, n_channels: int
) -> InputStatistics | None:
    """How images have to be prepared for a pretrained backbone; None where it does not say.

    For other images than RGB it does not: weights of the first layer were fitted to them.

    Parameters
    ----------
    name : str or nn.Module
        As the user gave it.
    backbone : nn.Module
        What was made of that; one of timm's says it itself, the user's own among them.
    n_channels : int
        Of the images.
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
