"""What a command is to check: the function that `FILE.py:FUNCTION` names, and what it returns."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.close_names import close_names
from torch_gradcheck.reporting.words import listed

FUNCTION_ARGUMENTS = ("function", "inputs", "reference")
MODEL_ARGUMENTS = ("model", "loss_fn", "batch", "reference")
"""What FUNCTION() returns, in this order or by these names; the reference may be left out."""


def function_named(target: str) -> Callable[[], Any]:
    """The function that the target names, after running its file.

    Raises:
        InvalidRequestError: there is no such function, it asks for arguments, or it does not run when it is called.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name or name.endswith(".py"):
        raise InvalidRequestError(
            f"{target!r} is not of the form FILE.py:FUNCTION or package.module:FUNCTION.{_functions_in(target)}"
        )
    function = _function(where, name)
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        word = "async" if inspect.iscoroutinefunction(function) else "yield"
        raise InvalidRequestError(f"{target} is a function with `{word}`: name one that returns what is to be checked.")
    try:
        inspect.signature(function).bind()
    except ValueError:  # built in
        return function
    except TypeError as error:
        raise InvalidRequestError(
            f"{target} must be a function that can be called without arguments: {error}."
        ) from error
    return function


def problem_of(target: str, result: Any) -> dict[str, Any]:
    """What the target's function has returned for a check, by the names of the arguments.

    Raises:
        InvalidRequestError: it is something else.
    """
    if isinstance(result, Mapping):
        return _named(target, result)
    if isinstance(result, tuple | list):
        for names in (FUNCTION_ARGUMENTS, MODEL_ARGUMENTS):
            fits = len(names) - 1 <= len(result) <= len(names)
            if fits and isinstance(result[1], tuple | list | Mapping) == (names is FUNCTION_ARGUMENTS):
                return dict(zip(names, result, strict=False))
    raise InvalidRequestError(
        f"{target}() must return (model, loss_fn, batch) or (function, inputs), got {_in_words(result)}"
        f"{f' of {len(result)}' if isinstance(result, tuple | list) else ''}. Inputs are a tuple of positional "
        "arguments, (x,) for one, or a mapping of keyword arguments. A reference stands behind either."
    )


def _in_words(result: Any) -> str:
    """What the target's function returned, where it is no problem."""
    return "None (is its `return` missing?)" if result is None else type(result).__name__


def _functions_in(target: str) -> str:
    """The targets that a file without a function may have meant, as a sentence; "" of anything else. Runs nothing."""
    path = Path(target.rstrip(":"))
    if path.suffix != ".py" or not path.is_file():
        return ""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return f" {path} cannot be read as Python."
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    free = [f"{path}:{each.name}" for each in functions if not _asked_of(each.args)]
    return f" It has {listed(free, 6)}." if free else f" {path} has no function that can be called without arguments."


def _asked_of(arguments: ast.arguments) -> bool:
    """Whether a function has to be given arguments."""
    positional = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
    return positional > 0 or None in arguments.kw_defaults


def _named(target: str, problem: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that the target's function returned; raises unless its keys are the arguments of a check."""
    for names in (FUNCTION_ARGUMENTS, MODEL_ARGUMENTS):
        if set(names[:-1]) <= set(problem) <= set(names):
            return dict(problem)
    raise InvalidRequestError(
        f"{target}() returned a mapping of {list(problem)}: its keys must be {list(MODEL_ARGUMENTS)} or "
        f"{list(FUNCTION_ARGUMENTS)}; 'reference' may be left out."
    )


def _function(where: str, name: str) -> Callable[[], Any]:
    module = _module_in_file(Path(where)) if where.endswith(".py") else _module_by_name(where)
    found = getattr(module, name, None)
    if not callable(found):
        functions = [
            key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")
        ]
        own = [key for key in functions if vars(module)[key].__module__ == module.__name__]
        there = f": that is of type {type(found).__name__}" if hasattr(module, name) else ""
        raise InvalidRequestError(f"{where} has no function {name!r}{there}; {close_names(name, own or functions)}")
    return found  # type: ignore[no-any-return]


def _module_in_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise InvalidRequestError(f"{path} is a directory: name a file in it.")
    if not path.stem or not path.is_file():
        raise InvalidRequestError(f"there is no file {path} in {Path.cwd()}.{_files_like(path)}")
    sys.path.insert(0, str(path.resolve().parent))  # the file's own imports, as when it is run as a script
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidRequestError(f"{path} cannot be loaded as a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _files_like(path: Path) -> str:
    """The files whose names come close to that of one that is not there, as a sentence; "" without any."""
    there = sorted(each.name for each in path.parent.glob("*.py")) if path.parent.is_dir() else []
    close = get_close_matches(path.name, there, n=3)
    return f" Close names: {', '.join(close)}." if close else ""


def _module_by_name(name: str) -> ModuleType:
    if name.endswith(".ipynb"):
        raise InvalidRequestError(f"{name} is a notebook: move the function to a file that ends in .py.")
    if not all(part.isidentifier() for part in name.split(".")):
        directory = ": it is a directory, name a file in it" if Path(name).is_dir() else ""
        raise InvalidRequestError(f"{name!r} is neither a file that ends in .py nor the name of a module{directory}.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a missing import of the user's module, not the module itself
        raise InvalidRequestError(f"there is no module {name!r} ({error}); a file is named with its .py.") from error
