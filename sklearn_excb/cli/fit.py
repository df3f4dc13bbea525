"""Subcommands that fit a folder of images, predict its clusters and export the model."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn_excb.cli import output
from sklearn_excb.cli.evaluation import load_run
from sklearn_excb.settings.recipes import RECIPES

_STOPPED = 130  # exit status of a program stopped by Ctrl-C


def add_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the subcommands of this module to a parser.

    Parameters
    ----------
    add : callable
        Adds a subcommand with a name and a line of help, and returns its parser.
    """
    fit = add("fit", "cluster a folder of images and save the estimator")
    fit.add_argument("folder", help="folder of images, with its subfolders, or a tar archive")
    fit.add_argument("--out", help="folder for the fitted estimator")
    fit.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    fit.add_argument(
        "--dry-run",
        action="store_true",
        help="run a few steps, print parameters, memory and duration of the fit, save nothing",
    )
    fit.add_argument("--devices", type=_number_or_auto, help="number of GPUs or processes to use")
    fit.add_argument("--recipe", help=f"named set of parameters: {', '.join(RECIPES)}")
    how_many = fit.add_mutually_exclusive_group()
    how_many.add_argument("--K", type=_number_or_auto, help='number of clusters, or "auto"')
    how_many.add_argument(
        "--kinds",
        dest="K",
        type=_number_or_auto,
        metavar="N",
        help="number of kinds of image that you expect: as many clusters, the same as --K N",
    )
    for name in ("epochs", "image-size", "batch-size", "micro-batch"):
        fit.add_argument(f"--{name}", type=_number_or_auto, help='a number or "auto"')
    fit.add_argument(
        "--backbone", help='"auto", "cnn", the name of a timm model, or torchvision:NAME'
    )
    start = fit.add_mutually_exclusive_group()
    start.add_argument(
        "--pretrained",
        nargs="?",
        const=True,
        metavar="FILE",
        help="start from pretrained weights: of this file or, without a file (put the option after "
        "the folder), those that timm or torchvision has for the backbone",
    )
    start.add_argument(
        "--weights", dest="pretrained", metavar="FILE", help="the same as --pretrained FILE"
    )
    fit.add_argument(
        "--freeze-backbone",
        action="store_const",
        const=True,
        help="keep the weights of the backbone fixed and train only the head",
    )
    fit.add_argument("--device", help='"auto", "cpu", "cuda", "mps"')
    fit.add_argument("--seed", type=int, dest="random_state", help="seed of all random draws")
    fit.add_argument(
        "--checkpoint-dir",
        help="folder for checkpoints; the same command resumes from the last one",
    )
    fit.add_argument("--quiet", action="store_true", help="no progress bar")

    predict = add("predict", "assign images to the clusters of a fit")
    predict.add_argument("run", help="folder that fit wrote")
    predict.add_argument("folder", help="folder of images, with its subfolders, or a tar archive")
    predict.add_argument("--n-groups", type=int, help="number of groups to merge the clusters into")
    predict.add_argument("--n-clusters", type=int, help=argparse.SUPPRESS)  # the old name
    predict.add_argument("--device", help='"auto", "cpu", "cuda", "mps"')
    predict.add_argument(
        "--csv", help="file for the table path,label (default: standard output); in UTF-8"
    )

    export = add("export", "export a fit to files that can be used without sklearn_excb")
    export.add_argument("run", help="folder that fit wrote")
    export.add_argument("--onnx", help="file for the ONNX model, for example clusters.onnx")
    export.add_argument(
        "--embedding",
        choices=["projection", "backbone", "similarity"],
        help="embedding that the ONNX model returns (default: the one that the fit is set to)",
    )
    export.add_argument(
        "--dtype",
        choices=["float32", "uint8", "float64"],
        help="dtype of the input of the ONNX model (default: float32)",
    )
    export.add_argument(
        "--backbone", help="file for the weights of the backbone, for example backbone.safetensors"
    )

    for command in (fit, predict):
        command.add_argument(
            "--on-error",
            choices=["raise", "skip"],
            help="stop at an image that cannot be used, or skip it",
        )


def _number_or_auto(text: str) -> int | str:
    if text != "auto" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is neither a whole number nor "auto"')
    return text if text == "auto" else int(text)


