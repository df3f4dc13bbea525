"""Devices by name, precision by device, and the memory that is available on a device."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_PAIRS = (  # files with limit and usage, in version 2 and in version 1 of cgroups
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)

_PROCESSES_PER_CORE, _FEWEST_PROCESSES = 4, 8  # processes that a CPU may be asked for


def resolve_device(device: str | torch.device) -> torch.device:
    """Return a device by name; "auto" is CUDA if available, else Apple's MPS, else the CPU.

    Raises
    ------
    ValueError
        If the name is unknown or the machine lacks the device. For an unknown name, the message
        suggests the most similar name.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    available = ["cpu", *([accelerator.type] if accelerator else [])]
    if isinstance(device, str) and device == "auto":
        return torch.device(available[-1] if available[-1] in ("cuda", "mps") else "cpu")
    name = device.lower() if isinstance(device, str) else device
    try:
        resolved = torch.device(name)
    except RuntimeError:
        known = {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "gpu": "cuda", "mps": "mps"}
        near = difflib.get_close_matches(str(name), known, 1, 0.4)
        meant = f" Did you mean {known[near[0]]!r}?" if near else ""
        raise ValueError(
            f"Unknown device {device!r}.{meant} A device is 'auto', 'cpu', 'cuda', 'cuda:1' or "
            "'mps'."
        ) from None
    count = 1 if resolved.type == "cpu" else torch.accelerator.device_count()
    if resolved.type not in available or (resolved.index or 0) >= count:
        raise ValueError(
            f"device={str(device)!r} is not on this machine, which has {' and '.join(available)}. "
            'Choose an available device or set device="auto".'
        )
    return resolved


def number_of_devices(devices: int | str, device: torch.device) -> int:
    """Return the number of processes of a fit; "auto" is one per GPU, unless one GPU is named.

    Raises
    ------
    ValueError
        If there are not as many GPUs, or far fewer CPU cores.
    """
    if device.type == "cuda" and device.index is None:
        there = torch.cuda.device_count()
        if devices == "auto":
            return there
        if int(devices) > there:
            raise ValueError(
                f"devices={devices}, but this machine has {there} GPUs. Lower devices, or leave "
                'devices="auto" to use all GPUs.'
            )
    elif devices != "auto" and int(devices) > 1 and device.type != "cpu":
        raise ValueError(
            f"devices={devices}, but device={str(device)!r} is a single device. Leave "
            'devices="auto", or pass a device without a number, such as device="cuda".'
        )
    elif devices != "auto" and device.type == "cpu":
        cores = os.cpu_count() or 1
        most = max(_FEWEST_PROCESSES, cores * _PROCESSES_PER_CORE)
        if int(devices) > most:
            raise ValueError(
                f"devices={devices}, but {cores} CPU cores allow at most {most} processes. "
                'Lower devices, or leave devices="auto": one process uses all cores.'
            )
    return 1 if devices == "auto" else int(devices)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return a precision by name; "auto" is "bf16" if the device multiplies in it, else "32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and _cpu_multiplies_in_bfloat16()
    return "bf16" if native else "32"


def _cpu_multiplies_in_bfloat16() -> bool:
    """Return whether the CPU has the instructions and ``ATEN_CPU_CAPABILITY`` allows them."""
    allowed = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return allowed and torch.cpu._is_avx512_bf16_supported()


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that a fit could still use on a device.

    For an accelerator, this is the free memory and the memory that this process has reserved but
    does not use. For the CPU, this is the memory that the system can provide without swapping,
    within the limits of the container or batch job of this process.
    """
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *_left_in_cgroups()])
    if device.type == "mps":  # it shares the memory of the system
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free, _ = torch.get_device_module(device).mem_get_info(device)
    reserved = torch.accelerator.memory_reserved(device)
    return free + reserved - torch.accelerator.memory_allocated(device)


def _left_in_cgroups() -> list[int]:
    """Return the bytes left below each limit on the memory of this process (Linux)."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = _CGROUPS / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            left += [_left_in(folder / most, folder / used) for most, used in _PAIRS]
            if folder == _CGROUPS:
                break
    return [number for number in left if number is not None]


def _left_in(limit: Path, used: Path) -> int | None:
    """Return the bytes between a group's limit and usage; droppable file cache counts as free."""
    try:
        text = limit.read_text().strip()
        if text == "max":
            return None
        statistics = (limit.parent / "memory.stat").read_text().split()
        droppable = dict(zip(statistics[::2], statistics[1::2], strict=True)).get("inactive_file")
        return int(text) - int(used.read_text()) + int(droppable or 0)
    except (OSError, ValueError):
        return None
