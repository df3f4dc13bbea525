"""Threads that read: each works alone, however many torch would start."""

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
    """What the built-in ``map`` does; in threads, all items are begun at once."""

    def __call__(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item], /
    ) -> Iterator[_Result]:
        """Results of a function of each item, in the order of the items."""
        ...


@contextmanager
def reader_threads(n_jobs: int, *, aside: bool = False) -> Iterator[Map]:
    """Give a map that runs in ``n_jobs`` threads; one alone only runs ``aside`` if it is asked."""
    if n_jobs == 1 and not aside:
        yield map
        return
    pool = ThreadPoolExecutor(n_jobs, "ExCB reads", initializer=_one_torch_thread)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def finished(begun: Iterable[Callable[[], _Result]], n_ahead: int) -> Iterator[_Result]:
    """Yield what each function gives, in order; ``n_ahead`` more have been taken by then.

    Taking one from the iterable begins its work, and calling it waits for that.
    """
    waiting: deque[Callable[[], _Result]] = deque()
    for finish in begun:
        waiting.append(finish)
        if len(waiting) > n_ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def read_ahead(read: Callable[[], _Result], n: int, n_ahead: int) -> Iterator[_Result]:
    """Yield what a function gives when it is called n times, by one thread that is so many ahead.

    Without any ahead, by the thread that asks. The other one is left to itself when nobody asks any
    more: a stream may never answer.
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
    """Keep torch from starting threads for this one: pools in every reading thread would fight.

    With two of them on two cores, images took twice as long as in one thread.
    """
    torch.get_num_threads()  # which torch sets once in a thread, when it is first asked
    _libraries().select(user_api="openmp").limit(limits=1)


@cache
def _libraries() -> ThreadpoolController:
    """Libraries with threads of their own; to find them takes 6 ms, each time."""
    return ThreadpoolController()
