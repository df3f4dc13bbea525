"""Communication between the distributed processes (ranks) of a fit.

Each rank holds all networks and its share of every batch. Ranks exchange numbers as sums, which are
equal to the bit on all ranks. For a single process, every operation here is the identity.
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

_SMALL = 2**18  # tensors with fewer elements are summed together

T = TypeVar("T")
Array = TypeVar("Array", bound=npt.NDArray[Any])


@dataclass(frozen=True)
class Ranks:
    """Position of this process among the ranks of a fit.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    count : int
        Number of processes.
    host : ProcessGroup or None
        Process group for tensors in CPU memory.
    device_group : ProcessGroup or None
        Process group for tensors on the devices.
    """

    rank: int = 0
    count: int = 1
    host: Any = None
    device_group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes checkpoints and shows progress for all."""
        return self.rank == 0

    def span(self, n: int) -> slice:
        """Return this rank's contiguous share of n items; shares differ by at most one item."""
        return slice(n * self.rank // self.count, n * (self.rank + 1) // self.count)

    def fewest(self, n: int) -> int:
        """Return the smallest share of n items."""
        return n // self.count

    def most(self, n: int) -> int:
        """Return the largest share of n items."""
        return -(-n // self.count)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all ranks, in place."""
        if self.count > 1:
            with _as_rank_error():
                dist.all_reduce(tensor, group=self._group(tensor))
        return tensor

    def sum_array(self, array: Array) -> Array:
        """Replace an array by its sum over all ranks, in place."""
        if self.count > 1:
            self.sum_(torch.from_numpy(array))
        return array

    def sum_each(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, and send small tensors together."""
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
        """Concatenate n rows of which each rank holds its :meth:`span`."""
        if self.count == 1:
            return part
        mine = self.span(n)
        return self._put_together(part, mine.start, n, dim)

    def concatenate(self, part: Tensor, *, dim: int = 0) -> Tensor:
        """Concatenate the rows of all ranks, which may hold different numbers of rows."""
        if self.count == 1:
            return part
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.rank] = part.shape[dim]
        starts = self.sum_(lengths).cumsum(0).tolist()
        return self._put_together(part, starts[self.rank] - part.shape[dim], starts[-1], dim)

    def placed(self, part: Array, places: npt.NDArray[np.int64], n: int) -> Array:
        """Assemble an array of n rows from the rows of each rank and their places."""
        whole = np.zeros((n, *part.shape[1:]), part.dtype)
        whole[places] = part
        return self.sum_array(whole)  # type: ignore[return-value]

    def any(self, *flags: bool) -> list[bool]:
        """Return, for each flag, whether it is set on any rank."""
        if self.count == 1:
            return list(flags)
        n_set = torch.tensor(flags, dtype=torch.int32)
        return [bool(n) for n in self.sum_(n_set)]

    def objects(self, mine: T) -> list[T]:
        """Gather the pickled objects of all ranks, ordered by rank."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        with _as_rank_error():
            dist.all_gather_object(found, mine, group=self.host)
        return found

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0, which is pickled and sent to all ranks."""
        if self.count == 1:
            return value
        sent = [value if self.first else None]
        with _as_rank_error():
            dist.broadcast_object_list(
                sent, src=dist.get_global_rank(self.host, 0), group=self.host
            )
        return sent[0]  # type: ignore[return-value]

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by the tensor of rank 0, in place."""
        if self.count == 1:
            return
        for tensor in tensors:
            group = self._group(tensor)
            with _as_rank_error():
                dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error on all ranks if the body fails on any, once all ranks have run it."""
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
        """Raise if any rank has an error: the error itself there, a RankError on the others."""
        if self.any(error is not None)[0]:
            self.fail(error)

    def fail(self, error: Exception | None) -> NoReturn:
        """Raise as :meth:`check` does, when at least one rank is known to have an error."""
        texts = self.objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank, reason = next((rank, text) for rank, text in enumerate(texts) if text is not None)
        raise RankError(f"The fit stopped because rank {rank} of {self.count} failed. {reason}")

    def zip_ranks(self, items: Iterable[T]) -> Iterator[T]:
        """Yield each rank's own items, equally many on all; an error on one is raised on all."""
        mine = iter(items)
        while True:
            item = []
            with self.together():
                item.extend(islice(mine, 1))
            if not item:
                return
            yield item[0]

    def agree(self, what: T, differences: Callable[[T, T], list[str]]) -> None:
        """Check that all ranks run the same fit.

        Parameters
        ----------
        what : object
            Description of the fit on this rank, which is pickled.
        differences : callable
            Function that describes in words how the objects of two ranks differ.

        Raises
        ------
        RankError
            If the objects of two ranks differ. All ranks raise it.
        """
        first, *others = self.objects(what)
        for rank, other in enumerate(others, 1):
            if found := differences(first, other):
                raise RankError(
                    f"Rank {rank} does not run the same fit as rank 0. From rank 0 to rank {rank}: "
                    f"{'; '.join(found)}. Call fit with the same data and parameters in all "
                    "processes."
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
    """Turn an error of torch.distributed into a RankError that explains it."""
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            "Another process of the fit has ended or no longer answers. Its own output says why. "
            f"With checkpoint_dir, the same call resumes from the last checkpoint. ({error})"
        ) from error


ALONE = Ranks()
