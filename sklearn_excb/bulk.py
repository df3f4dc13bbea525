"""Results for large collections, written to one file chunk by chunk, so that a run can resume.

The file ``x.npy.json`` beside ``x.npy`` describes the samples and the estimator of the results.
While chunks are missing, ``x.npy.chunks`` has one byte per chunk, which says whether the chunk is
done. The rows of a chunk reach the disk before its byte does. After a kill, the same call therefore
resumes with the missing chunks. Processes need not know of each other, and their number may change.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from sklearn_excb.data.fingerprints import changes, source_fingerprint, tensor_fingerprint
from sklearn_excb.evaluation import output_files
from sklearn_excb.exceptions import DamagedFileError
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.runtime.rendezvous import Place, place_of
from sklearn_excb.storage.json_files import read_object
from sklearn_excb.storage.regular_files import open_regular

if TYPE_CHECKING:
    from sklearn_excb.estimator import ExCBEstimator

Of = Literal["transform", "predict"]

_MISSING, _DONE = b"\0", b"\1"
_SKIPPED = ".skipped.jsonl"
_SECONDS = 300.0  # timeout for another process to create the files


class BulkResults:
    """File of results that one or several processes fill chunk by chunk.

    Parameters
    ----------
    excb : ExCBEstimator
        Fitted estimator; it does not change.
    X : folder, archive, list, array or map-style data set
        Samples that can be indexed.
    path : str or path-like
        Path of the file, which should end in ".npy". An unfinished file of the same results is
        resumed.
    of : {"transform", "predict"}, default="transform"
        Kind of the results: embeddings (n_samples, d) of float32, of the kind that ``embedding``
        names, or labels (n_samples,) of int64.
    chunk : int, default=4096
        Number of samples per chunk. With a multiple of 256, results equal those of ``transform`` to
        the bit.

    Raises
    ------
    ValueError
        If ``chunk`` is not an integer above 0, if X can only be iterated, or if the file holds
        results of other samples, another estimator or another ``embedding``. The message names the
        difference.
    FileExistsError
        If the file exists without a description of its results.
    """

    def __init__(
        self,
        excb: ExCBEstimator,
        X: Any,
        path: str | os.PathLike[str],
        *,
        of: Of = "transform",
        chunk: int = 4096,
    ) -> None:
        if not isinstance(chunk, Integral) or chunk < 1:
            raise ValueError(f"chunk={chunk!r} cannot be used: it must be an integer >= 1.")
        self.path = output_files.as_path(path).absolute()
        self._excb = excb
        self._of: Of = of
        self._source = excb._open_indexed(X)
        n = len(self._source)
        self._chunk = chunk
        self._dtype = np.dtype(np.int64 if of == "predict" else np.float32)
        self._shape = (n,) if of == "predict" else (n, excb._n_features_out)
        self._about = {
            "of": of,
            "shape": list(self._shape),
            "chunk": chunk,
            "embedding": excb.embedding,
            "on_error": excb.on_error,
            "estimator": tensor_fingerprint(excb._fitted.teacher.state_dict()),
            "X": source_fingerprint(self._source),
        }
        self._begin()

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _begin(self) -> None:
        """Create the files, or check that existing files belong to the same results."""
        output_files.make_folder(self.path.parent)
        about = self._beside(".json")
        with output_files.naming(self.path), FileLock(self._beside(".lock"), timeout=_SECONDS):
            with suppress(FileNotFoundError):
                self._beside(_SKIPPED).stat()  # the longest name: raises an error if it is too long
            underway = self._beside(".chunks").exists()  # read first: the last process removes it
            if about.exists():
                done = self._check_same(about)
                if self.path.exists() and (underway or done):
                    return
            elif self.path.exists() and not underway:
                raise FileExistsError(
                    f"{self.path} exists, but there is no {about.name} that describes its "
                    "results. Choose another file, or remove this one."
                )
            with output_files.replacing(
                self._beside(".chunks")
            ) as beside:  # first, to mark the files that follow as unfinished
                beside.write_bytes(_MISSING * self.n_chunks)
            with output_files.replacing(self.path) as beside:
                np.lib.format.open_memmap(
                    beside, mode="w+", dtype=self._dtype, shape=self._shape
                ).flush()
            with output_files.replacing(about) as beside:
                beside.write_text(json.dumps(self._about))

    def _check_same(self, about: Path) -> bool:
        """Raise an error unless a description is that of these results; return if it says done."""
        choose = (
            f"Choose another file, or remove this one and the files named {self.path.name}.* "
            "beside it."
        )
        try:
            before = read_object(about)
        except DamagedFileError as error:
            raise DamagedFileError(f"{error} {choose}") from error
        done = before.pop("done", False)
        if found := _differences(before, self._about):
            raise ValueError(f"{self.path} holds other results: {'; '.join(found)}. {choose}")
        return done

    @property
    def n_chunks(self) -> int:
        """Number of chunks of all samples."""
        return -(-self._shape[0] // self._chunk)

    def missing(self) -> list[int]:
        """Return the chunks that no process has done yet.

        Returns
        -------
        list of int
            Numbers of the missing chunks, in [0, ``n_chunks``).
        """
        try:
            with open_regular(self._beside(".chunks")) as file:
                done = file.read()
        except FileNotFoundError:  # the process that did the last chunk removed it
            return []
        return [chunk for chunk in range(self.n_chunks) if done[chunk : chunk + 1] != _DONE]

    def do(self, chunk: int) -> None:
        """Compute the results of a chunk, write them, and mark the chunk as done.

        Parameters
        ----------
        chunk : int
            Number of the chunk, in [0, ``n_chunks``).
        """
        rows = np.arange(chunk * self._chunk, min((chunk + 1) * self._chunk, self._shape[0]))
        results, skipped = self._excb._results_of(self._source, rows, self._of)
        with output_files.naming(self.path):
            if skipped:
                with open(self._beside(_SKIPPED), "a") as file:
                    # every record begins a new line, so a line cut short by a kill spoils no other
                    file.write("".join(f"\n{json.dumps(image._asdict())}" for image in skipped))
            with open(self.path, "r+b") as file:
                file.seek(self._first_byte() + int(rows[0]) * results[:1].nbytes)
                file.write(np.ascontiguousarray(results, self._dtype).tobytes())
                _to_disk(file)
            with open(self._beside(".chunks"), "r+b") as file:
                file.seek(chunk)
                file.write(_DONE)
                _to_disk(file)

    def _first_byte(self) -> int:
        """Return the offset in the file at which the array begins."""
        return np.load(self.path, mmap_mode="r").offset

    def finish(self) -> bool:
        """Remove the auxiliary files, if no chunk is missing.

        Returns
        -------
        bool
            Whether all chunks are done.
        """
        if self.missing():
            return False
        with output_files.naming(self.path):
            if self._beside(_SKIPPED).exists():
                self._put_in_order(self._beside(_SKIPPED))
            with output_files.replacing(self._beside(".json")) as beside:
                beside.write_text(json.dumps(self._about | {"done": True}))
            self._beside(".chunks").unlink(missing_ok=True)
            self._beside(".lock").unlink(missing_ok=True)
        return True

    def _put_in_order(self, skipped: Path) -> None:
        """Keep one complete line per skipped image; a chunk done twice wrote some lines twice."""
        results = np.load(self.path, mmap_mode="r")
        lines = {}
        for line in skipped.read_text().splitlines():
            # the line is empty, was cut short, or is no record
            with suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):
                index = json.loads(line)["index"]
                result = results[index]
                left_out = result == -1 if self._of == "predict" else np.isnan(result)
                if left_out.all():  # False if a second attempt could read the image
                    lines[index] = line
        with output_files.replacing(skipped) as beside:
            beside.write_text("".join(f"{lines[index]}\n" for index in sorted(lines)))


def write_results(
    excb: ExCBEstimator,
    X: Any,
    path: str | os.PathLike[str],
    *,
    of: Of = "transform",
    chunk: int = 4096,
    verbose: bool = False,
) -> npt.NDArray[Any]:
    """Write the embeddings or labels of a large collection to one file; resume if interrupted.

    Under torchrun or srun, each process does its share of the chunks on its own GPU.

    Parameters
    ----------
    excb : ExCBEstimator
        Fitted estimator.
    X : array, tensor, list, path or data set
        Samples that can be indexed.
    path : str or path-like
        Path of the ``.npy`` file. The names of auxiliary files beside it begin with its name.
    of : {"transform", "predict"}, default="transform"
        Kind of the results: embeddings or labels.
    chunk : int, default=4096
        Number of samples that are written together. An interruption loses at most one chunk per
        process.
    verbose : bool, default=False
        Whether the first process shows a progress bar.

    Returns
    -------
    ndarray
        Read-only memory map of the file. While other processes still run, rows of their missing
        chunks are 0; see ``x.npy.chunks``.

    Raises
    ------
    ValueError, FileExistsError
        If the file or the parameters cannot be used; see :class:`BulkResults`.
    """
    place = place_of(os.environ) or Place(0, 1, 0, "")
    if torch.cuda.is_available() and place.count > 1:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    results = BulkResults(excb, X, path, of=of, chunk=chunk)
    mine = [number for number in results.missing() if number % place.count == place.rank]
    shown = verbose and place.rank == 0
    for number in progress_bar(mine, shown=shown, desc=f"ExCB: {of}", unit="chunk"):
        results.do(number)
    results.finish()
    return np.load(results.path, mmap_mode="r")


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describe in words how the descriptions of two results differ."""
    of_X = [f"of X, {text}" for text in changes(_facts(before), _facts(now))]
    others = changes(before | {"X": ""}, now | {"X": ""})
    return ["the estimator differs" if "estimator" in text else text for text in others] + of_X


def _facts(about: dict[str, Any]) -> dict[str, Any]:
    facts = about.get("X")
    return facts if isinstance(facts, dict) else {}
