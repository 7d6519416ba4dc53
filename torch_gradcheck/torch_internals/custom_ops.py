"""Functions that torch makes of what users wrote: of operators of torch.library, and of Functions under torch.vmap."""

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
        setup_context: what was given with it; None for none.
    """

    name: str
    arguments: tuple[str, ...]
    backward: Callable[..., Any]
    setup_context: Callable[..., Any] | None = None


def custom_op_of(function: type[Function]) -> CustomOp | None:
    """The operator whose backward a Function is; None for any other Function, and for a torch that makes it otherwise.

    torch builds such a class for each operator, and keeps the operator and its formula in what the methods close over.
    """
    if not function.__name__.startswith("GeneratedBackwardFor_"):
        return None
    kept = {**_closure(function.forward), **_closure(function.backward)}
    info = kept.get("info")
    backward, setup = getattr(info, "_backward_fn", None), getattr(info, "_setup_context_fn", None)
    schema = getattr(kept.get("op"), "_schema", None)
    if backward is None or schema is None:
        return None
    return CustomOp(schema.name, tuple(argument.name for argument in schema.arguments), backward, setup)


def written_for(operator: Any) -> Any:
    """The function that `torch.library.custom_op` has made an operator of; anything else itself."""
    return getattr(operator, "_init_fn", operator)


def users_function(function: type[Function]) -> type[Function] | None:
    """The Function that the user wrote: `function`, or what torch.vmap has made it of; None for one of torch's own.

    torch builds a class for each call under vmap. The class behind an operator of torch.library stands for itself.
    """
    if not function.__module__.startswith("torch.") or custom_op_of(function) is not None:
        return function
    found = _closure(function.forward).get("autograd_function") if function.__name__.startswith("Vmapped") else None
    return users_function(found) if isinstance(found, type) else None


def name_of_function(function: type[Function]) -> str:
    """What the user calls a Function: its own name or, of an operator, that of the operator, such as `mylib::swish`."""
    operator = custom_op_of(function)
    return function.__name__ if operator is None else operator.name


def _closure(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    return (
        {}
        if code is None or cells is None
        else dict(zip(code.co_freevars, (c.cell_contents for c in cells), strict=True))
    )
