"""Progress: recent rate, time left, what fits a terminal, nested lines and log lines, with a fake clock."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.text import Text

from facesyn_cli import console, display, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def _no_handlers_are_left():
    yield
    console.log.handlers.clear()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return a terminal of 80 columns for `redirect_stderr`; what is written to it is its value."""
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    stream = Terminal()
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


def drawn(counter: progress.Progress, width: int, **options: object) -> str:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, **options)
    screen.print(counter)
    return Text.from_ansi(screen.file.getvalue()).plain


def test_rate_and_remaining_time_are_of_this_run(clock: list[float]) -> None:
    counter = progress.Progress(total=1000, unit="images", done=400)
    clock[0] += 10
    counter.advance(100, loss=0.51234)
    assert str(counter) == "500 of 1000 images, 0:50 left, 10.0 images/s, loss 0.5123"


def test_the_rate_is_of_the_last_half_minute(clock: list[float]) -> None:
    counter = progress.Progress(total=10_000, unit="steps", done=0)
    for _ in range(100):
        clock[0] += 1
        counter.advance(10)
    assert counter.rate == pytest.approx(10)
    for _ in range(30):
        clock[0] += 1
        counter.advance(1)
    assert counter.rate == pytest.approx(1) and counter.seconds_left == pytest.approx(10_000 - 1030)


def test_many_items_in_a_second_do_not_fill_the_memory(clock: list[float]) -> None:
    counter = progress.Progress(total=0, unit="images", done=0)
    for _ in range(40_000):
        clock[0] += 0.001
        counter.advance()
    assert counter.rate == pytest.approx(1000, rel=0.01) and len(counter._marks) < 150


def test_a_slow_first_step_counts_until_there_is_a_second_one(clock: list[float]) -> None:
    counter = progress.Progress(total=101, unit="steps", done=0)
    clock[0] += 60
    counter.advance()
    assert counter.seconds_left == pytest.approx(6000)
    clock[0] += 2
    counter.advance()
    assert counter.seconds_left == pytest.approx(2 * 99)


def test_steps_longer_than_the_window_have_the_rate_of_the_last_two(clock: list[float]) -> None:
    counter = progress.Progress(total=10, unit="steps", done=0)
    for seconds in (50, 100, 200):
        clock[0] += seconds
        counter.advance()
    assert counter.rate == pytest.approx(1 / 200)
    assert str(counter) == "3 of 10 steps, 23:20 left, 0.005 steps/s"


def test_paused_time_does_not_count(clock: list[float]) -> None:
    counter = progress.Progress(total=100, unit="steps", done=0)
    for _ in range(10):
        clock[0] += 1
        counter.advance()
    with counter.paused():
        clock[0] += 500
    clock[0] += 1
    counter.advance()
    assert counter.rate == pytest.approx(1)


def test_a_finished_progress_says_what_it_took(clock: list[float]) -> None:
    counter = progress.Progress(total=4, unit="images", done=2)
    clock[0] += 61
    counter.advance(2)
    assert counter.parts(is_short=True) == ["4/4 images", "took 1:01", "0.033/s"]


def test_without_a_total_no_remaining_time_is_shown(clock: list[float]) -> None:
    counter = progress.Progress(total=0, unit="images", done=0)
    clock[0] += 2
    counter.advance(100)
    assert str(counter) == "100 images, 50.0 images/s"


def test_bytes_are_shown_in_mebibytes(clock: list[float]) -> None:
    counter = progress.Progress(total=2**24, unit="bytes", done=0)
    clock[0] += 2
    counter.advance(2**22)
    assert str(counter) == "4.0 of 16.0 MiB, 0:06 left, 2.0 MiB/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (750, "12:30"), (3599.6, "1:00:00"), (93_784, "1 day, 2:03:04")],
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.format_seconds(seconds) == text


def training(clock: list[float]) -> progress.Progress:
    counter = progress.Progress(5000, "steps", 1200, title="train-fr")
    clock[0] += 1
    counter.advance(4, **{"loss": 0.51234, "top-1": 0.8312, "lr": 0.02})
    return counter


