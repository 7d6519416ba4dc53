"""Reports on all sorts of pages: terminals, pipes, notebooks, no stream at all, narrow ones, old encodings."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.reporting.render.samples import SAMPLES, coordinate, facts, match, report_of, wrong
from torch_gradcheck.command_line.output import tell
from torch_gradcheck.errors import GradientMismatchError, InvalidRequestError
from torch_gradcheck.planting.spots import BlindSpot, BlindSpots
from torch_gradcheck.reporting.render.encodable import IN_ASCII, encodable
from torch_gradcheck.reporting.render.terminal import Page, page_of
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.reporting.report import Report

pty = pytest.importorskip("pty", reason="there are pseudo-terminals on Unix only")

ESCAPE = "\x1b["


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Terminal(io.TextIOWrapper):
    """The side of a pseudo-terminal that a program writes to."""

    reader: int

    def read_back(self) -> str:
        return os.read(self.reader, 1 << 16).decode()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """One of 132 columns."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 132, 0, 0))
    with Terminal(os.fdopen(slave, "wb", buffering=0), encoding="utf-8", write_through=True) as stream:
        stream.reader = master
        yield stream
    os.close(master)


def report(sample: str = "two_hundred_tensors") -> Report:
    return report_of(SAMPLES[sample])


FEW = ("two_of_twelve_wrong", "odd_shapes_and_figures", "broken_contract", "candidate_wrong")

LONG = "model.decoder.layers.3.self_attn.out_proj.bias"


def test_a_terminal_has_its_width_and_colours(terminal: Terminal) -> None:
    assert page_of(terminal) == Page(132, color=True)
    with redirect_stdout(terminal):
        shown, formatted, told = str(report()), f"{report()}", report().text()
    assert f"{ESCAPE}31m✗ mismatch" in shown
    assert LONG in shown
    assert ESCAPE not in formatted
    assert formatted == told
    assert LONG in told


