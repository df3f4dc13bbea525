"""Results for more samples than one run wants to take: one array in a file, a chunk at a time.

Beside ``x.npy`` lie ``x.npy.json``, what it is a result of, and, as long as rows are missing,
``x.npy.chunks``, a byte for each chunk that is there. A chunk's rows are on the disk before its
byte is: whatever is killed, the same call goes on with what is missing. Processes need not know
of each other, nor be as many as before.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from sklearn_excb.data.fingerprints import changes, source_fingerprint, tensor_fingerprint
from sklearn_excb.estimator import ExCBEstimator
from sklearn_excb.evaluation import output_files
from sklearn_excb.runtime.progress import progress_bar
from sklearn_excb.runtime.rendezvous import Place, place_of

Of = Literal["transform", "predict"]

_MISSING, _THERE = b"\0", b"\1"
_SECONDS = 300.0  # for another process to make the files


class BulkResults:
    """A file of results that is filled chunk by chunk, perhaps by several processes.

    Parameters
    ----------
    excb : ExCBEstimator
        Fitted; it is not changed.
    X : folder, archive, list, array or map-style data set
        What can be indexed.
    path : str or path-like
        The file, which should end in ".npy". It is made, or gone on with.
    of : {"transform", "predict"}, default="transform"
        Rows (n_samples, d) of float32, what ``embedding`` names, or labels (n_samples,) of int64.
    chunk : int, default=4096
        Samples between two states of the files; a multiple of 256 keeps results those of
        ``transform`` to the bit.

    Raises
    ------
    ValueError
        If ``chunk`` is no integer above 0, or X can only be iterated; or if the file is of other
        samples, another estimator or another ``embedding``, saying which.
    FileExistsError
        If the file is there and nothing says what it is a result of.
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
            raise ValueError(f"chunk={chunk!r} cannot be used: it must be an integer from 1 up.")
        self._excb = excb
        self._of: Of = of
        self._source = excb._open_indexed(X)
        n = len(self._source)
        self.path = Path(path).absolute()
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
        """Make the files, or see that they are of the same results."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        about = self._beside(".json")
        with FileLock(self._beside(".lock"), timeout=_SECONDS):
            underway = self._beside(".chunks").exists()  # asked first: it goes once all is done
            if about.exists():
                before = json.loads(about.read_text())
                done = before.pop("done", False)
                if found := _differences(before, self._about):
                    raise ValueError(
                        f"{self.path} holds other results: {'; '.join(found)}. Choose another "
                        "file, or remove it and those beside it."
                    )
                if self.path.exists() and (underway or done):
                    return
            elif self.path.exists() and not underway:
                raise FileExistsError(
                    f"{self.path} is there, and no {about.name} that says what it is a result of: "
                    "choose another file, or remove it."
                )
            with output_files.replacing(
                self._beside(".chunks")
            ) as beside:  # first: what follows is ours then
                beside.write_bytes(_MISSING * self.n_chunks)
            with output_files.replacing(self.path) as beside:
                np.lib.format.open_memmap(
                    beside, mode="w+", dtype=self._dtype, shape=self._shape
                ).flush()
            with output_files.replacing(about) as beside:
                beside.write_text(json.dumps(self._about))

    @property
    def n_chunks(self) -> int:
        """Chunks of all samples."""
        return -(-self._shape[0] // self._chunk)

    def missing(self) -> list[int]:
        """Chunks that nobody has done yet.

        Returns
        -------
        list of int
            Their numbers, in [0, ``n_chunks``).
        """
        try:
            done = self._beside(".chunks").read_bytes()
        except FileNotFoundError:  # the last one takes it away
            return []
        return [chunk for chunk in range(self.n_chunks) if done[chunk : chunk + 1] == _MISSING]

    def do(self, chunk: int) -> None:
        """Find the results of a chunk, write them, and say that they are there.

        Parameters
        ----------
        chunk : int
            Its number, in [0, ``n_chunks``).
        """
        rows = np.arange(chunk * self._chunk, min((chunk + 1) * self._chunk, self._shape[0]))
        results, skipped = self._excb._results_of(self._source, rows, self._of)
        if skipped:
            with open(self._beside(".skipped.jsonl"), "a") as file:
                # a line that a kill has torn ends where the next begins
                file.write("".join(f"\n{json.dumps(image._asdict())}" for image in skipped))
        with open(self.path, "r+b") as file:
            file.seek(self._first_byte() + int(rows[0]) * results[:1].nbytes)
            file.write(np.ascontiguousarray(results, self._dtype).tobytes())
            _to_disk(file)
        with open(self._beside(".chunks"), "r+b") as file:
            file.seek(chunk)
            file.write(_THERE)
            _to_disk(file)

    def _first_byte(self) -> int:
        """Place in the file at which the array begins."""
        return np.load(self.path, mmap_mode="r").offset

    def finish(self) -> bool:
        """Take away what is only needed on the way, if nothing is missing.

        Returns
        -------
        bool
            Whether nothing is.
        """
        if self.missing():
            return False
        if self._beside(".skipped.jsonl").exists():
            self._put_in_order(self._beside(".skipped.jsonl"))
        with output_files.replacing(self._beside(".json")) as beside:
            beside.write_text(json.dumps(self._about | {"done": True}))
        self._beside(".chunks").unlink(missing_ok=True)
        self._beside(".lock").unlink(missing_ok=True)
        return True

    def _put_in_order(self, skipped: Path) -> None:
        """Leave one whole line an image: a chunk that was broken off has written some twice."""
        results = np.load(self.path, mmap_mode="r")
        lines = {}
        for line in skipped.read_text().splitlines():
            with suppress(ValueError):  # torn, or empty
                index = json.loads(line)["index"]
                result = results[index]
                left_out = result == -1 if self._of == "predict" else np.isnan(result)
                if left_out.all():  # not so where a second try could read it
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
    """Write the embeddings or labels of a large collection to one file, from where it stopped.

    Under torchrun or srun each process does its share of the chunks, on its own GPU.

    Parameters
    ----------
    excb : ExCBEstimator
        Fitted.
    X : array, tensor, list, path or data set
        Anything that can be indexed.
    path : str or path-like
        Of the file, an ``.npy``; others with more at the end of their names lie beside it.
    of : {"transform", "predict"}, default="transform"
        Embeddings or labels.
    chunk : int, default=4096
        Samples that are written, or lost, together.
    verbose : bool, default=False
        Whether the first process shows a progress bar.

    Returns
    -------
    ndarray
        The file, mapped into memory, read-only. Where other processes are not through yet, rows
        of theirs are still 0: see ``x.npy.chunks``.

    Raises
    ------
    ValueError, FileExistsError
        As :class:`BulkResults`.
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
    """How two results differ in what they are of, in words."""
    of_X = [f"of X, {text}" for text in changes(before["X"], now["X"])]
    others = changes(before | {"X": ""}, now | {"X": ""})
    return ["the estimator is another" if "estimator" in text else text for text in others] + of_X
