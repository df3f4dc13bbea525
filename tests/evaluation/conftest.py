"""What tests of the report share."""

import pytest

from tests.evaluation.small_report import written_report


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """A report of 600 digits in 70 clusters, and what went into it."""
    return written_report(tmp_path_factory.mktemp("report") / "report.html")
