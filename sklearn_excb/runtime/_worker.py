"""A process of a fit on several devices: python -m sklearn_excb.runtime._worker FOLDER PARENT."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sklearn_excb.exceptions import RankError
from sklearn_excb.runtime.job_files import read_job, write_job
from sklearn_excb.runtime.launch import ERROR, INTERRUPTED, JOB, PROCESS, RESULT, WARNING, Job
from sklearn_excb.runtime.rendezvous import join


def _end_after(parent: int, folder: Path) -> None:
    """End if the process that called fit is gone: as for SIGTERM, or in a minute all the same."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)  # nobody else is left to do so
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)


def main(folder: Path, parent: int) -> int:
    """Do what the job says; the first process writes what was learned, and what it warns of."""
    rank = int(os.environ["RANK"])
    (folder / PROCESS.format(rank)).write_text(str(os.getpid()))
    if (folder / INTERRUPTED).exists():
        return 130
    threading.Thread(target=_end_after, args=(parent, folder), daemon=True).start()
    number = count()

    def write_warning(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if rank == 0:
            write_job(folder / WARNING.format(next(number)), (str(message), category))

    try:
        job: Job = read_job(folder / JOB)
        torch.set_num_threads(job.n_threads)
        warnings.simplefilter("always")  # whoever called fit has filters of their own
        warnings.showwarning = write_warning
        learned = job.do(*join(job.device, "auto"))
        if rank == 0:
            write_job(folder / RESULT, learned)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not isinstance(error, RankError):
            error.add_note(f"In process {rank} of the fit:\n{traceback.format_exc()}")
        write_job(folder / ERROR.format(rank), error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
