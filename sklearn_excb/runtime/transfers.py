"""Copies from CPU memory to the training device, concurrent with the work of the device.

On CUDA, the copies start from pinned memory and run on their own stream, and the CPU waits for none
of them. torch reuses pinned memory once the copy from it is done.
"""

from __future__ import annotations

import functools
from collections import deque

import torch
from torch import Tensor

_AHEAD = 2  # steps that the CPU may begin before the device has finished one


def is_pinned_for(device: torch.device) -> bool:
    """Return whether copies to the device should start from pinned memory."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, or return the tensor if it is already on the device.

    Parameters
    ----------
    tensor : Tensor
        Tensor in CPU memory, pinned or not. It must not change after the call.
    device : torch.device
        Destination. Work that begins there after the call sees the copy.
    """
    if not is_pinned_for(device) or tensor.device.type != "cpu":
        return tensor.to(device)
    copies, work = _stream(device), torch.cuda.current_stream(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    with torch.cuda.stream(copies):
        copied = pinned.to(device, non_blocking=True)
    work.wait_stream(copies)
    copied.record_stream(work)  # keeps the memory of the copy until the work on it is done
    return copied


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


class StepLimiter:
    """Limit on the number of steps that the CPU may be ahead of a CUDA device.

    The CPU never waits within a step, and each batch that it is ahead takes memory on the device.

    Parameters
    ----------
    device : torch.device
        Device that trains. For devices other than CUDA, the limiter does nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until the device has finished the work that was begun two calls ago."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event(blocking=True)  # leaves the core to reading threads
        event.record(torch.cuda.current_stream(self._device))
        self._begun.append(event)
        if len(self._begun) > _AHEAD:
            self._begun.popleft().synchronize()
