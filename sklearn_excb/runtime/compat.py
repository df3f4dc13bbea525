"""What the oldest supported versions of other packages lack, each with the version that has it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch


def _installed(package: str) -> tuple[int, ...]:
    """Version of a package, as far as it is numbers."""
    parts = version(package).split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())


_TORCH, _TIMM = _installed("torch"), _installed("timm")


def dimension(name: str) -> torch.export.Dim:
    """Dimension of any size, for torch.export; before torch 2.10 size 1 is a case of its own."""
    return torch.export.Dim(name) if _TORCH >= (2, 10) else torch.export.Dim(name, min=2)


def launch_config(signals: str, **options: Any) -> tuple[Any, AbstractContextManager[None]]:
    """Configuration of torch's elastic agent that handles some signals and leaves others alone.

    Parameters
    ----------
    signals : str
        Names, with commas between them.
    **options
        Other arguments of LaunchConfig.

    Returns
    -------
    config : LaunchConfig
    started : context manager
        To be entered while the agent runs.
    """
    from torch.distributed.launcher.api import LaunchConfig

    if _TORCH >= (2, 10):
        return LaunchConfig(**options, signals_to_handle=signals), nullcontext()
    return LaunchConfig(**options), _interrupt_handler_kept()


@contextmanager
def _interrupt_handler_kept() -> Iterator[None]:
    """Keep the handler of SIGINT, which the agent of torch before 2.10 replaces when it starts."""
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
    """Build timm's networks without drawing their weights: on the meta device, from timm 1.0.21 on.

    ViTs of earlier versions ask for a value of a tensor while they are built.
    """
    return torch.device("meta") if _TIMM >= (1, 0, 21) else nullcontext()