@pytest.mark.parametrize(
    ("variable", "value", "page"),
    [
        ("NO_COLOR", "1", Page(132)),
        ("TERM", "dumb", Page(132)),
        ("COLUMNS", "200", Page(200, color=True)),
        ("COLUMNS", "many", Page(132, color=True)),
        ("FORCE_COLOR", "1", Page(132, color=True)),
    ],
)
def test_variables_of_a_terminal(
    terminal: Terminal, variable: str, value: str, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert page_of(terminal) == page


@pytest.mark.parametrize(
    ("variables", "page"),
    [
        ({}, Page()),
        ({"COLUMNS": "50"}, Page(50)),
        ({"FORCE_COLOR": "1"}, Page(color=True)),
        ({"FORCE_COLOR": "0"}, Page()),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, Page()),
    ],
    ids=["plain", "columns", "forced", "not forced", "no colour wins"],
)
def test_what_is_no_terminal_is_plain(variables: dict[str, str], page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert page_of(io.StringIO()) == page


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def detached() -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    stream.detach()
    return stream


class Notebook:
    """As ipykernel's stream, which has no file and is no terminal."""

    encoding = "UTF-8"

    def isatty(self) -> bool:
        return False

    def write(self, words: str) -> int:
        return len(words)

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


class Strange:
    encoding = "no such encoding"


@pytest.mark.parametrize(
    "stream",
    [
        None,
        closed(),
        io.StringIO(),
        io.TextIOWrapper(io.BytesIO(), "utf-8"),
        Notebook(),
        Strange(),
        detached(),
        object(),
    ],
    ids=["none", "closed", "StringIO", "bytes", "notebook", "unknown encoding", "detached", "object"],
)
def test_any_stream_gives_the_plain_text(stream: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    assert str(report()) == text(report())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-16"])
@pytest.mark.parametrize("sample", ["odd_shapes_and_figures", "partly_wrong", "broken_contract", "reference_wrong"])
def test_every_report_can_be_printed_in_old_encodings(sample: str, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with redirect_stdout(stream):
        stream.write(str(report(sample)) + report(sample).text(max_rows=None))
    for line in text(SAMPLES[sample], Page(encoding=encoding)).split("\n"):
        assert cell_len(line) <= 80


def test_marks_and_symbols_in_ascii() -> None:
    found = text(facts(wrong("W", 4, 3, reason="θ ± 2 · |θ| ≤ 1 …"), match("层.bias", 3)), Page(encoding="ascii"))
    assert "x mismatch W" in found
    assert "theta +- 2 . |theta| <= 1 ..." in found
    assert r"\u5c42.bias" in found
    assert "x W, shape 4x3" in found
    assert "-----" in found


def test_what_an_encoding_has_stays() -> None:
    assert encodable("4×3 ± 1 ✗ … θ", "latin-1") == "4×3 ± 1 x ... theta"
    assert encodable("4×3 ± 1 ✗ … θ", "cp1252") == "4×3 ± 1 x … theta"
    assert encodable("🙂 é", "ascii") == r"\U0001f642 \xe9"
    assert all(spelled.isascii() for spelled in IN_ASCII.values())


@pytest.mark.parametrize("width", [40, 57, 80, 100, 140, 250])
@pytest.mark.parametrize("color", [False, True], ids=["plain", "coloured"])
def test_lines_fit_the_width(width: int, color: bool) -> None:
    from rich.text import Text

    for sample in FEW:
        for line in report(sample).text(width=width, color=color).split("\n"):
            assert cell_len(Text.from_ansi(line).plain) <= width


def test_prose_is_wrapped_where_it_can_be_read() -> None:
    found = report_of(facts(match("a" * 150, 3), notes=["word " * 60]))
    lines = found.text(width=250).split("\n")
    assert max(len(line) for line in lines if "word" in line) <= 100
    assert any("a" * 150 in line for line in lines)


def test_a_narrow_page_keeps_what_matters() -> None:
    printed = report("two_of_twelve_wrong").text(width=40)
    assert "✗ mismatch norm1.weight  3.3e-01   16/16" in printed
    assert "noise\n" not in printed
    assert "    [4]    3.460000e-02  1.730000e-02" in report_of(
        facts(wrong("w", 9, worst=(coordinate(4, analytic=0.0346, numeric=0.0173),)))
    ).text(width=40)


def test_colours_say_what_the_marks_say() -> None:
    printed = report("nothing_wrong_not_all_proven").text(color=True)
    for expected in ("1;33mgradients right", "32m  match", "33m? kink", "33m? undecided", "2m- frozen"):
        assert ESCAPE + expected in printed
    assert f"{ESCAPE}1;32mgradients right" in report("all_right").text(color=True)
    assert f"{ESCAPE}1;31mgradients WRONG" in report("everything_wrong").text(color=True)


def test_without_its_codes_the_coloured_text_is_the_plain_one() -> None:
    from rich.text import Text

    for sample in FEW:
        coloured = report(sample).text(color=True)
        assert "\n".join(line.rstrip() for line in Text.from_ansi(coloured).plain.split("\n")) == report(sample).text()


def test_an_error_is_plain_on_a_terminal_too(terminal: Terminal) -> None:
    with redirect_stdout(terminal), pytest.raises(GradientMismatchError) as caught:
        report().raise_if_failed()
    assert ESCAPE not in str(caught.value)
    assert LONG in str(caught.value)


def test_the_command_prints_in_colour_on_a_terminal(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        tell(report("two_of_twelve_wrong"), {}, "title")
    assert terminal.read_back().startswith(f"{ESCAPE}1;31mgradients WRONG")


def test_rich_prints_a_report_and_takes_names_as_they_are() -> None:
    page = io.StringIO()
    Console(file=page, width=70, force_terminal=True, color_system="truecolor").print(report("odd_shapes_and_figures"))
    printed = page.getvalue()
    assert "[bold]" in printed
    assert f"{ESCAPE}31m✗ mismatch" in printed


@pytest.mark.parametrize("given", [{"max_rows": -1}, {"width": 0}, {"max_rows": "all"}, {"width": 80.0}], ids=str)
def test_what_cannot_be_shown_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="rows are counted from 0 on"):
        report().text(**given)


def test_blind_spots_use_the_page_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    spots = BlindSpots((BlindSpot("a.very.long.name" * 5, "zeroed", False, "θ is 0"),), "eval", 0)
    monkeypatch.setenv("COLUMNS", "300")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(stream):
        printed = str(spots)
    assert "a.very.long.name" * 5 in printed
    assert "theta is 0" in printed
