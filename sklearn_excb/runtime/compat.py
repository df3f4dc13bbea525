"""Replacements for features that the oldest supported versions of other packages lack."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch


def _installed(package: str) -> tuple[int, ...]:
    """Return the numeric parts of a package's version."""
    parts = version(package).split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


_TORCH, _TIMM = _installed("torch"), _installed("timm")


def dimension(name: str) -> torch.export.Dim:
    """Return a dimension of any size for torch.export.

    Before torch 2.10, size 1 is a special case, and the dimension has size 2 or more.
    """
    return torch.export.Dim(name) if _TORCH >= (2, 10) else torch.export.Dim(name, min=2)


def launch_config(signals: str, **options: Any) -> tuple[Any, AbstractContextManager[None]]:
    """Configure torch's elastic agent to handle some signals and leave others alone.

    Parameters
    ----------
    signals : str
        Names of the signals to handle, separated by commas.
    **options
        Other arguments of LaunchConfig.

    Returns
    -------
    config : LaunchConfig
        Configuration of the agent.
    started : context manager
        Context in which the agent has to run.
    """
    from torch.distributed.launcher.api import LaunchConfig

    if _TORCH >= (2, 10):
        return LaunchConfig(**options, signals_to_handle=signals), nullcontext()
    return LaunchConfig(**options), _interrupt_handler_kept()


@contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Keep the handler of SIGINT, which the agent of torch before 2.10 replaces at its start."""
    from torch.distributed.elastic.multiprocessing.api import PContext

    start = PContext.start

    def started(self: Any) -> None:
        before = signal.getsignal(signal.SIGINT)
        start(self)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)

    PContext.start = started
    try:
        yield
    finally:
        PContext.start = start


def weightless() -> AbstractContextManager[Any]:
    """Return a context that builds timm's networks without drawing weights, from timm 1.0.21 on.

    The context selects the meta device. It does nothing with earlier versions of timm, whose ViTs
    read the value of a tensor while they are built.
    """
    return torch.device("meta") if _TIMM >= (1, 0, 21) else nullcontext()
