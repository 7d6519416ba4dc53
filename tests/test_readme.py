"""What README.md and other pages show is what happens: every fenced block in them is run.

The others are the pages of docs/ and examples/found_in_the_wild/README.md.

How a block is written:

- ```python blocks under one heading of a page (# or ##, with the ### below it) are one program, run from top to bottom
  in an empty directory with the repository's examples/. What a reader need not see stands in a block inside an HTML
  comment.
- ```python raises=NAME is a block that ends with an exception of that name; its message counts as printed.
- ```python file=NAME is a block as a reader would keep it in a file of that name: lines that it prints are lines of it.
- ```python script=NAME is a file of that name, which the commands of the page can run; it is not run by itself.
- ```sh blocks have one command a line, run there as well: `torch-gradcheck …`, `python SCRIPT …`, `pytest …`. The
  line ends with `# exit status N` where that is not 0. The first command of each of the first two is run by a process
  of its own, the others by one that has imported torch. The two lines that set an environment up are run by .ci/run.
  `torchrun --nproc-per-node 2 …` is run by two processes that are there already: starting torch takes seconds.
- a ```text block right behind one of these is what it prints. Times, numbers of evaluations and runs, losses, lines of
  pages and examples and figures like 1.3e-09, which are mostly rounding, may differ from machine to machine, and so may
  the white space and rules around them. Any other ```text block is a quotation.
- there are no blocks of other kinds.

`TORCH_GRADCHECK_REWRITE_GOLDEN=1 pytest tests/test_readme.py` writes what is printed anew, after a meant change.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from readme_tables import with_tables
from tests.processes.ranks import Ranks
from tests.processes.started import Ended, started
from tests.pytest_plugin.loading import PLUGIN

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SET_UP = "python3 -m venv"
TORCHRUN = "torchrun --nproc-per-node 2 "


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading above it, what its fence says, its text and lines, and what it should print."""

    heading: str
    language: str
    options: str
    text: str
    line: int
    end: int
    prints: str | None = None


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks in order; a text block right behind another becomes what that one prints."""
    found = list(_fenced(markdown.splitlines()))
    joined = []
    for block, following in pairwise([*found, None]):
        adjacent = following is not None and following.language == "text" and following.line - block.end <= 2
        joined.append(Block(**vars(block) | {"prints": following.text}) if adjacent else block)
    return joined


def _fenced(lines: list[str]) -> Iterable[Block]:
    heading, opening = "", None
    for number, line in enumerate(lines, start=1):
        if opening is None and line.startswith(("# ", "## ")):
            heading = line.strip("# ")
        elif opening is None and line.startswith("```"):
            opening = number
        elif opening is not None and line.startswith("```"):
            language, _, options = lines[opening - 1].removeprefix("```").partition(" ")
            yield Block(heading, language, options, "\n".join(lines[opening : number - 1]), opening, number)
            opening = None


def programs(markdown: str) -> dict[str, list[Block]]:
    """The python blocks that are run by themselves, by the heading that they stand under."""
    found: dict[str, list[Block]] = {}
    for block in blocks(markdown):
        if block.language == "python" and "script=" not in block.options:
            found.setdefault(block.heading, []).append(block)
    return found


def scripts(markdown: str) -> dict[str, str]:
    """The files that commands run: name → text."""
    options = [(block, dict(option.split("=") for option in block.options.split())) for block in blocks(markdown)]
    return {given["script"]: block.text for block, given in options if "script" in given}


def commands(markdown: str) -> list[tuple[str, int, str | None]]:
    """The commands of the sh blocks: each with its exit status and, for the last of a block, what it should print."""
    found = []
    for block in (block for block in blocks(markdown) if block.language == "sh"):
        lines = block.text.splitlines()
        for line in lines:
            command, _, status = line.partition("# exit status")
            found.append((command.strip(), int(status or 0), block.prints if line == lines[-1] else None))
    return found


def comparable(printed: str) -> str:
    """What is the same on every machine."""
    for varies, constant in (
        (r"\b\d+(\.\d+)? ?(s|ms|µs|min)\b", "# s"),
        (r"\b[\d,]+ evaluations", "# evaluations"),
        (r"\b[\d,]+ runs of single modules", "# runs of single modules"),
        (r"\b\d(\.\d+)?e-\d+\b", "#e-#"),
        (r"\bloss \d\.\d{6,}", "loss #"),
        (r"\S+\.md:\d+", "FILE:#"),
        (r"(examples/\S+\.py):\d+", r"\1:#"),
        (r"[─━═]+", "─"),
        (r"\s+", " "),
    ):
        printed = re.sub(varies, constant, printed)
    return printed.strip()


def run(block: Block, namespace: dict[str, object], page: Path = README) -> str:
    """Executes a python block and gives what it printed; tracebacks point into its page, or the file it stands for."""
    options = dict(option.split("=") for option in block.options.split())
    if "file" in options:  # as a reader keeps it: lines of a `def` are looked up in it
        Path(options["file"]).write_text(block.text, encoding="utf-8")
        linecache.cache.pop(options["file"], None)
    text = block.text if "file" in options else "\n" * block.line + block.text
    code = compile(text, options.get("file", str(page)), "exec")
    expected, raised = options.get("raises", ""), ""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
    except Exception as error:
        raised = type(error).__name__
        if raised != expected:
            raise
        printed.write(str(error))
    assert raised == expected
    return printed.getvalue()


PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (README, ROOT / "examples" / "found_in_the_wild" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""Where a page lies, from the root of the repository, to its text."""

