"""Which cases of a test run by default, and which are left to `make slow`."""

import pytest


def others_slow(cases, *, default=1):
    """Cases of a parametrised test; after the first ones, they are marked ``slow``."""
    cases = list(cases)
    rest = (case if isinstance(case, tuple) else (case,) for case in cases[default:])
    return [*cases[:default], *(pytest.param(*case, marks=pytest.mark.slow) for case in rest)]
