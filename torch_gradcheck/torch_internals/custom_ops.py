"""Operators of torch.library: the Function that torch makes of a formula given by `register_autograd`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.autograd import Function


@dataclass(frozen=True)
class CustomOp:
    """An operator with a backward of the user's.

    Attributes:
        name: such as `mylib::swish`.
        arguments: their names.
        backward: the function that was given to `register_autograd`.
    """

    name: str
    arguments: tuple[str, ...]
    backward: Callable[..., Any]


def custom_op_of(function: type[Function]) -> CustomOp | None:
    """The operator whose backward a Function is; None for any other Function, and for a torch that makes it otherwise.

    torch builds such a class for each operator, and keeps the operator and its formula in what the methods close over.
    """
    if not function.__name__.startswith("GeneratedBackwardFor_"):
        return None
    kept = {**_closure(function.forward), **_closure(function.backward)}
    backward = getattr(kept.get("info"), "_backward_fn", None)
    schema = getattr(kept.get("op"), "_schema", None)
    if backward is None or schema is None:
        return None
    return CustomOp(schema.name, tuple(argument.name for argument in schema.arguments), backward)


def _closure(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    return (
        {}
        if code is None or cells is None
        else dict(zip(code.co_freevars, (c.cell_contents for c in cells), strict=True))
    )
