from __future__ import annotations

import io

import pytest
from rich.console import Console

from robustfdd import progress
from robustfdd.progress import Display, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3600, "1 h 00 min"), (7890, "2 h 11 min")],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pipe_gets_a_line_a_unit_with_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    out = io.StringIO()
    with Display(1000, Console(file=out, width=40)) as display:
        display.skip(500)  # found done: must not make the rest look faster than it is
        display.start("first", 100)
        display.advance(60)
        clock[0] = 10
        display.finish("fine")
        display.start("second", 400)
        clock[0] = 50
        display.finish("FAILED: why")
    assert out.getvalue().splitlines() == [
        " 60%  first  fine  [10 s elapsed, about 40 s left]",
        "100%  second  FAILED: why  [50 s elapsed, about 0 s left]",
    ]


def test_a_narrow_terminal_keeps_the_times_and_the_notes() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=60, color_system=None, legacy_windows=False)
    with Display(10, console) as display:
        display.start("a description that is far too long for such a narrow terminal", 10)
        display.advance(5)
        display.finish("clean accuracy 85 %")
    text = out.getvalue()
    assert "clean accuracy 85 %" in text
    assert "100% 0:00:00 left 0:00:00" in text
    assert "…" in text


def test_nothing_is_shown_without_a_console(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(10, None) as display:
        display.start("x", 10)
        display.say("y")
        display.finish()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
