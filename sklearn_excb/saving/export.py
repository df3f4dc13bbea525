"""Export of a fitted estimator for use without this package: ONNX, or weights of the backbone."""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sklearn_excb.inference.fitted import Fitted
from sklearn_excb.networks.backbones import rebuilding
from sklearn_excb.networks.frozen import unfrozen
from sklearn_excb.runtime.compat import dimension
from sklearn_excb.saving.traceable import EndToEnd, StandardRows, WholeImages
from sklearn_excb.storage.tensor_files import write_safetensors
from sklearn_excb.training.teacher_outputs import Embedding
from sklearn_excb.views.row_views import RowRecipe, standardize
from sklearn_excb.views.whole_images import whole_images, whole_side

DTYPES = {"images": ("float32", "uint8"), "rows": ("float32", "float64")}
OUTPUTS = ("embedding", "cluster", "similarity")

_OPSET = 18  # the lowest version that the exporter writes without conversion
_LARGEST_FILE = 1_500_000_000  # bytes of weights; a protobuf message has at most 2 GiB
_TOLERANCE = 1e-3  # share of the largest number; other orders of float32 sums stay within 1e-4
_TRACED, _CHECKED = 2, 3  # numbers of samples; tracing could take a size of 1 for a constant


def export_onnx(
    fitted: Fitted, path: str | os.PathLike[str], *, embedding: Embedding, dtype: str
) -> None:
    """Write inference as an ONNX file, after a check that onnxruntime computes the same results.

    Parameters
    ----------
    fitted : Fitted
        Result of a fit; it does not change.
    path : str or path-like
        Path of the file. Weights of more than 1.5 GB go to a file beside it, ``path + ".data"``.
    embedding : {"projection", "backbone", "similarity"}
        Kind of the output "embedding".
    dtype : str
        Dtype of the input; see ``DTYPES``.

    Raises
    ------
    ImportError
        If the extra "onnx" is not installed.
    OSError
        If the file cannot be written.
    ValueError
        If ``dtype`` is not one of these, the path is not UTF-8, or the backbone cannot be exported.
    RuntimeError
        If onnxruntime and torch compute different results. Then nothing is written.
    """
    from sklearn_excb.evaluation import _optional, output_files

    kind = "rows" if isinstance(fitted.recipe, RowRecipe) else "images"
    if dtype not in DTYPES[kind]:
        allowed = " or ".join(map(repr, DTYPES[kind]))
        raise ValueError(f"dtype={dtype!r} cannot be used: for {kind} it must be {allowed}.")
    parts = [output_files.check_writable(path)]
    file = parts[0]
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"path={str(file)!r} is not UTF-8, and onnx takes no other path. Choose another file."
        ) from None
    for module in ("onnx", "onnxscript", "onnxruntime"):
        _optional.require(module, extra="onnx", purpose="Exporting to ONNX")
    network = _end_to_end(fitted, embedding)
    large = sum(tensor.nbytes for tensor in network.state_dict().values()) > _LARGEST_FILE
    if large:  # the data file is moved first, since the other file needs it
        parts.insert(0, output_files.check_writable(file.with_name(f"{file.name}.data")))

    program = _traced(network, _samples(fitted, _TRACED, dtype))
    said = {"K": fitted.settings.K, "embedding": embedding, "dtype": dtype}
    program.model.metadata_props.update(_metadata(fitted, said))
    # write to a temporary folder under the final name, since the file refers to its data file
    with (
        output_files.naming(file),
        tempfile.TemporaryDirectory(prefix=output_files.hidden(file), dir=file.parent) as folder,
    ):
        program.save(Path(folder, file.name), external_data=large)
        del program
        _check(Path(folder, file.name), network, fitted, dtype)
        for part in parts:
            with output_files.replacing(part) as beside:
                Path(folder, part.name).replace(beside)


def _end_to_end(fitted: Fitted, embedding: Embedding) -> EndToEnd:
    """Build the network from a copy of the teacher, whose own modes and device do not change."""
    recipe, teacher = fitted.recipe, copy.deepcopy(fitted.teacher).cpu().eval()
    prepare = StandardRows(recipe) if isinstance(recipe, RowRecipe) else WholeImages(recipe)
    return EndToEnd(prepare, teacher, embedding).eval().requires_grad_(False)


def _samples(fitted: Fitted, n: int, dtype: str) -> Tensor:
    """Draw random samples (n, ...) of the fitted kind; the size of images depends on n."""
    recipe, generator = fitted.recipe, torch.Generator().manual_seed(n)
    if isinstance(recipe, RowRecipe):
        rows = torch.randn(n, len(recipe.mean), generator=generator, dtype=torch.float64)
        return (rows * recipe.scale + torch.from_numpy(recipe.mean)).to(getattr(torch, dtype))
    side = whole_side(recipe)
    images = torch.rand(n, fitted.settings.n_channels, side + n, side * n, generator=generator)
    return (images * 255).to(torch.uint8) if dtype == "uint8" else images


