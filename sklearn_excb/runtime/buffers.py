"""Reusable memory, because first access to new memory is slow and makes threads wait in turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class BufferPool:
    """Memory for one tensor of bytes at a time; each tensor overwrites the previous one."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def take(self, *shape: int) -> Tensor:
        """Return an uninitialised uint8 tensor of this shape, and invalidate the previous one."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = torch.empty(size, dtype=torch.uint8)
        return self._memory[:size].view(shape)
