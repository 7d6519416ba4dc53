"""Who may import whom: a folder's imports of our own point to lower floors only; inside a folder there is no circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import torch_gradcheck

ROOT = Path(torch_gradcheck.__file__).parent

FLOORS = """
    version errors arrays torch_internals
    tracebacks
    processes precision differences reporting
    request
    borrowing
    objective
    gradients engines verdicts
    methods
    contract diagnosis planting
    pipeline
    training_step
    against_reference
    check
    monitoring command_line drop_in
    integrations __main__ __init__
    pytest_plugin
"""
"""The rooms of the package, the lowest floor first: its folders and the files at its root. Rooms of one floor do not
know each other. A new file in a folder needs no line here.
"""

FLOOR = {room: number for number, line in enumerate(FLOORS.strip().splitlines()) for room in line.split()}

FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in sorted(ROOT.rglob("*.py"))
}


LAZY = {"__init__"}
"""Loads its names when they are asked for; its imports are for type checkers."""


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imported_by(module: str) -> Iterator[str]:
    """The files of this package that another one imports, wherever in it the statement stands."""
    for node in ast.walk(tree_of(module)):
        yield from ours(node)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def ours(node: ast.AST) -> Iterator[str]:
    """The files of this package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [(node.module or "", alias.name) for alias in node.names]
    else:
        return
    for module, attribute in names:
        if room_of(module) == "torch_gradcheck":
            inside = module.partition(".")[2]
            candidates = (f"{inside}.{attribute}".strip("."), inside, f"{inside}.__init__".strip("."))
            yield next(name for name in candidates if name in FILES)


def test_every_room_is_on_a_floor_and_nothing_else() -> None:
    assert sorted(FLOOR) == sorted({room_of(module) for module in FILES})


def test_there_are_at_most_eight_files_at_the_root() -> None:
    assert len([module for module in FILES if "." not in module]) <= 8


def test_imports_point_down() -> None:
    upward = {
        module: others
        for module in FILES.keys() - LAZY
        if (others := sorted(other for other in rooms_imported_by(module) if FLOOR[other] >= FLOOR[room_of(module)]))
    }
    assert upward == {}


def rooms_imported_by(module: str) -> set[str]:
    """The other rooms that a file imports from."""
    return {room_of(name) for name in imported_by(module)} - {room_of(module)}


def test_no_files_import_each_other_in_a_circle() -> None:
    TopologicalSorter({module: set(imported_by(module)) for module in FILES.keys() - LAZY}).prepare()


IMPORTS_THE_USERS = {"command_line.target"}
"""Imports the file it is to check."""


WITHOUT_TORCH = {"command_line.entry"}
"""Imports the check, and with it torch, only where a check is asked for."""


def test_no_import_of_our_own_hides_in_a_function() -> None:
    hidden = {}
    for module in FILES.keys() - LAZY - WITHOUT_TORCH:
        tree = tree_of(module)
        at_the_top = {id(node) for node in tree.body}
        inside = [ast.unparse(node) for node in ast.walk(tree) if id(node) not in at_the_top and any(ours(node))]
        if inside or (module not in IMPORTS_THE_USERS and "importlib" in FILES[module].read_text()):
            hidden[module] = inside
    assert hidden == {}


NUMPY_ONLY = ("differences.", "diagnosis.kind.")
"""Folders that know numbers only."""


def test_what_works_on_numbers_knows_no_torch() -> None:
    roots = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").partition(".")[0]
        for module in FILES
        if module.startswith(NUMPY_ONLY)
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert "torch" not in roots


@pytest.mark.slow
def test_importing_the_package_loads_nothing_heavy_besides_torch() -> None:
    heavy = ["rich", "jinja2", "matplotlib", "torch._dynamo", "transformers", "sympy", "pandas", "triton"]
    script = (
        "import sys, torch; before = set(sys.modules); import torch_gradcheck;"
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_check_without_a_bar_loads_no_dynamo_and_no_rich() -> None:
    script = (
        "import sys, torch; from torch_gradcheck import check_module;"
        "check_module(torch.nn.Linear(2, 1), torch.sum, torch.ones(1, 2));"
        "print([name for name in ('rich', 'torch._dynamo', 'sympy', 'triton') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"