def _traced(network: EndToEnd, samples: Tensor) -> Any:
    """Export a program for any number of samples, and for images of any size."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names = ("n",) if samples.ndim == 2 else ("n", None, "height", "width")
    sizes = {place: dimension(name) for place, name in enumerate(names) if name}
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (samples,),
                dynamo=True,
                verbose=False,
                opset_version=_OPSET,
                input_names=[_input_name(samples)],
                output_names=OUTPUTS,
                dynamic_shapes=(sizes,),
            )
    except Exception as error:  # of the exporter, or of the module itself
        cause, *_ = str(error.__cause__ or error).strip().splitlines() or [""]
        raise ValueError(
            f"The backbone, {type(network.backbone).__name__}, cannot be exported to ONNX: {cause} "
            "For torch.export, the operations of a module must not depend on the values of its "
            "input. export_backbone writes the weights alone."
        ) from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # the metadata contain paths of this machine
    return program


def _input_name(samples: Tensor) -> str:
    return "rows" if samples.ndim == 2 else "images"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress output and warnings of the exporter; its result is checked by its numbers."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def _check(file: Path, network: EndToEnd, fitted: Fitted, dtype: str) -> None:
    """Compare the results of onnxruntime on random samples with those of the library and torch.

    Raises
    ------
    RuntimeError
        If the results differ.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(file)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    samples = _samples(fitted, _CHECKED, dtype)
    embedding, cluster, similarity = session.run(OUTPUTS, {_input_name(samples): samples.numpy()})
    recipe = fitted.recipe
    if isinstance(recipe, RowRecipe):
        inputs = standardize(samples.numpy(), recipe)
    else:
        inputs = whole_images(samples, recipe)
    expected = [output.numpy() for output in network.outputs(inputs)]
    scores = expected[2] if network.gain is None else expected[2] * network.gain.numpy()
    second, first = np.partition(scores, -2, axis=1)[:, -2:].T
    sure = first - second > 2 * _TOLERANCE  # rounding decides between nearly equal clusters
    differences = {
        "embedding": _difference(embedding, expected[0]),
        "cluster": float((cluster != expected[1])[sure].any()),
        "similarity": _difference(similarity, expected[2]),
    }
    wrong = {name: by for name, by in differences.items() if not by <= _TOLERANCE}
    if wrong:
        raise RuntimeError(
            f"Nothing was written: in onnxruntime {onnxruntime.__version__}, the exported network "
            f"computes a different {' and '.join(wrong)}. The largest difference is "
            f"{max(wrong.values()):.1e} of the largest number. Try another version of onnxscript "
            "or onnxruntime."
        )


def _difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest number."""
    if found.shape != expected.shape:
        return float("nan")
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))


def export_backbone(fitted: Fitted, path: str | os.PathLike[str]) -> None:
    """Write the weights of the backbone as safetensors, with its architecture in the metadata.

    Parameters
    ----------
    fitted : Fitted
        Result of a fit; it does not change.
    path : str or path-like
        Path of the file.

    Raises
    ------
    OSError
        If the file cannot be written.
    ValueError
        If there is no backbone, as is the default for rows.
    """
    from sklearn_excb.evaluation import output_files

    settings, backbone = fitted.settings, unfrozen(fitted.teacher.backbone)
    if not settings.has_backbone:
        raise ValueError(
            "There is no backbone to write: rows are features already. Use export_onnx, which "
            "writes the whole network from a row to its embedding and cluster."
        )
    file = output_files.check_writable(path)
    how = rebuilding(
        settings.backbone,
        backbone,
        n_channels=settings.n_channels,
        image_size=settings.image_size or None,
    )
    # clones, since safetensors refuses tensors that share memory or are not contiguous
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in backbone.state_dict().items()
    }
    write_safetensors(file, state, _metadata(fitted, {"format": "pt", **how}))


def _metadata(fitted: Fitted, said: Mapping[str, Any]) -> dict[str, str]:
    """Build the metadata of a file: given values, the version, and the preparation of samples.

    Values other than strings are written as JSON.
    """
    recipe = fitted.recipe
    if isinstance(recipe, RowRecipe):
        preparation: dict[str, Any] = {"mean": recipe.mean.tolist(), "scale": recipe.scale}
    else:
        preparation = {
            "n_channels": fitted.settings.n_channels,
            "white": 1,
            "resize_short_side": whole_side(recipe),
            "interpolation": f"{recipe.whole_filter}, antialiased",
            "centre_crop": recipe.global_size,
            "mean": recipe.mean,
            "std": recipe.std,
        }
    said = {**said, "sklearn_excb": version("sklearn-excb"), "preparation": preparation}
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in said.items()}
