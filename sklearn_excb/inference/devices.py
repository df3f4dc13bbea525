"""Devices of inference, and the share of the samples for each of them."""

from __future__ import annotations

import copy
import itertools
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from sklearn_excb.data.sources import ItemImages, Source
from sklearn_excb.exceptions import DeviceWarning
from sklearn_excb.networks.student_teacher import ClusterNetwork
from sklearn_excb.runtime.call_site import warn_caller
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.rendezvous import place_of


def inference_device(wanted: str | torch.device) -> torch.device:
    """Return the requested device, or the CPU with a warning if that device is missing."""
    try:
        return resolve_device(wanted)
    except ValueError as error:
        warn_caller(f"{error} Inference continues on the CPU.", DeviceWarning)
        return torch.device("cpu")


def inference_devices(
    wanted: str | torch.device, devices: int | str, source: Source
) -> list[torch.device]:
    """Return every GPU of this machine if one process may use all of them, else one device.

    Parameters
    ----------
    wanted, devices
        Parameters ``device`` and ``devices`` of the estimator.
    source : Source
        Samples of the inference. Some data sets of users can only be read by a single thread.
    """
    device = inference_device(wanted)
    of_one = device.type != "cuda" or device.index is not None or devices == 1
    alone = isinstance(source, ItemImages) and not source.reads_in_parallel
    if of_one or alone or place_of(os.environ) is not None:
        return [device]
    n_there = torch.cuda.device_count()
    n = n_there if devices == "auto" else min(int(devices), n_there)
    return [torch.device("cuda", number) for number in range(n)]


def split_among_devices(
    devices: Sequence[torch.device],
    teacher: ClusterNetwork,
    n_samples: int,
    batch_size: int,
    work: Callable[[ClusterNetwork, torch.device, slice], None],
) -> None:
    """Split samples among devices, with one thread per device.

    Parameters
    ----------
    devices : sequence of torch.device
        Devices that share the samples.
    teacher : ClusterNetwork
        Teacher, which moves to the first device. Each other device gets a copy.
    n_samples, batch_size : int
        Number of samples, and their number per batch. Shares are whole batches, the same batches as
        on a single device.
    work : callable
        Function of a teacher, its device and a slice of rows, which does the work for these rows.
    """
    n_batches = -(-n_samples // batch_size)
    ends = [n_batches * i // len(devices) * batch_size for i in range(len(devices) + 1)]
    shares = [slice(a, min(b, n_samples)) for a, b in itertools.pairwise(ends)]
    teachers = [copy.deepcopy(teacher).to(device) for device in devices[1:]]
    teachers.insert(0, teacher.to(devices[0]))
    if len(devices) == 1:
        work(teacher, devices[0], shares[0])
        return
    with ThreadPoolExecutor(len(devices), "ExCB infers") as pool:
        deque(pool.map(work, teachers, devices, shares), maxlen=0)  # raises errors of threads