QUOTING = ("docs/SCHEMA.md",)
"""Its blocks are pieces of files."""

RUN = {name: text for name, text in PAGES.items() if name not in QUOTING}
SET_UPS = [line for line, _, _ in commands(PAGES["README.md"]) if line.startswith(SET_UP)]
EVERY_COMMAND = [(name, command) for name, text in RUN.items() for command in commands(text)]
NAMED = [(of[0], pytest.param(page, *of, id=f"{page}: {of[0]}")) for page, of in EVERY_COMMAND]
COMMANDS = [case for command, case in NAMED if not command.startswith((SET_UP, TORCHRUN))]
SHARED = [case for command, case in NAMED if command.startswith(TORCHRUN)]
SLOW = ("Large models", "It learns, and is wrong", "1 % or rounding?")
PROGRAMS = [
    pytest.param(name, program, id=f"{name}: {heading}", marks=[pytest.mark.slow] if heading in SLOW else [])
    for name, text in RUN.items()
    for heading, program in programs(text).items()
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A directory with nothing but the examples, at 80 columns."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


REWRITES = bool(os.environ.get("TORCH_GRADCHECK_REWRITE_GOLDEN"))


def held(page: str, shown: str, printed: str) -> None:
    """Writes what is printed into its page in the place of what is shown, where that is asked for and they differ."""
    if REWRITES and comparable(printed) != comparable(shown):
        before, fence = (ROOT / page).read_text(encoding="utf-8"), "```text\n{}\n```"
        after = before.replace(fence.format(shown), fence.format(printed.rstrip("\n")), 1)
        assert after != before
        (ROOT / page).write_text(after, encoding="utf-8")


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("page", "program"), PROGRAMS)
def test_python_blocks_run_and_print_what_they_say(page, program):
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in program:
        printed = run(block, namespace, ROOT / page)
        if block.prints is not None:
            held(page, block.prints, printed)
            assert comparable(printed) == comparable(block.prints) or REWRITES, f"{page}, line {block.line}"


def with_scripts(directory: Path, page: str) -> str:
    """Writes the scripts of a page into a directory, and gives its path."""
    for name, text in scripts(PAGES[page]).items():
        (directory / name).write_text(text, encoding="utf-8")
    return str(directory)


RUN_PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", *PLUGIN]
WORDS = {"torch-gradcheck": ["-m", "torch_gradcheck"], "python": [], "pytest": RUN_PYTEST}
"""Programs, and what Python is started with to run them."""

BY_THEMSELVES = ("torch-gradcheck", "python")
FIRST = [next(of[0] for _, of in EVERY_COMMAND if of[0].startswith(program)) for program in BY_THEMSELVES]


