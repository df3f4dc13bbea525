"""The generator that the networks of a step draw from, for dropout and drop path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from sklearn_excb.runtime.private_generator import PrivateGenerator, mixed_seed
from sklearn_excb.runtime.process_state import seeded_generators

_KNOWN = {"torch", "torchvision", "timm", "sklearn_excb"}  # layers that draw each step, or never


class StepDraws:
    """Seeds the draws of each step, without the global generators of the process.

    A private generator takes time, since it sees every operation of the networks. It is left out
    after the first step where nothing was drawn and the layers are those of known libraries.
    Compiled backbones draw by kernels that only global generators seed: these are restored after
    the step, but other threads may disturb them.

    Parameters
    ----------
    backbone : nn.Module
        Backbone of the student.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self._generator = PrivateGenerator(0)
        self._compiled = backbone._compiled_call_impl is not None
        packages = {type(layer).__module__.partition(".")[0] for layer in backbone.modules()}
        self._known = packages <= _KNOWN
        self._n_steps = 0

    @contextmanager
    def seeded(self, seeds: Sequence[int]) -> Iterator[AbstractContextManager[Any]]:
        """Seed the draws of a step.

        Parameters
        ----------
        seeds : sequence of int
            Integers that give the seed of the step.

        Yields
        ------
        context manager
            The networks of the step have to run in it.
        """
        if self._compiled:
            with seeded_generators(mixed_seed(seeds)):
                yield nullcontext()
        elif self._known and self._n_steps and not self._generator.drew:
            yield nullcontext()
        else:
            self._generator.manual_seed(mixed_seed(seeds))
            yield self._generator
        self._n_steps += 1
