"""Start of one process per device of this machine, if no launcher has started processes.

The elastic agent of torch starts the processes by a command. This works from a script without a
``__main__`` guard, from standard input and from a notebook. The job is a file that all processes
map into memory, and its result comes back in another file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import PicklingError
from typing import Any, Protocol

import torch

from sklearn_excb.exceptions import RankError
from sklearn_excb.runtime.call_site import caller, warn_caller
from sklearn_excb.runtime.compat import launch_config
from sklearn_excb.runtime.job_files import read_job, write_job
from sklearn_excb.runtime.ranks import Ranks

JOB, RESULT, ERROR, PROCESS, WARNING = "job", "result", "error-{}", "process-{}", "warning-{:06d}"
INTERRUPTED = "interrupted"
_AGENT_SIGNALS = (signal.SIGTERM, signal.SIGABRT)  # from the agent to the other processes
_POLL_SECONDS = 0.5  # between two checks for warnings
_SIGNALS = "SIGTERM,SIGHUP,SIGQUIT"  # this module forwards Ctrl-C itself


class Job(Protocol):
    """Work that several processes share. It is pickled for them."""

    @property
    def device(self) -> str:
        """Kind of device. Each process gets one of this kind."""
        ...

    @property
    def n_threads(self) -> int:
        """Number of threads of each process."""
        ...

    def do(self, ranks: Ranks, device: torch.device) -> Any:
        """Do the work as one of the processes. The result of the first one comes back, pickled."""
        ...


def run_in_processes(n_processes: int, job: Job) -> Any:
    """Do a job in several processes of this machine, and return the first one's result.

    Raises
    ------
    Exception
        Any exception of one of the processes.
    RankError
        If a process ended without a result and without an exception.
    TypeError
        If the job cannot be sent to the processes.
    KeyboardInterrupt
        If Ctrl-C was pressed before there was a result.
    """
    with _deferred_signals() as later, tempfile.TemporaryDirectory(prefix="sklearn-excb-") as name:
        folder = Path(name)
        try:
            write_job(folder / JOB, job)
        except (TypeError, AttributeError, ValueError, RuntimeError, PicklingError) as error:
            raise TypeError(
                f"X, or a parameter, cannot be sent to the processes of devices={n_processes}: "
                f"{error}. Let the data set open files and connections at its first read, not in "
                "its constructor. Or start the script with torchrun, so that each process creates "
                "its own data set."
            ) from error
        with _warnings_passed_on(folder), _interrupts_passed_on(folder) as interrupted:
            failed = _run(folder, n_processes)
            later.extend(filter(None, [getattr(failed, "sigval", None)]))
        if (folder / RESULT).exists():
            return read_job(folder / RESULT)
        raise KeyboardInterrupt if interrupted else _first_error(folder, n_processes, failed)


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Raise at the end the signals to this process that the other processes have received."""
    came: list[int] = []
    try:
        yield came
    finally:
        for number in came:
            signal.raise_signal(number)


def _run(folder: Path, n_processes: int) -> Exception | None:
    """Run the processes to their end; return an exception if some have failed."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    config, started = launch_config(
        _SIGNALS,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a port that is free
        local_addr="localhost",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),  # removed with folder
    )
    try:
        with _inherited_path(), _quiet(), _preserved_handlers(), started:
            elastic_launch(config, sys.executable)(
                "-m", "sklearn_excb.runtime._worker", str(folder), str(os.getpid())
            )
    except (ChildFailedError, SignalException) as error:
        return error
    return None


def _first_error(folder: Path, n_processes: int, failed: Exception | None) -> Exception:
    """Return the original error of a process, rather than the RankErrors of the others."""
    files = (folder / ERROR.format(rank) for rank in range(n_processes))
    raised = [read_job(file) for file in files if file.exists()]
    raised.sort(key=lambda error: isinstance(error, RankError))
    if raised and not isinstance(raised[0], RankError):
        return raised[0]
    signals = {rank: -of.exitcode for rank, of in getattr(failed, "failures", {}).items()}
    signals = {rank: number for rank, number in signals.items() if number not in _AGENT_SIGNALS}
    ended = ""
    for rank, number in signals.items():
        ended = f" {signal.Signals(number).name} ended rank {rank}." if number > 0 else ""
        if number == signal.SIGKILL:
            ended += " The system sends it if memory is short: lower micro_batch or devices."
    error = RankError(
        f"A process of the fit on {n_processes} devices ended without a result.{ended} With "
        "checkpoint_dir, the same call resumes from the last checkpoint."
    )
    error.__cause__ = failed
    return error


@contextmanager
def _inherited_path() -> Iterator[None]:
    """Let new processes import from the same places as this one."""
    before: Mapping[str, str] = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the agent's log of a failed process, whose error is raised anyway."""
    log = logging.getLogger("torch.distributed.elastic")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _preserved_handlers() -> Iterator[None]:
    """Restore the signal handlers that the agent replaces."""
    numbers = [getattr(signal, name) for name in _SIGNALS.split(",")]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _interrupts_passed_on(folder: Path) -> Iterator[list[int]]:
    """Forward Ctrl-C to the processes, which the terminal does not do.

    Yields
    ------
    list of int
        One signal per press of Ctrl-C.
    """
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        (folder / INTERRUPTED).touch()  # for processes that have not started yet
        for file in folder.glob(PROCESS.format("*")):
            with suppress(ProcessLookupError, ValueError):  # ended, or still writes the file
                os.kill(int(file.read_text()), number)
        if len(came) > 2:  # the processes do not react
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield came
        return
    signal.signal(signal.SIGINT, pass_on)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _warnings_passed_on(folder: Path) -> Iterator[None]:
    """Issue the warnings of the first process here while it runs, since a run may take days.

    If filters turn warnings into errors, the first of these is raised at the end.
    """
    frame = caller()
    ended = threading.Event()
    raised: list[Warning] = []

    def pass_on() -> None:
        n_done, last = 0, False
        while not last:
            last = ended.wait(_POLL_SECONDS)
            while (file := folder / WARNING.format(n_done)).exists():
                message, category = read_job(file)
                n_done += 1
                try:
                    warn_caller(message, category, frame)
                except Warning as error:
                    raised.append(error)

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if raised:
        raise raised[0]
