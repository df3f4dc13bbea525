"""The command ``sklearn-excb``; each module defines some of its subcommands."""
