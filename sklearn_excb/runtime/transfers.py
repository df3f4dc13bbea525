"""Copies from memory of the CPU to the device that trains, beside what that is at work on.

On CUDA they go from pinned memory on a stream of their own, and the CPU waits for none of them.
Pinned memory is torch's to use again: it does so once the copy from it is done.
"""

from __future__ import annotations

import functools
from collections import deque

import torch
from torch import Tensor

_AHEAD = 2  # steps that the CPU may have begun before the device is through with one


def is_pinned_for(device: torch.device) -> bool:
    """Whether memory of which the device gets a copy is best pinned."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy of a tensor on a device, or the tensor where it is there already.

    Parameters
    ----------
    tensor : Tensor
        On a CPU, perhaps in pinned memory; it may not change any more.
    device : torch.device
        What is begun on it from now on sees the copy.
    """
    if not is_pinned_for(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    copies, work = _stream(device), torch.cuda.current_stream(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    with torch.cuda.stream(copies):
        copied = pinned.to(device, non_blocking=True)
    work.wait_stream(copies)
    copied.record_stream(work)  # its memory is not given away before the work on it is done
    return copied


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class StepLimiter:
    """Keeps the CPU, which waits for nothing in a step, from running away from a CUDA device.

    Each batch that it is ahead takes memory on the device.

    Parameters
    ----------
    device : torch.device
        On others there is nothing to wait for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until the device is through with what was begun two calls ago."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event(blocking=True)  # the core is free for threads that read
        event.record(torch.cuda.current_stream(self._device))
        self._begun.append(event)
        if len(self._begun) > _AHEAD:
            self._begun.popleft().synchronize()
