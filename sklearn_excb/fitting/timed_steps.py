"""Measured times of the phases of a fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

import numpy as np
import torch

from sklearn_excb.fitting.run import Run
from sklearn_excb.method.kmeans import nearest_centroids, unit_rows
from sklearn_excb.networks.student_teacher import StudentTeacher
from sklearn_excb.networks.sync_batch_norm import synchronized_batch_norm
from sklearn_excb.runtime.private_generator import PrivateGenerator
from sklearn_excb.settings.resolve import Settings
from sklearn_excb.training.frozen_features import feature_batches, features_of
from sklearn_excb.training.loop import split
from sklearn_excb.training.optimizer import Plan
from sklearn_excb.training.teacher_outputs import assign
from sklearn_excb.views.batches import Batch, ViewBatches

Clock = Callable[[], float]

_FEWEST, _MOST, _SECONDS = 2, 12, 30.0  # limits of the timed steps and of their total time
_BATCHES, _ROWS = 3, 1024  # number of batches or rows to time other phases with


class PhaseTimer:
    """Timer for the phases of a fit on this device, or on all ranks together.

    Parameters
    ----------
    networks : StudentTeacher
        Networks on the device; changed in place.
    settings, batches
        Settings and batches of the fit, or of the share of one device.
    clock : callable
        Function that returns the time in seconds.
    """

    def __init__(
        self, networks: StudentTeacher, settings: Settings, batches: ViewBatches, clock: Clock
    ) -> None:
        self._networks, self._settings, self._batches = networks, settings, batches
        self._clock = clock

    def on_features(self) -> PhaseTimer:
        """Return a timer for training on the features of a frozen backbone.

        The features of one batch of images, repeated with noise, stand for those of all: steps take
        as long, and a dry run takes seconds.
        """
        n = min(len(self._batches.source), _BATCHES * self._settings.batch_size)
        sample = np.arange(min(n, self._settings.inference_batch))
        few = features_of(self._networks, self._batches, self._settings, sample)
        noise = np.random.default_rng(0).standard_normal((n, few.shape[1]), np.float32)
        features = np.resize(few, noise.shape) + few.std() * noise
        batches = feature_batches(self._networks, self._batches, self._settings, features)
        return PhaseTimer(self._networks, self._settings, batches, self._clock)

    def seconds_per_start_batch(self) -> float:
        """Return the time to embed a batch for the first centroids."""
        batches, times = self._batches, list[float]()
        self._networks.train_mode()
        draws = PrivateGenerator(batches.seed)
        with torch.no_grad(), synchronized_batch_norm(batches.ranks), draws:
            last = self._now()
            for batch in islice(batches.start(), _BATCHES):
                for part, _ in split(batch, self._settings.micro_batch, batches.ranks):
                    self._networks.teacher.project(part)
                times.append(self._now() - last)
                last = self._now()
        return _median(_warm(times))

    def seconds_per_image(self) -> float:
        """Return the time to assign an image to its cluster."""
        size, batches = self._settings.inference_batch, self._batches
        sample = np.arange(min(len(batches.source), _BATCHES * size))
        times, last = list[float](), self._now()
        for images in batches.whole(size, sample):
            assign(self._networks.teacher, [images], out=np.empty(len(images), np.int64))
            times.append((self._now() - last) / len(images))
            last = self._now()
        return _median(_warm(times))

    def seconds_per_comparison(self) -> float:
        """Return the time to find the centroid nearest to a projection."""
        centroids = self._networks.teacher.centroids.unit().cpu().numpy()
        shape = (_ROWS, centroids.shape[1])
        rows = unit_rows(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
        times = []
        for _ in range(_BATCHES):
            last = self._now()
            nearest_centroids(rows, centroids, self._batches.device)
            times.append((self._now() - last) / _ROWS)
        return _median(_warm(times))

    def steps(self) -> tuple[float, float]:
        """Return the time per step, and the share of it in which the networks waited for views."""
        batches = self._batches
        n_samples, ranks = len(batches.source), batches.ranks
        run = Run.of(self._networks, self._settings, batches.device, n_samples)
        plan, times, waits = Plan.of(self._settings, n_samples), list[float](), list[float]()
        begun = last = self._now()
        with closing(batches.from_step(0)) as made:
            read = self._waited_for(made, waits)
            for _ in run.steps(read, plan, seed=batches.seed, ranks=ranks):
                now = self._now()
                times.append(now - last)
                last = now
                long = now - begun > _SECONDS and len(times) >= _FEWEST
                if ranks.any(long or len(times) >= _MOST)[0]:
                    break
        return _median(_warm(times)), sum(_warm(waits[: len(times)])) / sum(_warm(times))

    def _waited_for(self, batches: Iterator[Batch], waits: list[float]) -> Iterator[Batch]:
        while True:
            last = self._clock()
            batch = next(batches, None)
            if batch is None:
                return
            waits.append(self._clock() - last)
            yield batch

    def _now(self) -> float:
        """Return the time after the device has finished its work."""
        if self._batches.device.type != "cpu":
            torch.accelerator.synchronize(self._batches.device)
        return self._clock()


def _median(times: list[float]) -> float:
    return float(np.median(times))


def _warm(times: list[float]) -> list[float]:
    """Return the times without the first, in which threads start and kernels are chosen."""
    return times[1:] or times