def test_the_bar_shrinks_first_then_the_least_important_parts_are_left_out(clock: list[float]) -> None:
    counter = training(clock)
    whole = "1204/5000 steps, 15:49 left, 4.0/s, loss 0.5123, top-1 0.8312, lr 0.02"
    assert counter.fit(140) == (40, whole)
    assert counter.fit(90) == (10, whole)
    assert counter.fit(80) == (9, whole.removesuffix(", lr 0.02"))
    assert counter.fit(60) == (16, "1204/5000 steps, 15:49 left, 4.0/s")
    assert counter.fit(30) == (0, "1204/5000 steps")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 140, 200])
def test_the_line_never_wraps(clock: list[float], width: int) -> None:
    lines = drawn(training(clock), width).splitlines()
    assert len(lines) == 1 and len(lines[0]) <= width and "train-fr" in lines[0]


def test_a_terminal_without_color_or_utf8_gets_the_same_text(clock: list[float]) -> None:
    text = drawn(training(clock), 90, no_color=True)
    assert "1204/5000 steps" in text and "\x1b" not in text
    narrow = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=90, force_terminal=True)
    narrow.print(training(clock))  # raises where a character cannot be encoded


def test_a_log_gets_a_line_now_and_then(clock: list[float], said: list[str]) -> None:
    with progress.progress("sample", 100) as counter:
        for _ in range(10):
            clock[0] += 10
            counter.advance(10, refused=3)
    assert said == [f"sample: {done} of 100 images, {left} left, 1.0 images/s, refused 3"
                    for done, left in ((30, "1:10"), (60, "0:40"), (90, "0:10"))]


@pytest.mark.parametrize("is_used", [True, False])
def test_the_memory_of_a_gpu_in_use_is_shown_last(clock: list[float], is_used: bool, monkeypatch) -> None:
    """There is no GPU here: a stand-in for `torch.cuda` holds 12 of 80 GiB."""
    cuda = SimpleNamespace(
        is_initialized=lambda: is_used, memory_reserved=lambda: 12 * 2**30, current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(total_memory=80 * 2**30),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    counter = progress.Progress(10, "steps", 0)
    counter.show = lambda counter: None
    clock[0] += 1
    counter.advance(1, loss=0.5)
    assert counter.parts()[-1] == ("GPU 12.0 of 80 GiB" if is_used else "loss 0.5")


def test_messages_are_printed_above_nested_lines_and_the_cursor_comes_back(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal):
        console.configure()
        with progress.progress("train-ldm", 10, "steps") as steps:
            steps.advance(5)
            with progress.progress("encode", 4, "images") as images:
                images.advance(1)
                console.log.warning("one image cannot be read [image 7]")
                steps.advance(1)
    text = terminal.getvalue()
    assert "warning: one image cannot be read [image 7]\n" in Text.from_ansi(text).plain
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is hidden"
    assert Text.from_ansi(text).plain.splitlines()[-1].startswith("train-ldm ") and display._live is None


def test_what_is_not_kept_is_removed_line_by_line(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal), display.shown(Text("one\ntwo\nthree"), is_kept=False):
        pass
    assert terminal.getvalue().rpartition("three")[2].count("\x1b[2K") == 3


def test_an_error_restores_the_terminal(terminal: io.StringIO) -> None:
    with redirect_stderr(terminal), pytest.raises(KeyboardInterrupt), progress.progress("embed", 10) as counter:
        counter.advance(5)
        raise KeyboardInterrupt
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l") and display._live is None


@pytest.mark.parametrize("setting", ["TERM", "quiet"])
def test_a_dumb_terminal_and_quiet_get_no_redrawn_line(
    terminal: io.StringIO, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redirect_stderr(terminal):
        console.configure()
        if setting == "TERM":
            monkeypatch.setenv("TERM", "dumb")
        else:
            console.set_verbosity(quiet=True, verbose=False)
        with progress.progress("embed", 10) as counter:
            counter.advance(5)
    assert terminal.getvalue() == ""
