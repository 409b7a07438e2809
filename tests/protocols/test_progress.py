"""Progress is drawn on a terminal and nowhere else."""

from __future__ import annotations

import sys

import pytest

from protocols.progress import bar


def test_quiet_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("fit") as report:
        report("rounds", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_drawn_on_the_error_stream_of_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with bar("fit") as report:
        for done in (1, 2):
            report("rounds", done, 2)
            report("epochs", done, 9)
    out, err = capsys.readouterr()
    assert out == "" and "fit: rounds" in err and "2/2" in err and "2/9" in err
