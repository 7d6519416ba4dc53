"""In-place and out= operations as functions without side effects."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from torch_gradcheck.torch_internals.operations import (
    OpOverload,
    flatten,
    is_written,
    name_of,
    schema_arguments,
    sibling,
)


def mutated_arguments(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that the operation writes to, in the order of its signature."""
    if not func._schema.is_mutable:
        return []
    written = []
    for position, argument in enumerate(func._schema.arguments):
        if is_written(argument):
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            written += flatten([given])
    return written


@cache
def without_side_effects(func: OpOverload, plain: bool) -> Callable[..., Any]:
    """A function of the same arguments that returns what the written arguments would hold.

    Args:
        func: the operation.
        plain: whether the operation's functional form, if there is one, gives the same numbers. Otherwise the
            operation runs on copies, and the function returns these copies and then the operation's other results.
    """
    if not plain:
        return OnCopies(func)
    name, arguments = name_of(func), schema_arguments(func)
    if name.endswith("_") and not name.endswith("__"):
        functional = sibling(func, name[:-1])
        if functional is not None and len(schema_arguments(functional)) == len(arguments):
            return functional
    if arguments[-1].name == "out":
        return _returning(func) or OnCopies(func)
    return OnCopies(func)


def _returning(func: OpOverload) -> Callable[..., Any] | None:
    """The overload with the arguments of an out= operation except `out`; calls of it must not be given `out`."""
    wanted = [(argument.name, str(argument.type)) for argument in schema_arguments(func)[:-1]]
    for overload in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, overload)
        if [(argument.name, str(argument.type)) for argument in schema_arguments(other)] == wanted:
            return other  # type: ignore[no-any-return]
    return None


class OnCopies:
    """Runs a mutating operation on copies of what it writes to; returns the copies, then its other results."""

    def __init__(self, func: OpOverload) -> None:
        self.func = func
        self.__name__ = name_of(func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        args, kwargs = self._copied(args, kwargs)
        result = self.func(*args, **kwargs)
        written = mutated_arguments(self.func, args, kwargs)
        return (*written, *(x for x in flatten(result) if not any(x is copy for copy in written)))

    def _copied(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional, named = list(args), dict(kwargs)
        for position, argument in enumerate(schema_arguments(self.func)):
            if not is_written(argument):
                continue
            if position < len(positional):
                positional[position] = _copy(positional[position])
            elif argument.name in named:
                named[argument.name] = _copy(named[argument.name])
        return tuple(positional), named


def _copy(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.clone()
    if isinstance(given, (list, tuple)):
        return type(given)(_copy(item) for item in given)
    return given
