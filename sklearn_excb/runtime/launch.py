"""Start a process for each of several devices of this machine, where no launcher has.

torch's elastic agent starts the processes by a command. This works from a script without a
``__main__`` guard, from standard input and from a notebook. The job lies in a file that all
processes map into memory, and its result comes back in another file.
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
_OF_THE_AGENT = (signal.SIGTERM, signal.SIGABRT)  # ends of those that were not the cause
_PROCESSES_A_CORE, _FEWEST_PROCESSES = 4, 8  # processes that a CPU may be asked for
_LOOKS = 0.5  # seconds between two looks for warnings
_SIGNALS = "SIGTERM,SIGHUP,SIGQUIT"  # Ctrl-C is passed on from here


class Job(Protocol):
    """Work that several processes share; it is pickled for them."""

    @property
    def device(self) -> str:
        """Kind of device. Each process gets one of this kind."""
        ...

    @property
    def n_threads(self) -> int:
        """Number of threads of each process."""
        ...

    def do(self, ranks: Ranks, device: torch.device) -> Any:
        """Do the work as one of the processes; the first one's result comes back, pickled."""
        ...


def number_of_devices(devices: int | str, device: torch.device) -> int:
    """Processes that a fit takes; "auto" is one a GPU, unless one of them was named.

    Raises
    ------
    ValueError
        If there are not as many GPUs, or far fewer CPU cores.
    """
    if device.type == "cuda" and device.index is None:
        there = torch.cuda.device_count()
        if devices == "auto":
            return there
        if int(devices) > there:
            raise ValueError(
                f"devices={devices}, but this machine has {there} GPUs. Lower it, or leave "
                'devices="auto" to use all.'
            )
    elif devices != "auto" and int(devices) > 1 and device.type != "cpu":
        raise ValueError(
            f"devices={devices}, but device={str(device)!r} is one. Leave "
            'devices="auto", or name no number, as in device="cuda".'
        )
    elif devices != "auto" and device.type == "cpu":
        cores = os.cpu_count() or 1
        most = max(_FEWEST_PROCESSES, cores * _PROCESSES_A_CORE)
        if int(devices) > most:
            raise ValueError(
                f"devices={devices}, but this machine has {cores} CPU cores, too few for more than "
                f'{most} processes. Lower it, or leave devices="auto": one process uses all cores.'
            )
    return 1 if devices == "auto" else int(devices)


def run_in_processes(n_processes: int, job: Job) -> Any:
    """Do a job in several processes of this machine, and return the first one's result.

    Raises
    ------
    Exception
        Whatever one of the processes raised.
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
                f"{error}. Let a data set open files and connections where it first reads, not "
                "where it is made; or start the script with torchrun: then each process makes its "
                "own."
            ) from error
        with _warnings_passed_on(folder), _interrupts_passed_on(folder) as interrupted:
            failed = _run(folder, n_processes)
            later.extend(filter(None, [getattr(failed, "sigval", None)]))
        if (folder / RESULT).exists():
            return read_job(folder / RESULT)
        raise KeyboardInterrupt if interrupted else _first_error(folder, n_processes, failed)


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Do at the end what signals to this process ask, which the others have been told of."""
    came: list[int] = []
    try:
        yield came
    finally:
        for number in came:
            signal.raise_signal(number)


def _run(folder: Path, n_processes: int) -> Exception | None:
    """Run the processes to their end, by which they may have failed."""
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
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs")),  # or they would stay
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
    """What one of the processes has raised, rather than what the others made of its end."""
    files = (folder / ERROR.format(rank) for rank in range(n_processes))
    raised = [read_job(file) for file in files if file.exists()]
    raised.sort(key=lambda error: isinstance(error, RankError))
    if raised and not isinstance(raised[0], RankError):
        return raised[0]
    signals = {rank: -of.exitcode for rank, of in getattr(failed, "failures", {}).items()}
    signals = {rank: number for rank, number in signals.items() if number not in _OF_THE_AGENT}
    ended = ""
    for rank, number in signals.items():
        ended = f" Rank {rank} was ended by {signal.Signals(number).name}." if number > 0 else ""
        if number == signal.SIGKILL:
            ended += " The system does so where memory is short: lower micro_batch or devices."
    error = RankError(
        f"A process of the fit on {n_processes} devices has ended without a result.{ended} With "
        "checkpoint_dir, the same call goes on from the last state."
    )
    error.__cause__ = failed
    return error


@contextmanager
def _inherited_path() -> Iterator[None]:
    """Have new processes import from where this one does."""
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
    """Keep to ourselves what the agent logs of a child that has failed: it is raised."""
    log = logging.getLogger("torch.distributed.elastic")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _preserved_handlers() -> Iterator[None]:
    """Put back the handlers of signals that the agent replaces."""
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
    """Pass Ctrl-C on to the processes, which the terminal does not.

    Yields
    ------
    list of int
        A signal each time it was pressed.
    """
    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        (folder / INTERRUPTED).touch()  # for those that are not yet there to be told
        for file in folder.glob(PROCESS.format("*")):
            with suppress(ProcessLookupError, ValueError):  # has ended, or is only just writing it
                os.kill(int(file.read_text()), number)
        if len(came) > 2:  # they do not listen
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
    """Give the warnings of the first process as they come, as ours: a run may go on for days.

    Where they are errors, the first of them is raised at the end.
    """
    frame = caller()
    ended = threading.Event()
    raised: list[Warning] = []

    def pass_on() -> None:
        n_done, last = 0, False
        while not last:
            last = ended.wait(_LOOKS)
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
