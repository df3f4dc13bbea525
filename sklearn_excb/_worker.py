"""One of the processes of a fit on several devices: ``python -m sklearn_excb._worker FOLDER``."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sklearn_excb.exceptions import RankError
from sklearn_excb.job_files import read_job, write_job
from sklearn_excb.joining import join
from sklearn_excb.launching import ERROR, JOB, PROCESS, RESULT, WARNING, Job


def main(folder: Path) -> int:
    """Do what the job says; the first process writes what was learned, and what it warns of."""
    rank = int(os.environ["RANK"])
    (folder / PROCESS.format(rank)).write_text(str(os.getpid()))
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
    sys.exit(main(Path(sys.argv[1])))
