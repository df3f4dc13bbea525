"""Counts of the bytes of living tensors, and networks of fake tensors to count them with."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Network = TypeVar("Network", bound=nn.Module)


class LiveTensors(TorchDispatchMode):
    """Counter of the bytes of tensors that are created inside, by kind, while they live.

    Torch's own ``MemTracker`` rejects frozen parameters, and networks called twice in a step.

    Parameters
    ----------
    kind : str
        Kind of the tensors that are created inside, unless :meth:`count` sets another one.

    Attributes
    ----------
    now : Counter
        Bytes of each kind.
    at_peak : dict of str to int
        Bytes of each kind when their sum was largest.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.now: Counter[str] = Counter()
        self.at_peak: dict[str, int] = {}
        self._born = kind
        self._kinds: weakref.WeakKeyDictionary[Any, list[str]] = weakref.WeakKeyDictionary()

    @property
    def peak(self) -> int:
        """Bytes of all kinds together at the peak."""
        return sum(self.at_peak.values())

    def count(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors under a kind from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage in self._kinds:
                self.now[self._kinds[storage][0]] -= storage.nbytes()
                self._kinds[storage][0] = kind
            else:
                known = self._kinds[storage] = [kind]
                weakref.finalize(storage, self._forget, storage.nbytes(), known)
            self.now[kind] += storage.nbytes()
        if self.now.total() > self.peak:
            self.at_peak = dict(self.now)

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        self.at_peak = {}

    def _forget(self, size: int, kind: list[str]) -> None:
        self.now[kind[0]] -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_iter(result) if isinstance(leaf, Tensor))
        self.count((t for t in tensors if t.untyped_storage() not in self._kinds), self._born)
        return result


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the tensors, and count shared memory once."""
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


@contextmanager
def fake(network: Network) -> Iterator[Network]:
    """Yield a copy of a network without data; all tensors made inside are fake as well."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {id(t): mode.from_tensor(t, static_shapes=True) for t in tensors_of(network)}
    copied = copy.deepcopy(network, fakes)
    with mode:
        yield copied
