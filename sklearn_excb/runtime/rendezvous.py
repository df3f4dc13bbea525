"""Connection of the processes that a launcher has started, found by environment variables."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from sklearn_excb.exceptions import RankError
from sklearn_excb.runtime.devices import resolve_device
from sklearn_excb.runtime.ranks import ALONE, Ranks

_TIMEOUT = timedelta(minutes=30)  # for a message; torch's default without GPUs
_RENDEZVOUS_VARIABLE = "SKLEARN_EXCB_RENDEZVOUS_SECONDS"
_RENDEZVOUS_SECONDS = 300.0
_PORTS, _PORT_STRIDE = range(20_000, 30_000), 97
# CPU group of each world group, which it must not outlive
_second_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Position that a launcher has given to this process.

    Attributes
    ----------
    rank, count, local_rank : int
        Rank among all processes, number of all processes, and rank on this machine.
    address : str
        Address "host:port" of the rendezvous.
    """

    rank: int
    count: int
    local_rank: int
    address: str


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Return the place that a launcher has set in the environment; None without a launcher.

    torchrun, Ray Train and Spark's TorchDistributor set RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. srun sets its own variables. Among these, only SLURM_STEP_NUM_TASKS distinguishes a
    process that srun started from the script that called srun.

    Raises
    ------
    ValueError
        If some variables of a launcher are missing.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        count = int(environment["WORLD_SIZE"])
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if count > 1 and missing:
            raise ValueError(
                f"RANK and WORLD_SIZE={count} are set, but not {' and '.join(missing)}. Start the "
                "script with torchrun, or unset RANK and WORLD_SIZE."
            )
        rank = int(environment["RANK"])
        address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        return Place(rank, count, int(environment.get("LOCAL_RANK", rank)), address)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        step = int(environment.get("SLURM_STEP_ID", 0))  # a job may run several steps at once
        port = _PORTS[(int(environment["SLURM_JOB_ID"]) + _PORT_STRIDE * step) % len(_PORTS)]
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            f"{host}:{environment.get('MASTER_PORT', port)}",
        )
    return None


def first_host(nodes: str) -> str:
    """Return the first node of a SLURM list, such as gpu07 of "gpu[07-09,12],cpu3"."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise ValueError(
            f"SLURM_STEP_NODELIST={nodes!r} names no node. Start the script with srun, which sets "
            "this variable, or unset SLURM_STEP_NUM_TASKS."
        )
    return match[1] + (match[2] or "")


def join(device: str | torch.device, devices: int | str) -> tuple[Ranks, torch.device]:
    """Join the processes of a launcher, if there are any.

    Parameters
    ----------
    device : str or torch.device
        Parameter ``device`` of the estimator.
    devices : int or "auto"
        Parameter ``devices`` of the estimator. With 1, the process fits alone under any launcher.

    Returns
    -------
    ranks : Ranks
        Position among the joined processes.
    device : torch.device
        Device of this process. With several GPUs, each process of a machine has its own.

    Raises
    ------
    ValueError
        If the device is missing, or if ``devices`` differs from the number of started processes.
    RankError
        If the other processes do not connect in time.
    """
    own = resolve_device(device)
    place = place_of(os.environ)
    met = dist.is_available() and dist.is_initialized()
    count = dist.get_world_size() if met else 1 if place is None else place.count
    if devices == 1 or count == 1:
        return ALONE, own
    if devices not in ("auto", count):
        raise ValueError(
            f"devices={devices}, but a launcher has started {count} processes. Set "
            'devices="auto" to fit with all processes, or devices=1 for a separate fit in each.'
        )
    own = _own_device(own, place)
    if not met:
        assert place is not None
        _connect(place, own)
    return _ranks(dist.group.WORLD), own


def _own_device(device: torch.device, place: Place | None) -> torch.device:
    """Return the device of this process, which is one of the machine's GPUs for CUDA."""
    if device.type != "cuda":
        return device
    if device.index is None:
        local = torch.cuda.current_device() if place is None else place.local_rank
        device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _connect(place: Place, device: torch.device) -> None:
    """Set up torch.distributed for the life of this process."""
    from torch.distributed.rendezvous import rendezvous

    seconds = float(os.environ.get(_RENDEZVOUS_VARIABLE, _RENDEZVOUS_SECONDS))
    # import before there is a group: defaults of its functions would keep the group alive
    importlib.import_module("torch.distributed.nn.functional")
    where: dict[str, Any] = {}  # torchrun has already made a store
    try:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            meeting = rendezvous(
                f"tcp://{place.address}",
                place.rank,
                place.count,
                timeout=timedelta(seconds=seconds),
            )
            store, rank, count = next(meeting)
            where = {"store": store, "rank": rank, "world_size": count}
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_TIMEOUT, **where)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"Rank {place.rank} could not connect to the other {place.count - 1} processes at "
            f"{place.address} within {seconds:g} seconds. Check that all processes are started, "
            "that every machine can reach the address and that the port is free. "
            f"{_RENDEZVOUS_VARIABLE} sets the time limit. ({error})"
        ) from error
    atexit.register(_disconnect)


def _disconnect() -> None:
    """Leave the process groups before Python ends.

    A group and its threads live as long as anything refers to the group. A thread that releases a
    tensor after Python has ended aborts the process.
    """
    sys.last_value = sys.last_traceback = None  # frames of an uncaught error may hold a group
    _second_groups.clear()
    try:
        if dist.is_initialized():
            dist.destroy_process_group()
    finally:
        gc.collect()


def _ranks(world: Any) -> Ranks:
    """Return the connected ranks, with a second group if the first takes no CPU tensors."""
    if "cpu:gloo" in dist.get_backend_config(world):
        host = world
    else:
        if world not in _second_groups:
            _second_groups[world] = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        host = _second_groups[world]
    return Ranks(dist.get_rank(), dist.get_world_size(), host, world)
