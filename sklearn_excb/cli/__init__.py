"""The command ``sklearn-excb``; each module defines some of its subcommands."""

from sklearn_excb.cli.commands import main

__all__ = ["main"]
