"""The command, as ``python -m sklearn_excb``."""

import sys

from sklearn_excb.cli.commands import main

sys.exit(main())
