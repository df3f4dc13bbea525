"""Memory that is used again: new memory is slow to touch, and threads get it one by one."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class BufferPool:
    """Room for one tensor of bytes after another, each in the place of the one before."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def take(self, *shape: int) -> Tensor:
        """Give a uint8 tensor of this shape, with anything in it; the last one given is lost."""
        size = math.prod(shape)
        if len(self._room) < size:
            self._room = torch.empty(size, dtype=torch.uint8)
        return self._room[:size].view(shape)
