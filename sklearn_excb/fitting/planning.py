"""estimate_memory and dry_run: what a fit would take."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from sklearn_excb.data.sources import ItemImages
from sklearn_excb.data.unusable_images import drop_unusable, skipped_of, warn_if_nearly_black
from sklearn_excb.fitting.context import fit_context
from sklearn_excb.fitting.memory.budget import estimate_memory_of
from sklearn_excb.fitting.memory.estimate import MemoryEstimate
from sklearn_excb.inference.learned import LearnedAttributes
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.launch import number_of_devices
from sklearn_excb.runtime.rendezvous import place_of
from sklearn_excb.settings.validation import check_parameters
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.reading import number_of_jobs

if TYPE_CHECKING:  # a fit does not need it
    from sklearn_excb.fitting.dry_run import DryRun

_TRIED = 1000  # images that a dry run opens to see whether they can be used


class PlanningMixin(LearnedAttributes):
    """What a fit would take, without fitting."""

    steps_per_epoch: int | str
    n_jobs: int | str | None
    device: str | torch.device
    devices: int | str

    def estimate_memory(self, X: Any) -> MemoryEstimate:
        """Estimate what :meth:`fit` would take in memory, a component at a time, without fitting.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; a generator is used up by it. For images that are elsewhere, an array
            that takes no memory itself will do: ``np.broadcast_to(np.uint8(0), (n, h, w, 3))``.

        Returns
        -------
        MemoryEstimate
            ``print`` it, or see its ``peak``, ``components``, ``phases`` and ``needed``, in bytes.
            Where several ``devices`` fit together it is of each of them.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or the backbone cannot be followed without
            running it.

        Notes
        -----
        Two steps of training run on fake tensors, which hold nothing, with every tensor counted
        while it lives; the views of five images are made. A backbone of your own must not keep what
        it computes outside of itself (in a cache, say): it would keep fake tensors. :meth:`fit`
        estimates by itself only with backbones that have a name.
        """
        parameters = self.get_params(deep=False)
        check_parameters(parameters)
        source = open_samples(type(self)(**parameters), X, fitting=True)
        usable = drop_unusable(source, number_of_jobs(self.n_jobs, source))
        device, place = resolve_device(self.device), place_of(os.environ)
        if place is not None and self.devices != 1:
            n_devices = place.count
        else:
            n_devices = number_of_devices(self.devices, device)
        return estimate_memory_of(usable, FitContext(parameters, 0, device), n_devices)

    def dry_run(self, X: Any) -> DryRun:
        """Take a few steps of :meth:`fit`, and tell what it would do and take; nothing changes.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            As in :meth:`fit`; a generator is used up by it.

        Returns
        -------
        DryRun
            ``print`` it: parameters with "auto" replaced, memory of a device, time of a step, how
            much of it is waiting for images, and the time to the end. A state in ``checkpoint_dir``
            counts as done.

        Raises
        ------
        ValueError
            As in :meth:`fit`.

        Notes
        -----
        Up to twelve steps are taken, two at the least, for half a minute; with a launcher (see
        ``devices``) all processes have to call it. Where :meth:`fit` would start processes itself,
        one takes its share of each batch, and their messages are not in the times. A thousand
        files (with ``on_error="skip"``, of any images) are tried beforehand, and those that cannot
        be read are counted.
        """
        from sklearn_excb.fitting.dry_run import dry_run

        if self.steps_per_epoch != "auto":
            check_parameters(self.get_params(deep=False))
            raise ValueError(
                "A stream with steps_per_epoch has no dry run: it would be read to its end. Pass a "
                'list of its first images, with steps_per_epoch="auto".'
            )
        context = fit_context(self)
        ranks, device = context.ranks, context.device
        with ranks.together():
            source = open_samples(type(self)(**context.parameters), X, fitting=True)
            if isinstance(source, ItemImages) and source.names is not None:
                source.skips = True  # broken files are counted, whatever fit does with them
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs, most=_TRIED)
            warn_if_nearly_black(usable)
        n_devices = number_of_devices(self.devices, device) if ranks.count == 1 else 1
        tried = dry_run(usable, context, n_devices=n_devices)
        return replace(tried, unusable=tuple(skipped_of(source)), n_tried=min(_TRIED, len(source)))
