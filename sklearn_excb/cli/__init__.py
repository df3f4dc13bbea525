"""The command sklearn-excb, a module a family of subcommands."""

from sklearn_excb.cli.commands import main

__all__ = ["main"]
