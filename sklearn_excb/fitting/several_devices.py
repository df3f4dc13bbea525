"""Fits on several devices of this machine, with one process per device."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from sklearn_excb.data.fingerprints import may_draw
from sklearn_excb.data.sources import ItemImages, Source
from sklearn_excb.fitting.fit import fit
from sklearn_excb.fitting.training_data import Collection
from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.runtime.launch import run_in_processes
from sklearn_excb.runtime.process_state import preserved_generators
from sklearn_excb.runtime.ranks import Ranks
from sklearn_excb.training.build import check_before, facts_of
from sklearn_excb.training.context import FitContext


class FitJob(NamedTuple):
    """A fit that several processes share.

    Attributes
    ----------
    source : Source
        Images or rows.
    context : FitContext
        Context of the fit. Each process replaces ranks and device by its own.
    n_threads : int
        Number of threads of each process.
    """

    source: Source
    context: FitContext
    n_threads: int

    @property
    def device(self) -> str:
        """Kind of device."""
        return self.context.device.type

    def do(self, ranks: Ranks, device: torch.device) -> tuple[Fitted, dict[int, str]]:
        """Fit. Return the result, and the reasons why images were skipped by their indices."""
        source = self.source
        fitted = fit(Collection(source), replace(self.context, ranks=ranks, device=device))
        return fitted, source.reasons if isinstance(source, ItemImages) else {}


def fit_on(n_devices: int, source: Source, context: FitContext) -> Fitted:
    """Fit a source with one process per device; the result is that of one, up to rounding.

    See :func:`sklearn_excb.runtime.launch.run_in_processes`.

    Raises
    ------
    ValueError
        If parameters, data and the number of devices do not go together. No process starts then.
    """
    with preserved_generators(if_drawn=may_draw(source)):  # where the first images are read
        check_before(context.parameters, facts_of(source), n_devices)
    n_threads = max(1, torch.get_num_threads() // n_devices)
    fitted, reasons = run_in_processes(n_devices, FitJob(source, context, n_threads))
    if isinstance(source, ItemImages):
        source.merge_reasons(reasons)
    return fitted
