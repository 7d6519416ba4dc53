"""Nothing of torch that is not public is used outside of torch_internals/, and nothing of it at import without a guard.

A name is private where it begins with one underscore. Names of aten's operations are data, by which rules are found:
engines/traced/ may write them down, as strings that go through `overload` and its like.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_gradcheck

ROOT = Path(torch_gradcheck.__file__).parent

FILES = {
    name: path
    for path in sorted(ROOT.rglob("*.py"))
    if not (name := path.relative_to(ROOT).as_posix()).startswith("torch_internals/")
}

RULE_FILES = "engines/traced/"
"""Where names of aten's operations stand, in strings."""

PYTHONS = {
    "_replace", "_fields", "_asdict",  # of named tuples
    "_lru_cache_wrapper", "_filters_mutated",  # of functools and warnings
    "_thread",  # a module
    "_repr_png_",  # which notebooks ask for
}  # fmt: skip


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def names_of_torch() -> set[str]:
    """Private attributes of what a check is handed: tensors, modules, operations, nodes of the graph, ..."""
    x = torch.ones(1, requires_grad=True)
    things: list[Any] = [
        x, x.untyped_storage(), nn.Linear(1, 1), nn.Parameter(x), torch.sin(x).grad_fn, torch.ops.aten.add,
        torch.ops.aten.add.Tensor, torch.Generator(), torch.optim.SGD([x]), torch.autograd.Function,
        torch.amp.GradScaler("cpu"), torch.nn.utils.parametrize, torch.nn.utils.parametrizations, torch, torch._C,
        torch._ops, torch.autograd, torch.utils._python_dispatch, torch.overrides, nn.modules.dropout,
    ]  # fmt: skip
    return {name for thing in things for name in dir(thing) if private(name)} | {"_orig_mod"}


TORCHS = names_of_torch()


def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text()) for name, path in FILES.items()}


@cache
def own_names() -> set[str]:
    """Private names that this package defines: functions, classes, attributes, variables."""
    names = set()
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
                names.add(node.attr)
    return {name for name in names if private(name)}


def is_own(value: ast.expr) -> bool:
    """Whether an expression is the object or class that the code belongs to."""
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def uses(name: str, tree: ast.Module) -> Iterator[str]:
    """The private names of torch that a file uses, each with its line."""
    docs = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found = imported(node)
        elif isinstance(node, ast.Attribute):
            found = attribute(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found = written(node.value, in_rules=name.startswith(RULE_FILES))
        else:
            continue
        yield from (f"{each} (line {node.lineno})" for each in found)


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    names = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{name}" for name in names]
    return [name for name in names if name.startswith("torch.") and any(map(private, name.split(".")))]


def attribute(node: ast.Attribute) -> list[str]:
    if not private(node.attr) or is_own(node.value) or node.attr in PYTHONS:
        return []
    return [] if node.attr in own_names() - TORCHS else [node.attr]


def written(text: str, *, in_rules: bool) -> list[str]:
    """A string that is a private name of torch, or the path of a private module."""
    if re.fullmatch(r"torch(\.\w+)+", text):
        return [text] if any(map(private, text.split("."))) else []
    name = text.partition(".")[0]
    if not re.fullmatch(r"_[a-zA-Z]\w*(\.\w+)?", text) or name in PYTHONS or name in own_names() - TORCHS:
        return []
    return [] if in_rules and hasattr(torch.ops.aten, name) else [text]


def docstrings(tree: ast.Module) -> set[int]:
    """Strings that are statements of their own."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_nothing_private_is_used_outside_of_torch_internals() -> None:
    found = {name: used for name, tree in trees().items() if (used := list(uses(name, tree)))}
    assert found == {}, "give each of these private names of torch a function in torch_internals/, with a test"


SAMPLES = {
    "import torch._dynamo": True,
    "from torch._ops import OpOverload": True,
    "from torch.utils._python_dispatch import TorchDispatchMode": True,
    "from torch.nn.utils.parametrizations import _SpectralNorm": True,
    "torch._C._set_grad_enabled(True)": True,
    "torch._foreach_add_(xs, ys)": True,
    "x._version": True,
    "module._parameters.values()": True,
    "func._schema.arguments": True,
    "getattr(model, '_orig_mod', model)": True,
    "frame.f_code.co_name == '_call_impl'": True,
    "'torch._dynamo' in sys.modules": True,
    "aten._softmax.default": True,
    "overload('_softmax.default')": True,
    "self._parameters = parameters": False,
    "noise._replace(at_zero=0)": False,
    "from torch.nn.parameter import is_lazy": False,
    "x.__class__": False,
    "'see `torch._C`'": False,
}


@pytest.mark.parametrize(("code", "is_private"), SAMPLES.items(), ids=SAMPLES)
def test_private_names_are_told_from_others(code: str, is_private: bool) -> None:
    assert (
        bool(list(uses("check.py", ast.parse(f"y = {code}" if " = " not in code and "import" not in code else code))))
        is is_private
    )


def test_rule_files_may_write_down_names_of_operations_and_nothing_else() -> None:
    rules = "engines/traced/rules/reductions.py"
    assert not list(uses(rules, ast.parse("f = overload('_softmax.default')")))
    assert list(uses(rules, ast.parse("f = aten._softmax.default")))
    assert list(uses(rules, ast.parse("f = overload('_no_such_operation.default')")))


WITHOUT_PRIVATE_NAMES = """
import importlib, sys
import torch, torch.nn.utils.parametrizations, torch.nn.utils.spectral_norm, torch.overrides, torch.func
from torch.amp import grad_scaler
from torch.utils import _python_dispatch

# Whatever torch itself has imported keeps working; the attributes are gone for those who look them up from now on.
class Renamed:
    def __getattr__(self, name):
        if name.startswith("_") and not name.startswith("__"):
            raise AttributeError(f"torch has renamed {name}")
        return getattr(aten, name)

aten, torch.ops.aten = torch.ops.aten, Renamed()
for owner, names in {
    _python_dispatch: ["TorchDispatchMode", "_get_current_dispatch_mode_stack", "_pop_mode", "_push_mode"],
    torch._C: ["_swap_tensor_impl", "_functorch", "_current_graph_task_id", "DispatchKey", "_len_torch_function_stack"],
    torch.nn.utils.parametrizations: ["_SpectralNorm"],
    torch.nn.modules.dropout: ["_DropoutNd"],
    torch.overrides: ["_pop_mode"],
}.items():
    for name in names:
        delattr(owner, name)
failed = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {error!r}")
sys.exit("\\n".join(failed) or 0)
"""


@pytest.mark.slow
def test_every_file_is_imported_by_a_torch_that_has_renamed_its_private_names() -> None:
    """Then one rule is missing, not the package."""
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted(ROOT.rglob("*.py"))]
    ours = [file for file in files if file.parts[0] not in ("integrations", "__main__")]
    names = [".".join(("torch_gradcheck", *file.parts)).removesuffix(".__init__") for file in ours]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_PRIVATE_NAMES, *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
