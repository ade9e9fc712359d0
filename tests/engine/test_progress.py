"""What a run shows: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from boxwise.engine import progress
from boxwise.engine.progress import Display, clock

ROW = {"train/loss": 1.2345, "time/images_per_s": 321.9, "time/data_wait": 0.25, "train/lr": 0.03}


def test_plain_lines_hold_the_figures_and_no_control_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and last step always, others at most once in ten seconds."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with Display("toy", start=0, total=100) as display:
        for step, later in [(1, 0.5), (10, 4.0), (20, 11.0), (30, 12.0), (100, 20.0)]:
            now[0] = 100.0 + later
            display.advance(step)
            display.show(step, ROW)
        display.say("[brackets] stay")
    out, err = capsys.readouterr()
    assert out == "" and "\x1b" not in err
    lines = err.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["1/100", "20/100", "100/100"]
    assert lines[1] == "step 20/100  loss 1.234  321.9 images/s  data wait 25%  lr 0.03  0:44 left"
    assert lines[-1] == "[brackets] stay"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    with Display("toy", start=20, total=100) as display:
        display.advance(50)
        display.show(50, ROW)
    shown = screen.getvalue()
    assert "\x1b" in shown and "50/100" in shown
    for figure in ("toy", "loss 1.234", "321.9 images/s", "data wait 25%", "lr 0.03", "left"):
        assert figure in shown


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("toy", start=0, total=10, shown=False) as display:
        display.show(1, ROW)
        display.say("hello")
    assert capsys.readouterr() == ("", "")


def test_times_read_as_people_write_them() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]
