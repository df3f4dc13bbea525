"""The command ``sklearn-excb``: its parser, and how it ends."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sklearn_excb.cli import evaluation, fit, output

_PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells report programs that this signal ends


class _Parser(argparse.ArgumentParser):
    """Parser that takes options by full name only: a later version may make a prefix ambiguous."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sklearn-excb", description="Cluster image collections evenly, without labels."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for family in (fit, evaluation):
        family.add_commands(
            lambda name, does: commands.add_parser(name, help=does, description=does)
        )
    return parser


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings of this package like error messages, without a line of source code."""
    before = warnings.formatwarning

    def written(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
        ours = category.__module__.startswith("sklearn_excb")
        return f"sklearn-excb: {message}\n" if ours else before(message, category, *place, **line)

    warnings.formatwarning = written
    try:
        yield
    finally:
        warnings.formatwarning = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Command-line arguments after the name of the command; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        Exit status: 0 after success, 2 after an error, which is printed to standard error, 130 if
        Ctrl-C stopped a training, 141 if the reader of standard output closed it early. After
        Ctrl-C the estimator is saved as trained so far.
    """
    output.hold_closed_streams()
    arguments = _parser().parse_args(argv)
    run = {**fit.COMMANDS, **evaluation.COMMANDS}[arguments.command]
    try:
        output.take_any_text()
        with _plain_warnings():
            return run(arguments)
    except BrokenPipeError:
        return _PIPE_CLOSED
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        output.complain(str(error))
        return 2
