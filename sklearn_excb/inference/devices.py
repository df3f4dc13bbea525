"""The devices of inference, and the share of the samples that each of them gets."""

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
    """Return the device asked for; where it is missing, the CPU, which gives the same results."""
    try:
        return resolve_device(wanted)
    except ValueError as error:
        warn_caller(f"{error} Going on with the CPU.", DeviceWarning)
        return torch.device("cpu")


def inference_devices(
    wanted: str | torch.device, devices: int | str, source: Source
) -> list[torch.device]:
    """Return every GPU of this machine, where one process may use them; else one device.

    Parameters
    ----------
    wanted, devices
        Parameters ``device`` and ``devices`` of the estimator.
    source : Source
        Samples of the inference. A data set of the user's may have to be read by a single thread.
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
    """Share samples among devices: a thread each, and a copy of the teacher but on the first.

    Parameters
    ----------
    devices : sequence of torch.device
    teacher : ClusterNetwork
        Moved to the first.
    n_samples, batch_size : int
        Shares are whole batches: each is the one that it would be on one device.
    work : callable
        Of a teacher, its device and the rows that are its share.
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
        deque(pool.map(work, teachers, devices, shares), maxlen=0)  # raises what one has raised