def _fit(arguments: argparse.Namespace) -> int:
    from sklearn_excb import ExCBEstimator
    from sklearn_excb.evaluation import output_files
    from sklearn_excb.saving.saved_estimator import is_saved
    from sklearn_excb.storage.checkpoint_folder import has_checkpoints

    names = (
        *("K", "epochs", "image_size", "batch_size", "micro_batch"),
        *(
            "backbone",
            "pretrained",
            "freeze_backbone",
            "device",
            "devices",
            "random_state",
            "on_error",
            "checkpoint_dir",
        ),
    )
    given: dict[str, Any] = {
        name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None
    }
    given["verbose"] = 0 if arguments.quiet else 1
    folder = arguments.out or ""
    if not folder and not arguments.dry_run:
        raise ValueError("Add --out FOLDER to save the fitted estimator, or --dry-run.")
    output.check_printable()
    for each in filter(None, (folder, arguments.checkpoint_dir)):
        output_files.check_folder(each)
    # with checkpoints the same command resumes, and checkpoints of another run are refused
    goes_on = arguments.checkpoint_dir and has_checkpoints(arguments.checkpoint_dir)
    may_replace = arguments.overwrite or goes_on or arguments.dry_run
    if not may_replace and is_saved(folder):
        raise FileExistsError(
            f"{folder} already holds a fitted estimator. Choose another folder, or add "
            "--overwrite to replace it."
        )
    if arguments.recipe:
        estimator = ExCBEstimator.from_recipe(arguments.recipe, **given)
    else:
        estimator = ExCBEstimator(**given)
    if arguments.dry_run:
        output.tell(f"{estimator.dry_run(arguments.folder)}\n")
        return 0
    stopped = ""
    try:
        estimator.fit(arguments.folder)
    except KeyboardInterrupt as interruption:
        if not hasattr(estimator, "labels_"):
            raise
        stopped = str(interruption)
    estimator.save(folder)
    summary = {
        "images": len(estimator.labels_),
        "skipped": len(estimator.skipped_),
        "ignored": len(getattr(estimator, "ignored_files_", ())),
        "clusters": estimator.resolved_params_["K"],
        "empty_fraction": float((estimator.relative_cluster_sizes_ == 0).mean()),
        "largest_relative_size": float(estimator.relative_cluster_sizes_.max()),
        "saved": folder,
    }
    if stopped:
        output.complain(stopped)
    output.write_json(summary, "-")
    return _STOPPED if stopped else 0


def _predict(arguments: argparse.Namespace) -> int:
    from sklearn_excb.data.open_source import open_source
    from sklearn_excb.evaluation import output_files

    if arguments.csv:
        output_files.check_folder(Path(arguments.csv).parent)
    else:
        output.check_printable()
    estimator = load_run(arguments)
    paths = open_source(arguments.folder, on_error=estimator.on_error).names
    assert paths is not None
    labels = estimator.predict(
        arguments.folder, n_groups=arguments.n_groups, n_clusters=arguments.n_clusters
    )
    table = [(path, int(label)) for path, label in zip(paths, labels, strict=True)]
    if arguments.csv:
        output_files.make_folder(Path(arguments.csv).parent)
    output.write_table([("path", "label"), *table], arguments.csv)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from sklearn_excb import ExCBEstimator
    from sklearn_excb.evaluation import output_files

    files = [file for file in (arguments.onnx, arguments.backbone) if file]
    if not files:
        raise ValueError("There is nothing to write. Add --onnx FILE or --backbone FILE.")
    if not arguments.onnx and (arguments.embedding or arguments.dtype):
        raise ValueError("--embedding and --dtype need an ONNX file. Add --onnx FILE.")
    for file in files:
        output_files.check_writable(file)
    estimator = ExCBEstimator.load(arguments.run)
    if arguments.embedding:
        estimator.set_params(embedding=arguments.embedding)
    if arguments.backbone:
        estimator.export_backbone(arguments.backbone)
    if arguments.onnx:
        estimator.export_onnx(arguments.onnx, dtype=arguments.dtype or "float32")
    return 0


COMMANDS = {"fit": _fit, "predict": _predict, "export": _export}
