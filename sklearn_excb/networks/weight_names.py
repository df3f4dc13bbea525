"""Names of weights in files: those of well-known ports are translated, others are explained."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from torch import Tensor, nn

State = Mapping[str, Tensor]

# names of efficientnet_pytorch, and timm's for blocks with and without an expansion
_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(.+)")


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters, and the statistics of BatchNorm."""
    statistics = {n: b for n, b in model.named_buffers() if "running_" in n}
    return {**dict(model.named_parameters()), **statistics}


def translated(state: State, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the weights under the names of the model, where there is one way to do so.

    Names may have any common beginning, such as ``module.`` or ``teacher.backbone.``, beside other
    weights, and may be those of efficientnet_pytorch. Other names stay as they are, for timm to
    translate.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights in the file.
    model : nn.Module
        Model of timm.
    name : str
        Its name.

    Raises
    ------
    ValueError
        If the file has all weights twice, or needs another backbone.
    """
    wanted = list(learned(model))
    if not wanted or all(name in state for name in wanted):
        return dict(state)
    begins = [key.removesuffix(wanted[0]) for key in state if key.endswith(f".{wanted[0]}")]
    fits = [begin for begin in begins if all(begin + name in state for name in wanted)]
    if len(fits) > 1:
        several = " and ".join(map(repr, fits[:3]))
        raise ValueError(
            f"The file has these weights more than once, under {several}. Save one of "
            "them to a file of its own."
        )
    begin = fits[0] if fits else next(iter(state)).partition(".")[0] + "."
    if fits or all(key.startswith(begin) for key in state):
        named = {k.removeprefix(begin): w for k, w in state.items() if k.startswith(begin)}
        return named if fits else translated(named, model, name)
    return dict(state) if "_conv_stem.weight" not in state else _of_port(state, model, name)


def _of_port(state: State, model: nn.Module, name: str) -> dict[str, Tensor]:
    """Translate the names of efficientnet_pytorch, which pads as timm's ``tf_`` models do."""
    found = (re.match(r"blocks\.\d+\.\d+", weight) for weight in learned(model))
    blocks = list(dict.fromkeys(block[0] for block in found if block))
    if not blocks or "conv_stem.weight" not in learned(model):
        return dict(state)
    if not name.startswith("tf_"):
        raise ValueError(
            "The file has the names of efficientnet_pytorch, whose padding is TensorFlow's. Use "
            f"backbone={'tf_' + name.partition('.')[0]!r}."
        )
    renamed = {}
    for key, weight in state.items():
        layer, _, rest = key.partition(".")
        if found := _BLOCK.fullmatch(key):
            place, layer, rest = int(found[1]), found[2], found[3]
            expands = f"_blocks.{place}._expand_conv.weight" in state
            of_block = (_EXPANDING if expands else _PLAIN) | _SQUEEZE
            if place < len(blocks) and layer in of_block:
                key = f"{blocks[place]}.{of_block[layer]}.{rest}"
        elif layer in _STEM:
            key = f"{_STEM[layer]}.{rest}"
        renamed[key] = weight
    return renamed


def explained(state: State, model: nn.Module, error: Exception) -> str | None:
    """Return how most names, or a shape, differ from those of a model, or None.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights in the file.
    model : nn.Module
        Model that they should fit.
    error : Exception
        Error of the attempt to load them. Shapes matter only to errors of torch, since timm adapts
        some of them.
    """
    wanted = learned(model)
    missing = [name for name in wanted if name not in state]
    unused = [name for name in state if name not in wanted]
    if 2 * len(missing) > len(wanted) and unused:
        near = difflib.get_close_matches(missing[0], unused, n=1, cutoff=0)
        return (
            f"the file lacks {len(missing)} of {len(wanted)} names. The backbone expects "
            f"{missing[0]!r}, and the nearest name in the file is {near[0]!r}. Try the backbone "
            "that the file was made for, or save the weights under the names that it expects."
        )
    for name in wanted if isinstance(error, RuntimeError) else ():
        if name in state and (there := tuple(state[name].shape)) != (
            here := tuple(wanted[name].shape)
        ):
            return f"{name} has the shape {there} in the file, and {here} in the backbone."
    return None
