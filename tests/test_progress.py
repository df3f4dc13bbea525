"""Progress bars: what a terminal redraws is a line now and then in a log."""

import io
import sys

import pytest
from tqdm import tqdm

from sklearn_excb.runtime import progress
from sklearn_excb.runtime.progress import LogLines, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def written(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(shown=True, total=1000, desc="fit", mininterval=0) as bar:
        for _ in range(1000):
            bar.update()
        bar.set_postfix_str("loss 1.5")
    return stream.getvalue()


def test_a_log_gets_one_line(monkeypatch):
    log = written(monkeypatch, io.StringIO())
    assert log.count("\n") == 1
    assert "\r" not in log
    assert "1000/1000" in log
    assert "loss 1.5" in log


def test_a_terminal_is_redrawn(monkeypatch):
    assert written(monkeypatch, Terminal()).count("\r") > 100


def test_nothing_is_written_unless_it_is_shown(monkeypatch):
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert list(progress_bar(range(9), shown=False)) == list(range(9))
        assert not stream.getvalue()


@pytest.mark.parametrize("stream", [None, io.StringIO(), object()], ids=["none", "closed", "bare"])
def test_a_fit_does_not_need_standard_error(monkeypatch, stream):
    if isinstance(stream, io.StringIO):
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    for shown in (False, stream is None or isinstance(stream, io.StringIO)):
        assert list(progress_bar(range(9), shown=shown)) == list(range(9))


def test_a_bar_within_one_of_the_users_is_a_line_too(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    for _ in tqdm(range(2), file=io.StringIO()):
        written(monkeypatch, log)
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert all("1000/1000" in line for line in lines)


def test_lines_of_a_long_run_are_minutes_apart(clock):
    stream = io.StringIO()
    log = LogLines(stream)
    for second in range(3600):
        clock[0] = float(second)
        log.write(f"\r{second} s")
    assert stream.getvalue().split("\n")[:6] == [
        "60 s",
        "180 s",
        "420 s",
        "900 s",
        "1500 s",
        "2100 s",
    ]
    log.write("\n")
    assert stream.getvalue().endswith("3599 s\n")


def test_a_log_on_a_full_disk_ends_no_fit(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

        def flush(self):
            self.write("")

    monkeypatch.setattr(sys, "stderr", Full())
    assert list(progress_bar(range(9), shown=True)) == list(range(9))
