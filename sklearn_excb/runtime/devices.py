"""Where the networks run: a device by its name, and the memory that is left on it."""

from __future__ import annotations

import difflib
from pathlib import Path

import psutil
import torch

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_PAIRS = (  # limit and use, in version 2 and in version 1 of cgroups
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def resolve_device(device: str | torch.device) -> torch.device:
    """Device by its name; "auto" is CUDA where there is one, else Apple's MPS, else the CPU.

    Raises
    ------
    ValueError
        If the name is unknown, with the names most like it, or the device is not there.
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
            'Choose one of these, or leave device="auto".'
        )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> str:
    """Precision by its name; "auto" is "bf16" where the device multiplies in it, else "32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and _cpu_multiplies_in_bfloat16()
    return "bf16" if native else "32"


def _cpu_multiplies_in_bfloat16() -> bool:
    """Whether the CPU has the instructions, and torch may use them (``ATEN_CPU_CAPABILITY``)."""
    allowed = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return allowed and torch.cpu._is_avx512_bf16_supported()


def available_memory(device: torch.device) -> int:
    """Bytes that a fit could still take on a device.

    Of an accelerator, what is free, and what this process has reserved there and does not use.
    Of the CPU, what the system can give without swapping, within the limits of the container or
    the batch job that this process is in.
    """
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *_left_in_cgroups()])
    if device.type == "mps":  # its memory is the system's
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free, _ = torch.get_device_module(device).mem_get_info(device)
    reserved = torch.accelerator.memory_reserved(device)
    return free + reserved - torch.accelerator.memory_allocated(device)


def _left_in_cgroups() -> list[int]:
    """Bytes left below each limit on the memory of this process (Linux)."""
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
    """Bytes between a limit and the use of a group; files that can be dropped count as free."""
    try:
        text = limit.read_text().strip()
        if text == "max":
            return None
        statistics = (limit.parent / "memory.stat").read_text().split()
        droppable = dict(zip(statistics[::2], statistics[1::2], strict=True)).get("inactive_file")
        return int(text) - int(used.read_text()) + int(droppable or 0)
    except (OSError, ValueError):
        return None
