"""Reader threads, in which torch starts no threads of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from queue import Queue
from threading import Event, Semaphore, Thread
from typing import Protocol, TypeVar

import torch
from threadpoolctl import ThreadpoolController

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Map(Protocol):
    """Function like the built-in ``map``; a threaded one submits all items at once."""

    def __call__(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item], /
    ) -> Iterator[_Result]:
        """Return the results of a function of each item, in the order of the items."""
        ...


@contextmanager
def reader_threads(n_jobs: int, *, aside: bool = False) -> Iterator[Map]:
    """Provide a map that runs in ``n_jobs`` threads.

    With ``n_jobs=1``, the map runs in the calling thread unless ``aside`` is set.
    """
    if n_jobs == 1 and not aside:
        yield map
        return
    pool = ThreadPoolExecutor(n_jobs, "ExCB reads", initializer=_one_torch_thread)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def finished(begun: Iterable[Callable[[], _Result]], n_ahead: int) -> Iterator[_Result]:
    """Yield the result of each function in order, with ``n_ahead`` later functions already taken.

    Taking a function from the iterable begins its work, and calling the function waits for the
    result.
    """
    waiting: deque[Callable[[], _Result]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > n_ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def read_ahead(read: Callable[[], _Result], n: int, n_ahead: int) -> Iterator[_Result]:
    """Yield the results of n calls of a function, made by a thread that is ``n_ahead`` calls ahead.

    With ``n_ahead=0``, the consuming thread makes the calls. If the consumer stops early, nothing
    waits for the reading thread to end, because a stream may never return.
    """
    if not n_ahead:
        yield from (read() for _ in range(n))
        return
    done: Queue[tuple[_Result | None, BaseException | None]] = Queue()
    room, left = Semaphore(n_ahead + 1), Event()

    def work() -> None:
        _one_torch_thread()
        for _ in range(n):
            room.acquire()
            if left.is_set():
                return
            try:
                done.put((read(), None))
            except BaseException as error:
                done.put((None, error))
                return

    Thread(target=work, name="ExCB reads ahead", daemon=True).start()
    try:
        for _ in range(n):
            result, error = done.get()
            if error is not None:
                raise error
            room.release()
            yield result  # type: ignore[misc]
    finally:
        left.set()
        room.release()


def _one_torch_thread() -> None:
    """Keep torch from starting threads for this thread, because the pools would compete for cores.

    With two reading threads on two cores, images took twice as long as in one thread.
    """
    torch.get_num_threads()  # the first call in a thread makes torch set the number
    _libraries().select(user_api="openmp").limit(limits=1)


@cache
def _libraries() -> ThreadpoolController:
    """Return the libraries that have threads of their own; cached, as finding them takes 6 ms."""
    return ThreadpoolController()
