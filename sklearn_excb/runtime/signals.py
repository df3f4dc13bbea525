"""Signals as wishes: a run that is asked to stop does so between two steps, its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SignalRequests:
    """Signals that came and have not been answered.

    Attributes
    ----------
    stop : bool
        Ctrl-C was pressed (SIGINT).
    save : bool
        The process will be ended (SIGTERM, as before a pre-emption).
    """

    def __init__(self) -> None:
        self.stop = False
        self.save = False
        self._before: dict[int, object] = {}

    def pass_on(self) -> None:
        """Let SIGTERM do now what it would have done without us; return if that was nothing."""
        self.save = False
        with _handlers({signal.SIGTERM: self._before[signal.SIGTERM]}):
            signal.raise_signal(signal.SIGTERM)

    def _take(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.stop:  # for the second time: at once
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self.stop = True
        else:
            self.save = True  # again, perhaps: one that came twice must not end what it asked for


@contextmanager
def deferred_signals(*, saves: bool) -> Iterator[SignalRequests]:
    """Take Ctrl-C, and SIGTERM if something is there to save, as wishes while the body runs.

    A second Ctrl-C does at once what it would have done without us, and so do all signals outside
    of the main thread, and Ctrl-C where the caller has replaced Python's way with it. A SIGTERM
    that nobody has answered when the body ends, by an error perhaps, does then what it would have
    done.
    """
    wishes = SignalRequests()
    ours: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            ours[signal.SIGINT] = wishes._take
        if saves and signal.getsignal(signal.SIGTERM) is not None:  # None: not one of Python's
            ours[signal.SIGTERM] = wishes._take
    wishes._before = {number: signal.getsignal(number) for number in ours}
    try:
        with _handlers(ours):
            yield wishes
    finally:
        if wishes.save:
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handlers(handlers: dict[int, object]) -> Iterator[None]:
    before = {number: signal.signal(number, on) for number, on in handlers.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
