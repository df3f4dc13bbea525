"""Process of a fit on several devices: python -m sklearn_excb.runtime._worker FOLDER PARENT."""

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
    """End this process when the one that called fit is gone: by SIGTERM, or a minute later."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)  # no other process removes it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)


def main(folder: Path, parent: int) -> int:
    """Do the job. The first process writes its result and its warnings to files."""
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
        warnings.simplefilter("always")  # the process that called fit filters them
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
