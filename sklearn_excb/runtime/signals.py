"""Signals as requests: a run that is asked to stop does so between two steps, after saving."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SignalRequests:
    """Pending requests of signals.

    Attributes
    ----------
    stop : bool
        Whether the user pressed Ctrl-C (SIGINT).
    save : bool
        Whether the process will be ended (SIGTERM, as before a pre-emption).
    """

    def __init__(self) -> None:
        self.stop = False
        self.save = False
        self._before: dict[int, object] = {}

    def pass_on(self) -> None:
        """Run the original action of SIGTERM now, and return if it does not end the process."""
        self.save = False
        with _handlers({signal.SIGTERM: self._before[signal.SIGTERM]}):
            signal.raise_signal(signal.SIGTERM)

    def _take(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.stop:  # a second Ctrl-C takes effect at once
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self.stop = True
        else:
            self.save = True  # a second SIGTERM must not interrupt the save that the first requests


@contextmanager
def deferred_signals(*, saves: bool) -> Iterator[SignalRequests]:
    """Turn Ctrl-C and, with ``saves``, SIGTERM into requests while the body runs.

    A second Ctrl-C takes effect at once. Signals keep their original action outside of the main
    thread, and Ctrl-C also keeps it if the caller has replaced Python's default handler. If a
    SIGTERM is still pending when the body ends, perhaps by an error, it then has its original
    action.
    """
    requests = SignalRequests()
    handlers: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            handlers[signal.SIGINT] = requests._take
        if saves and signal.getsignal(signal.SIGTERM) is not None:  # None: not set from Python
            handlers[signal.SIGTERM] = requests._take
    requests._before = {number: signal.getsignal(number) for number in handlers}
    try:
        with _handlers(handlers):
            yield requests
    finally:
        if requests.save:
            signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handlers(handlers: dict[int, object]) -> Iterator[None]:
    before = {number: signal.signal(number, on) for number, on in handlers.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