@pytest.fixture(scope="module")
def one_process():
    """A process that has imported torch."""
    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "status", "prints"), COMMANDS)
def test_commands_exit_and_print_as_they_say(one_process, elsewhere, page, command, status, prints):
    program, *arguments = shlex.split(command)
    assert program in WORDS, f"{page}: no rule for running {command!r}"
    words, directory = [*WORDS[program], *arguments], with_scripts(elsewhere, page)

    ended = by_itself(words) if command in FIRST else one_process.run(started, directory, *words)[0]

    assert ended.status == status, ended.err
    if prints is not None:
        held(page, prints, ended.out)
        assert comparable(ended.out) == comparable(prints) or REWRITES


def by_itself(words):
    """How Python ends that is started with these words."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command", "status", "prints"), SHARED)
def test_commands_in_two_processes_exit_and_print_as_they_say(two_ranks, elsewhere, page, command, status, prints):
    directory = with_scripts(elsewhere, page)

    one, other = two_ranks.run(started, directory, *shlex.split(command.removeprefix(TORCHRUN)))

    assert (one.status, other.status) == (status, status), one.err
    assert other.out == ""
    if prints is not None:
        held(page, prints, one.out)
        assert comparable(one.out) == comparable(prints) or REWRITES


def test_ci_runs_the_two_commands_that_set_up():
    taken = re.search(r"grep '\^(.+)' README.md", (ROOT / ".ci" / "run").read_text())

    assert taken is not None
    assert taken.group(1) == SET_UP
    assert [line.rpartition(" && .venv/bin/")[2] for line in SET_UPS] == [
        "torch-gradcheck examples/digits_mlp.py:problem",
        "pytest -n 2 --dist worksteal",
    ]


def test_every_block_is_of_a_kind_that_is_run():
    others = {(page, block.language) for page, text in RUN.items() for block in blocks(text)}

    assert {language for _, language in others} <= {"python", "sh", "text"}, others


def test_exit_status_and_output_belong_to_their_command():
    markdown = "```sh\npython a.py\ntorch-gradcheck b.py:f  # exit status 1\n```\n\n```text\nwrong\n```"

    assert commands(markdown) == [("python a.py", 0, None), ("torch-gradcheck b.py:f", 1, "wrong")]


def test_a_block_that_prints_something_else_is_noticed():
    markdown = "```python\nprint('in 0.12 s:', 2)\n```\n\n```text\nin 7.5 s: 3\n```"
    (block, _) = blocks(markdown)

    printed = comparable(run(block, {}))

    assert printed == "in # s: 2"
    assert printed != comparable(block.prints)


def test_a_block_that_does_not_raise_is_noticed():
    (block,) = blocks("```python raises=ValueError\nx = 1\n```")

    with pytest.raises(AssertionError, match="ValueError"):
        run(block, {})


def test_a_traceback_points_to_its_line_in_the_readme():
    (block,) = blocks("# Title\n\n```python\nx = 1\nx / 0\n```")

    with pytest.raises(ZeroDivisionError) as caught:
        run(block, {})

    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (README, 5)


LINK = re.compile(r"\]\((?!\w+:)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


def anchors(markdown: str) -> set[str]:
    """What a heading is called in a link, as GitHub and the site do."""
    without_blocks = re.sub(r"```.*?\n```", "", markdown, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_blocks, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "text"), PAGES.items(), ids=PAGES)
def test_links_lead_somewhere(page, text):
    prose = re.sub(r"```.*?\n```|`[^`\n]*`", "", text, flags=re.DOTALL)
    for link in LINK.finditer(prose):
        there = (ROOT / page).parent / link["file"] if link["file"] else ROOT / page
        assert there.exists(), link[0]
        made = there.parent == ROOT / "docs" / "reference"  # its headings are made from docstrings
        if link["anchor"] and not made:
            assert link["anchor"] in anchors(there.read_text(encoding="utf-8")), link[0]


@pytest.mark.parametrize(("page", "text"), PAGES.items(), ids=PAGES)
def test_the_tables_are_those_of_the_results(page, text):
    """`python benchmarks/readme_tables.py` writes them."""
    assert with_tables(text) == text
