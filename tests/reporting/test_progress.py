from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.zoo.interruptions import events_of
from torch_gradcheck import check_module
from torch_gradcheck.reporting import progress, progress_screens
from torch_gradcheck.reporting.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write_to(stderr: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the module a stderr; pytest puts its own into `sys` before every phase of a test."""
    for module in (progress, progress_screens):
        monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=stderr, modules=sys.modules))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal at stderr, with a person at it."""
    terminal = Terminal()
    write_to(terminal, monkeypatch)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("CI", raising=False)
    return terminal


def long_work(enabled: bool | None, clock: Clock) -> None:
    """100 units in 100 seconds."""
    with progress_bar(enabled) as bar:
        bar.start(100, "encoder.weight")
        for unit in range(100):
            clock.now += 1
            if unit == 50:
                bar.at("decoder.[bold]weight")
            bar.advance(1)


def test_long_work_on_a_terminal_shows_percent_name_and_time_left(terminal: Terminal, clock: Clock) -> None:
    long_work(None, clock)
    shown = terminal.getvalue()
    for part in ("encoder.weight", "decoder.[bold]weight", " 25%", "1 min 15 s left"):
        assert part in shown


def test_nothing_is_left_on_the_screen(terminal: Terminal, clock: Clock) -> None:
    long_work(None, clock)
    erase_line, show_cursor = "\x1b[2K", "\x1b[?25h"
    last_bar = terminal.getvalue().rindex("100%")
    assert erase_line in terminal.getvalue()[last_bar:]
    assert show_cursor in terminal.getvalue()[last_bar:]


@pytest.mark.parametrize("seconds", [0.9, 1.0], ids=["short", "long"])
def test_short_work_flashes_nothing(seconds: float, terminal: Terminal, clock: Clock) -> None:
    with progress_bar(None) as bar:
        bar.start(2, "weight")
        clock.now += seconds
        bar.advance(1)
    assert ("weight" in terminal.getvalue()) == (seconds >= 1)


@pytest.mark.parametrize(
    ("variable", "value"), [("TERM", "dumb"), ("CI", "true"), ("CI", "1")], ids=["dumb terminal", "CI", "CI=1"]
)
def test_a_terminal_with_nobody_at_it_shows_nothing(
    variable: str, value: str, terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    long_work(None, clock)
    assert terminal.getvalue() == ""


def test_a_log_shows_nothing(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    write_to(log, monkeypatch)
    long_work(None, clock)
    assert log.getvalue() == ""


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("stream", "enabled"),
    [(None, None), (None, True), (object(), None), (closed(), None)],
    ids=["none", "none, forced", "no stream", "closed"],
)
def test_without_a_stderr_nothing_is_shown(
    stream: object,
    enabled: bool | None,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_to(stream, monkeypatch)
    long_work(enabled, clock)
    assert capsys.readouterr() == ("", "")


@dataclass
class Notebook:
    """Stands for IPython in a notebook: keeps what every output has shown, each a list of all that it was."""

    outputs: list[list[str]] = field(default_factory=list)
    kernel: object = "a kernel"

    def display(self, shown: str, display_id: bool) -> SimpleNamespace:
        assert display_id
        output = [shown]
        self.outputs.append(output)
        return SimpleNamespace(update=output.append)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Notebook:
    """A notebook, in which stderr is no terminal."""
    notebook = Notebook()
    display = SimpleNamespace(HTML=str, display=notebook.display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: notebook, display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.delenv("CI", raising=False)
    write_to(io.StringIO(), monkeypatch)
    return notebook


@pytest.mark.parametrize("enabled", [None, True], ids=["by itself", "asked for"])
def test_long_work_in_a_notebook_shows_a_bar_that_is_replaced_and_goes_away(
    enabled: bool | None, notebook: Notebook, clock: Clock
) -> None:
    long_work(enabled, clock)
    [shown] = notebook.outputs
    for part in ("encoder.weight", "decoder.[bold]weight", "25%", 'value="25" max="100"', "1 min 15 s left"):
        assert any(part in each for each in shown)
    assert shown[-1] == ""
    assert progress_screens.sys.stderr.getvalue() == ""


def test_a_notebook_shows_nothing_of_short_work_nor_in_continuous_integration(
    notebook: Notebook, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress_bar(None) as bar:
        bar.start(10, "weight")
    long_work(False, clock)
    monkeypatch.setenv("CI", "true")
    long_work(None, clock)
    assert notebook.outputs == []


def test_a_bar_in_a_notebook_goes_away_after_a_ctrl_c_and_escapes_names(notebook: Notebook, clock: Clock) -> None:
    state = random.getstate()
    with suppress(KeyboardInterrupt), progress_bar(True) as bar:
        bar.start(10, "<b>weight</b>")
        raise KeyboardInterrupt
    [[shown, last]] = notebook.outputs
    assert "&lt;b&gt;weight" in shown
    assert last == ""
    assert random.getstate() == state


def test_ipython_in_a_terminal_is_a_terminal(terminal: Terminal, notebook: Notebook, clock: Clock) -> None:
    notebook.kernel = None
    long_work(True, clock)
    assert notebook.outputs == []


def test_false_never_shows(terminal: Terminal, clock: Clock) -> None:
    long_work(False, clock)
    assert terminal.getvalue() == ""


def test_true_shows_at_once_even_in_a_log(terminal: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    write_to(log, monkeypatch)
    with progress_bar(True) as bar:
        bar.start(10, "weight")
        assert "weight" in log.getvalue()


def test_the_bar_is_drawn_at_most_ten_times_a_second(terminal: Terminal, clock: Clock) -> None:
    with progress_bar(True) as bar:
        bar.start(10_000, "weight")
        for _ in range(10_000):
            clock.now += 1e-4
            bar.advance(1)
    assert 5 <= terminal.getvalue().count("weight") <= 12


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(30, "30 s left"), (90, "1 min 30 s left"), (5400, "1 h 30 min left")],
    ids=["seconds", "minutes", "hours"],
)
def test_time_left(seconds: float, words: str, terminal: Terminal, clock: Clock) -> None:
    with progress_bar(True) as bar:
        bar.start(2, "weight")
        clock.now += seconds
        bar.advance(1)
    assert words in terminal.getvalue()


@pytest.mark.parametrize(
    ("total", "done"), [(0, 0), (0, 5), (3, 7)], ids=["no work", "work unforeseen", "more than foreseen"]
)
def test_a_wrong_total_does_no_harm(total: int, done: int, terminal: Terminal, clock: Clock) -> None:
    with progress_bar(True) as bar:
        bar.start(total, "weight")
        clock.now += 1
        bar.advance(done)
    assert "weight" in terminal.getvalue()


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt], ids=["exception", "Ctrl-C"])
def test_an_interruption_leaves_no_thread_and_no_bar(
    interruption: type[BaseException], terminal: Terminal, clock: Clock
) -> None:
    before, streams = threading.enumerate(), (sys.stdout, sys.stderr)
    with suppress(interruption), progress_bar(True) as bar:
        bar.start(10, "weight")
        assert threading.enumerate() == before
        raise interruption
    assert threading.enumerate() == before
    assert (sys.stdout, sys.stderr) == streams
    assert terminal.getvalue().endswith(("\x1b[2K", "\x1b[?25h"))


def test_random_state_is_left_alone(terminal: Terminal, clock: Clock) -> None:
    states: list[Callable[[], str]] = [
        lambda: repr(random.getstate()),
        lambda: repr(np.random.get_state()),
        lambda: repr(torch.get_rng_state().tolist()),
    ]
    before = [state() for state in states]
    long_work(True, clock)
    assert [state() for state in states] == before


def test_rich_is_loaded_only_when_something_is_shown() -> None:
    script = (
        "import sys\n"
        "from torch_gradcheck.reporting.progress import progress_bar\n"
        "for enabled, loaded in ((False, False), (None, False), (True, True)):\n"
        "    with progress_bar(enabled) as bar:\n"
        "        bar.start(1, 'weight')\n"
        "        bar.advance(1)\n"
        "    assert ('rich' in sys.modules) == loaded, enabled\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize("enabled", [False, None], ids=["silent", "not yet shown"])
def test_advance_costs_next_to_nothing_while_nothing_is_shown(enabled: bool | None, terminal: Terminal) -> None:
    with progress_bar(enabled) as bar:
        bar.start(10**9, "weight")
        events = events_of(lambda: bar.advance(1))
    assert events <= 6, "functions that are called, the lambda and what counts among them"
    assert terminal.getvalue() == ""


def test_set_up_shows_a_bar_too_from_its_first_second_on(terminal: Terminal, clock: Clock) -> None:
    """J is evaluated, its noise is measured and it is recorded, before anything can be counted."""
    with progress_bar(None) as bar:
        clock.now += 0.9
        bar.beat()
        assert terminal.getvalue() == ""
        clock.now += 0.2
        bar.beat()
        assert "setting up" in terminal.getvalue()
        assert "%" not in terminal.getvalue()
        clock.now += 1
        bar.start(10, "encoder.weight")
        clock.now += 1
        bar.advance(5)
    assert " 50%" in terminal.getvalue()


@pytest.mark.parametrize("mistake", [False, True])
def test_a_check_beats_at_every_evaluation_of_its_set_up(terminal: Terminal, clock: Clock, mistake: bool) -> None:
    class Slow(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock.now += 0.3
            return super().forward(x)

    model = Slow(2, 2)
    if mistake:
        model.weight.register_hook(lambda g: 2 * g)
    check_module(model, torch.nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 2)))
    shown = terminal.getvalue()
    assert shown.index("setting up") < shown.index("weight")
    assert ("what is wrong, and where" in shown) is mistake
