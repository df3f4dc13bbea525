"""The command sklearn-excb, a module a family of subcommands."""
