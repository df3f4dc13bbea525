"""A random generator of a fit's own: PyTorch's global generators are neither read nor changed.

Initialisers, dropout and drop path draw from the global generators of the process, which other
threads draw from too. :class:`PrivateGenerator` gives them another generator. It sees every
operation of PyTorch in the thread that enters it, and in no other thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def _integers(tensor: Tensor, *limits: int, generator: torch.Generator) -> Tensor:
    return tensor.random_(*((0, *limits) if len(limits) == 1 else limits), generator=generator)


_FACTORIES = {  # operations without an argument for a generator, and their overloads that have it
    torch.ops.aten.rand.default: torch.ops.aten.rand.generator,
    torch.ops.aten.randn.default: torch.ops.aten.randn.generator,
    torch.ops.aten.randint.default: torch.ops.aten.randint.generator,
    torch.ops.aten.randint.low: torch.ops.aten.randint.low_generator,
    torch.ops.aten.randperm.default: torch.ops.aten.randperm.generator,
}
_LIKE = {  # and those that have none: what they do to an empty tensor
    torch.ops.aten.rand_like.default: Tensor.uniform_,
    torch.ops.aten.randn_like.default: Tensor.normal_,
    torch.ops.aten.randint_like.default: _integers,
    torch.ops.aten.randint_like.low_dtype: _integers,
}


def mixed_seed(seeds: Sequence[int]) -> int:
    """Mix several integers into one seed."""
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class PrivateGenerator(TorchDispatchMode):
    """Draw all random numbers of PyTorch from private generators while this is entered.

    Parameters
    ----------
    seed : int
        Seed of the draws.

    Attributes
    ----------
    drew : bool
        Whether anything has been drawn.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generators: dict[torch.device, torch.Generator] = {}
        self.drew = False
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> None:
        """Begin the draws anew."""
        self._seed = seed
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass a generator to an operation that draws."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        self.drew = True
        device = kwargs.get("device") or next(
            (a.device for a in args if isinstance(a, Tensor)), torch.device("cpu")
        )
        generator = self._on(torch.device(device))
        if func is torch.ops.aten.native_dropout.default:
            return _dropout(*args, generator=generator)
        if func in _LIKE:
            return _LIKE[func](torch.empty_like(args[0], **kwargs), *args[1:], generator=generator)
        func = _FACTORIES.get(func, func)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs = {**kwargs, "generator": kwargs.get("generator") or generator}
        return func(*args, **kwargs)

    def _on(self, device: torch.device) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


def _dropout(
    x: Tensor, p: float, train: bool | None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Dropout with the mask that its backward pass asks for, as ``aten::native_dropout``."""
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask
