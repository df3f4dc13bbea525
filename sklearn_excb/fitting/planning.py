"""estimate_memory and dry_run: time and memory of a fit, before it starts."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sklearn_excb.data.sources import ItemImages
from sklearn_excb.data.unusable_images import drop_unusable, skipped_of, warn_if_nearly_black
from sklearn_excb.fitting.memory.budget import estimate_memory_of
from sklearn_excb.fitting.memory.estimate import MemoryEstimate
from sklearn_excb.inference.learned import LearnedAttributes
from sklearn_excb.inference.samples import open_samples
from sklearn_excb.runtime.devices import number_of_devices, resolve_device
from sklearn_excb.runtime.process_state import usual_modes
from sklearn_excb.runtime.rendezvous import place_of
from sklearn_excb.settings.validation import check_parameters
from sklearn_excb.training.context import FitContext
from sklearn_excb.views.reading import number_of_jobs

if TYPE_CHECKING:  # a fit does not need it
    from sklearn_excb.fitting.dry_run import DryRun

_TRIED = 1000  # images that a dry run opens to see whether they can be used


class PlanningMixin(LearnedAttributes):
    """Estimates of the memory and the time of a fit, without fitting."""

    def estimate_memory(self, X: Any) -> MemoryEstimate:
        """Estimate the memory that :meth:`fit` needs, by component, without fitting.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Samples as in :meth:`fit`. A generator is exhausted afterwards. If the images are on
            another machine, pass an array that needs no memory itself:
            ``np.broadcast_to(np.uint8(0), (n, h, w, 3))``.

        Returns
        -------
        MemoryEstimate
            Estimate to ``print``, with ``peak``, ``components``, ``phases`` and ``needed`` in
            bytes. If several ``devices`` fit together, it is the memory of each of them.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or if the backbone cannot run on fake
            tensors.

        Notes
        -----
        Two training steps run on fake tensors, which hold no data, and every tensor is counted
        while it is alive. The views of five images are made. A backbone of your own must not store
        its results outside of itself (in a cache, say), because it would store fake tensors.
        :meth:`fit` makes this estimate on its own only for backbones that have a name.
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
        with usual_modes():
            return estimate_memory_of(usable, FitContext(parameters, 0, device), n_devices)

    def dry_run(self, X: Any) -> DryRun:
        """Take a few steps of :meth:`fit`, and report its parameters, memory and time.

        The estimator does not change.

        Parameters
        ----------
        X : array, tensor, list, path or data set
            Samples as in :meth:`fit`. A generator is exhausted afterwards.

        Returns
        -------
        DryRun
            Report to ``print``: the parameters with "auto" replaced, the memory per device, the
            time per step, the share of it spent waiting for images, and the time to the end. The
            steps of a checkpoint in ``checkpoint_dir`` count as done.

        Raises
        ------
        ValueError
            As in :meth:`fit`.

        Notes
        -----
        The dry run takes twelve steps, or fewer within half a minute, but at least two. With a
        launcher (see ``devices``), all processes have to call it. If :meth:`fit` would start the
        processes itself, the dry run times the share of one process in each batch, without messages
        between processes. A thousand files (with ``on_error="skip"``, any images) are tested first,
        and those that cannot be read are counted.
        """
        from sklearn_excb.fitting.dry_run import dry_run

        if self.steps_per_epoch != "auto":
            check_parameters(self.get_params(deep=False))
            raise ValueError(
                "A stream with steps_per_epoch has no dry run, because the dry run would read it "
                'to its end. Pass a list of its first images, with steps_per_epoch="auto".'
            )
        context = FitContext.of(self, copy.deepcopy(self.random_state))
        ranks, device = context.ranks, context.device
        with ranks.together():
            source = open_samples(type(self)(**context.parameters), X, fitting=True)
            if isinstance(source, ItemImages) and source.names is not None:
                source.skips = True  # broken files are counted, whatever fit does with them
            n_jobs = number_of_jobs(self.n_jobs, source)
            usable = drop_unusable(source, n_jobs, most=_TRIED)
            warn_if_nearly_black(usable)
        n_devices = number_of_devices(self.devices, device) if ranks.count == 1 else 1
        with usual_modes():
            tried = dry_run(usable, context, n_devices=n_devices)
        return replace(tried, unusable=tuple(skipped_of(source)), n_tried=min(_TRIED, len(source)))
