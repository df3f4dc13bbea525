"""The processes that a launcher has started, found by what it left in the environment."""

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

_PATIENCE = timedelta(minutes=30)  # for an answer; torch's default without GPUs
_TO_MEET = "SKLEARN_EXCB_RENDEZVOUS_SECONDS"
_MEETING_SECONDS = 300.0
_PORTS, _A_STEP = range(20_000, 30_000), 97
# by the group of all; not to outlive it
_second_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class Place:
    """Where a launcher has put this process.

    Attributes
    ----------
    rank, count, local_rank : int
        Of all processes, and on this machine.
    address : str
        "host:port" at which they meet.
    """

    rank: int
    count: int
    local_rank: int
    address: str


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Place that a launcher has left in the environment; None if there was none.

    torchrun, Ray Train and Spark's TorchDistributor leave RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT. srun leaves names of its own, of which SLURM_STEP_NUM_TASKS alone tells a process
    that it started from the script that called it.

    Raises
    ------
    ValueError
        If the names of a launcher are not all there.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        count = int(environment["WORLD_SIZE"])
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if count > 1 and missing:
            raise ValueError(
                f"RANK and WORLD_SIZE={count} are set, but not {' and '.join(missing)}: start the "
                "script with torchrun, or unset them."
            )
        rank = int(environment["RANK"])
        address = f"{environment.get('MASTER_ADDR')}:{environment.get('MASTER_PORT')}"
        return Place(rank, count, int(environment.get("LOCAL_RANK", rank)), address)
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        step = int(environment.get("SLURM_STEP_ID", 0))  # of one job, there may be two at a time
        port = _PORTS[(int(environment["SLURM_JOB_ID"]) + _A_STEP * step) % len(_PORTS)]
        host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        return Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
            f"{host}:{environment.get('MASTER_PORT', port)}",
        )
    return None


def first_host(nodes: str) -> str:
    """First of SLURM's list of nodes: "gpu[07-09,12],cpu3" begins with gpu07."""
    match = re.match(r"([^\[,]+)(?:\[(\d+))?", nodes)
    if match is None:
        raise ValueError(
            f"SLURM_STEP_NODELIST={nodes!r} names no node. Start the script "
            "with srun, which sets it, or unset SLURM_STEP_NUM_TASKS."
        )
    return match[1] + (match[2] or "")


def join(device: str | torch.device, devices: int | str) -> tuple[Ranks, torch.device]:
    """Join the processes of a launcher, or be alone.

    Parameters
    ----------
    device : str or torch.device
        Of the estimator.
    devices : int or "auto"
        Of the estimator; 1 is alone, whatever launcher there was.

    Returns
    -------
    ranks : Ranks
    device : torch.device
        Of this process: of several GPUs its own.

    Raises
    ------
    ValueError
        If a device is not there, or as many processes are not what a launcher has started.
    RankError
        If the others do not come.
    """
    own = resolve_device(device)
    place = place_of(os.environ)
    met = dist.is_available() and dist.is_initialized()
    count = dist.get_world_size() if met else 1 if place is None else place.count
    if devices == 1 or count == 1:
        return ALONE, own
    if devices not in ("auto", count):
        raise ValueError(
            f"devices={devices}, but a launcher has started {count} processes. Leave "
            'devices="auto" to fit with all of them, or set it to 1 for a fit of each by itself.'
        )
    own = _own(own, place)
    if not met:
        assert place is not None
        _meet(place, own)
    return _ranks(dist.group.WORLD), own


def _own(device: torch.device, place: Place | None) -> torch.device:
    """Device of this process: where others run on the same machine, one of several GPUs."""
    if device.type != "cuda":
        return device
    if device.index is None:
        local = torch.cuda.current_device() if place is None else place.local_rank
        device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _meet(place: Place, device: torch.device) -> None:
    """Set up torch.distributed for the life of this process."""
    from torch.distributed.rendezvous import rendezvous

    seconds = float(os.environ.get(_TO_MEET, _MEETING_SECONDS))
    # the defaults of its functions are, and so keep, the group that there is when it is imported
    importlib.import_module("torch.distributed.nn.functional")
    where: dict[str, Any] = {}  # torchrun leaves a store that is there already
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
        dist.init_process_group(backend, timeout=_PATIENCE, **where)
    except (RuntimeError, ValueError) as error:
        raise RankError(
            f"Rank {place.rank} could not meet the other {place.count - 1} at {place.address} "
            f"within {seconds:g} seconds ({_TO_MEET} sets them). Are all processes started, is the "
            f"address one that every machine can reach, and the port free? ({error})"
        ) from error
    atexit.register(_part)


def _part() -> None:
    """Leave the others, before Python ends.

    A group lives as long as anything refers to it, and its threads with it. One that lets go of a
    tensor when Python has ended aborts the process.
    """
    sys.last_value = sys.last_traceback = None  # frames of an error that nobody has caught
    _second_groups.clear()
    try:
        if dist.is_initialized():
            dist.destroy_process_group()
    finally:
        gc.collect()


def _ranks(world: Any) -> Ranks:
    """The processes that have met, with a second group where theirs takes no tensors of the CPU."""
    if "cpu:gloo" in dist.get_backend_config(world):
        host = world
    else:
        if world not in _second_groups:
            _second_groups[world] = dist.new_group(backend="gloo", timeout=_PATIENCE)
        host = _second_groups[world]
    return Ranks(dist.get_rank(), dist.get_world_size(), host, world)
