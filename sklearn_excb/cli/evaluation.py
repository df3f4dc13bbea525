"""The commands that use fitted estimators: embed, evaluate, report, compare."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sklearn_excb.cli import output

Add = Callable[[str, str], argparse.ArgumentParser]


def add_commands(add: Add) -> None:
    """Add the parsers of the commands.

    Parameters
    ----------
    add : callable
        Function that takes the name and the help text of a command and returns its parser.
    """
    embed = add("embed", "write the embeddings of images as a .npy file")
    _add_run_and_folder(embed)
    embed.add_argument("-o", "--out", required=True, help="file for the array (n, d), float32")
    embed.add_argument(
        "--embedding",
        choices=["projection", "backbone", "similarity"],
        default="projection",
        help="embedding to write (default: projection)",
    )
    embed.add_argument("--names", help="CSV file for the paths of the images, in row order")

    report = add("report", "write an HTML report: a map, all clusters, odd images")
    _add_run_and_folder(report)
    report.add_argument("-o", "--out", required=True, help="HTML file, for example report.html")
    report.add_argument("--title", help="heading of the page (default: the name of the folder)")
    report.add_argument(
        "--max-images", type=int, default=10_000, help="maximum number of images on the map"
    )
    report.add_argument(
        "--classes", action="store_true", help="use the folder of each image as its class"
    )
    report.add_argument(
        "--json",
        help='file for the summary and the names of outliers and near-duplicates, "-" for standard '
        "output",
    )
    report.add_argument(
        "--no-baseline", action="store_true", help="leave out the comparison with k-means"
    )

    evaluate = add("evaluate", "score clusters and embeddings; the folder of an image is its class")
    evaluate.add_argument("run", help="folder that fit wrote")
    evaluate.add_argument("--train", required=True, help="folder with one subfolder per class")
    evaluate.add_argument("--test", help="folder of held-out images, in the same form")
    evaluate.add_argument("--json", help='file for the scores, "-" for standard output')
    _add_settings(evaluate)

    compare = add("compare", "compare the clusters of several fits")
    compare.add_argument("runs", nargs="+", help="folders that fit wrote")
    compare.add_argument(
        "-o", "--out", help="file for a plot of the cluster sizes, for example sizes.png"
    )
    compare.add_argument("--json", help='file for the table, "-" for standard output')


def _add_run_and_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder that fit wrote")
    parser.add_argument("folder", help="folder of images, with its subfolders, or a tar archive")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help='"auto", "cpu", "cuda", "mps"')
    parser.add_argument(
        "--on-error",
        choices=["raise", "skip"],
        help="stop at an image that cannot be used, or skip it",
    )


def load_run(arguments: argparse.Namespace) -> Any:
    """Load the estimator and apply the options of the command line."""
    from sklearn_excb import ExCBEstimator

    estimator = ExCBEstimator.load(arguments.run)
    given = {name: getattr(arguments, name) for name in ("device", "on_error")}
    return estimator.set_params(**{name: v for name, v in given.items() if v is not None})


def embed(arguments: argparse.Namespace) -> int:
    """Write embeddings to a memory-mapped file and rename it when it is complete."""
    import numpy as np

    from sklearn_excb.data.open_source import open_source
    from sklearn_excb.evaluation import output_files

    out = output_files.check_writable(arguments.out)
    if arguments.names:
        output_files.check_writable(arguments.names)
    if arguments.names and Path(arguments.names).resolve() == out:
        raise ValueError("--out and --names are the same file. Choose two different files.")
    estimator = load_run(arguments).set_params(embedding=arguments.embedding)
    names = open_source(arguments.folder, on_error=estimator.on_error).names or []
    shape = len(names), len(estimator.get_feature_names_out())
    with output_files.replacing(out) as beside:
        rows = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=shape)
        output.reserve(beside)
        estimator.transform(arguments.folder, out=rows)
        rows.flush()
    if arguments.names:
        output.write_table([("path",), *((name,) for name in names)], arguments.names)
    return 0


def report(arguments: argparse.Namespace) -> int:
    """Write the report and print a summary of it."""
    from sklearn_excb import reporting
    from sklearn_excb.data.open_source import open_source
    from sklearn_excb.evaluation import output_files

    output.check_printable()
    if arguments.json and arguments.json != "-":
        output_files.check_writable(arguments.json)
    estimator = load_run(arguments)
    y = None
    if arguments.classes:
        y = reporting.folder_classes(arguments.folder, estimator.on_error)
    names = None
    if arguments.json:
        names = open_source(arguments.folder, on_error=estimator.on_error).names
    summary = reporting.report(
        estimator,
        arguments.folder,
        arguments.out,
        y=y,
        baseline=not arguments.no_baseline,
        title=arguments.title,
        max_images=arguments.max_images,
    )
    told = {
        "report": str(summary.path),
        "megabytes": round(summary.n_bytes / 1e6, 1),
        "images": summary.n_images,
        "shown": summary.n_shown,
        "skipped": summary.n_skipped,
        "suspected_clusters": list(summary.suspects),
        "groups_of_duplicates": len(summary.duplicates),
    }
    if names is not None:
        named = {
            "outliers": [names[place] for place in summary.outliers],
            "duplicates": [[names[place] for place in group] for group in summary.duplicates],
        }
        output.write_json(told | named, arguments.json)
    if arguments.json != "-":
        output.write_json(told, "-")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Print a table of scores, and write them as JSON if ``--json`` is given."""
    from sklearn_excb import reporting
    from sklearn_excb.evaluation import output_files

    output.check_printable()
    if arguments.json and arguments.json != "-":
        output_files.check_writable(arguments.json)
    estimator = load_run(arguments)
    folders = [arguments.train, *([arguments.test] if arguments.test else [])]
    given: list[Any] = []
    for folder in folders:
        given += [folder, reporting.folder_classes(folder, estimator.on_error)]
    found = reporting.evaluate(estimator, *given)
    if arguments.json:
        output.write_json(found, arguments.json)
    if arguments.json != "-":
        lines = [f"{name:<36}{_written(value):>12}\n" for name, value in flattened(found)]
        output.tell("".join(lines))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Print a table of several fits, and plot the cluster sizes if ``--out`` is given."""
    from sklearn_excb import ExCBEstimator, reporting
    from sklearn_excb.evaluation import output_files

    output.check_printable()
    for file in (arguments.out, arguments.json):
        if file and file != "-":
            output_files.check_writable(file)
    rows, display = reporting.compare({run: ExCBEstimator.load(run) for run in arguments.runs})
    if arguments.out:
        figure: Any = display.plot().figure_
        kind = Path(arguments.out).suffix[1:] or "png"
        with output_files.replacing(output_files.check_writable(arguments.out)) as beside:
            figure.savefig(beside, format=kind, dpi=120)
    if arguments.json:
        output.write_json(rows, arguments.json)
    if arguments.json != "-":
        table = [list(rows[0]), *([_written(value) for value in row.values()] for row in rows)]
        widths = [max(len(line[place]) for line in table) for place in range(len(table[0]))]
        lines = []
        for first, *rest in table:
            cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([f"{first:<{widths[0]}}", *cells]) + "\n")
        output.tell("".join(lines))
    return 0


COMMANDS = {"embed": embed, "report": report, "evaluate": evaluate, "compare": compare}


def flattened(found: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Return the numbers of nested mappings, with the joined keys as names."""
    rows = []
    for name, value in found.items():
        whole = f"{before} {name}".strip().replace("_", " ")
        rows += flattened(value, whole) if isinstance(value, Mapping) else [(whole, value)]
    return rows


def _written(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
