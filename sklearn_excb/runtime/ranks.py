"""The processes that fit together, and what they say to each other.

Each holds all networks and a share of every batch; whatever one knows and the others need is a sum,
and the sum is the same bits on all of them. Alone, everything here is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from sklearn_excb.exceptions import RankError

_SMALL = 2**18  # numbers; tensors of fewer travel together

T = TypeVar("T")
Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Ranks:
    """Where this process is among those that fit together.

    Attributes
    ----------
    rank : int
        From 0.
    count : int
        How many there are.
    host : ProcessGroup or None
        For what lies in memory of the CPU.
    device_group : ProcessGroup or None
        For what lies on the devices.
    """

    rank: int = 0
    count: int = 1
    host: Any = None
    device_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this one speaks for all: writes states, shows progress."""
        return self.rank == 0

    def span(self, n: int) -> slice:
        """Return this one's share of n things, next to each other; no two differ by more than 1."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def fewest(self, n: int) -> int:
        """Least share of n things."""
        return n // self.count

    def most(self, n: int) -> int:
        """Largest share of n things."""
        return -(-n // self.count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by the sum of all ranks' own."""
        if self.count > 1:
            with _as_rank_error():
                dist.all_reduce(tensor, group=self._group(tensor))
        return tensor

    def sum_array(self, array: Array) -> Array:
        """Replace an array by the sum of all ranks' own."""
        if self.count > 1:
            self.sum_(torch.from_numpy(array))
        return array

    def sum_each(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the sum of all ranks' own; small ones travel together."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() < _SMALL:
                kinds.setdefault(tensor.dtype, []).append(tensor)
            else:
                self.sum_(tensor)
        for small in kinds.values():
            together = self.sum_(torch.cat([tensor.flatten() for tensor in small]))
            parts = together.split([tensor.numel() for tensor in small])
            for tensor, part in zip(small, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))

    def concatenate_spans(self, part: Tensor, n: int, *, dim: int = 0) -> Tensor:
        """Put together n rows of which each rank has its :meth:`span`."""
        if self.count == 1:
            return part
        mine = self.span(n)
        return self._put_together(part, mine.start, n, dim)

    def concatenate(self, part: Tensor, *, dim: int = 0) -> Tensor:
        """Put together the rows of all ranks, however many each of them has."""
        if self.count == 1:
            return part
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = part.shape[dim]
        starts = self.sum_(lengths).cumsum(0).tolist()
        return self._put_together(part, starts[self.rank] - part.shape[dim], starts[-1], dim)

    def placed(self, part: Array, places: npt.NDArray[np.int64], n: int) -> Array:
        """Put together an array of n rows of which each rank has some, at their places."""
        whole = np.zeros((n, *part.shape[1:]), part.dtype)
        whole[places] = part
        return self.sum_array(whole)  # type: ignore[return-value]

    def any(self, *flags: bool) -> list[bool]:
        """Whether any rank says so, of each flag."""
        if self.count == 1:
            return list(flags)
        said = torch.tensor(flags, dtype=torch.int32)
        return [bool(n) for n in self.sum_(said)]

    def objects(self, mine: T) -> list[T]:
        """What each rank has, by rank; it is pickled."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        with _as_rank_error():
            dist.all_gather_object(found, mine, group=self.host)
        return found

    def broadcast(self, value: T) -> T:
        """What the first rank has; it is pickled."""
        if self.count == 1:
            return value
        said = [value if self.first else None]
        with _as_rank_error():
            dist.broadcast_object_list(
                said, src=dist.get_global_rank(self.host, 0), group=self.host
            )
        return said[0]  # type: ignore[return-value]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the first rank's."""
        if self.count == 1:
            return
        for tensor in tensors:
            group = self._group(tensor)
            with _as_rank_error():
                dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on all ranks what the body raises on one, once all have been through it."""
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.count == 1:
                raise
            error = raised
        if self.count > 1:
            self.check(error)

    def check(self, error: Exception | None) -> None:
        """Raise if any rank has an error: its own there, a RankError on the others."""
        if self.any(error is not None)[0]:
            self.fail(error)

    def fail(self, error: Exception | None) -> NoReturn:
        """Raise the errors of the ranks, of which there is one: as :meth:`check` does."""
        said = self.objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank, reason = next((rank, text) for rank, text in enumerate(said) if text is not None)
        raise RankError(f"The fit ends, as rank {rank} of {self.count} has failed. {reason}")

    def in_step(self, items: Iterable[T]) -> Iterator[T]:
        """Yield each rank's own items, as many on all; an error of one is raised on all."""
        mine = iter(items)
        while True:
            item = []
            with self.together():
                item.extend(islice(mine, 1))
            if not item:
                return
            yield item[0]

    def agree(self, what: T, differences: Callable[[T, T], list[str]]) -> None:
        """Make sure that all are at the same fit.

        Parameters
        ----------
        what : object
            What it is a fit of; it is pickled.
        differences : callable
            Says in words how that of two ranks differs.

        Raises
        ------
        RankError
            If it does, on all of them.
        """
        first, *others = self.objects(what)
        for rank, other in enumerate(others, 1):
            if found := differences(first, other):
                raise RankError(
                    f"Rank {rank} is not at the same fit as rank 0. From rank 0 to it: "
                    f"{'; '.join(found)}. All processes have to call fit with the same data and "
                    "parameters."
                )

    def _put_together(self, part: Tensor, start: int, n: int, dim: int) -> Tensor:
        shape = list(part.shape)
        shape[dim] = n
        whole = part.new_zeros(shape)
        whole.narrow(dim, start, part.shape[dim]).copy_(part)
        return self.sum_(whole)

    def _group(self, tensor: Tensor) -> Any:
        return self.host if tensor.device.type == "cpu" else self.device_group


@contextmanager
def _as_rank_error() -> Iterator[None]:
    """Say what it means that a message was not answered."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            "Another process of the fit has ended or no longer answers; what happened to it is in "
            f"its own output. With checkpoint_dir, the same call goes on from there. ({error})"
        ) from error


ALONE = Ranks()
