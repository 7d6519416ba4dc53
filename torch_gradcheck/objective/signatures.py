"""The signatures of what can be called with tensors: names of arguments, and why given arguments do not fit."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from torch import nn
from torch.autograd import Function

from torch_gradcheck.torch_internals.function_calls import is_apply
from torch_gradcheck.torch_internals.modules import uncompiled
from torch_gradcheck.torch_internals.operations import operator_name, schemas_of

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The signature as the caller sees it; None where there is none to be read, as of builtin functions of torch.

    Of `MyFunction.apply` it is that of `forward`, without `ctx`; of an operator or a scripted function that of its
    schema; of a module that of its `forward`.
    """
    function = inspect.unwrap(function, stop=lambda each: hasattr(each, "__signature__"))
    if isinstance(function, functools.partial):
        return _of_partial(function)
    applied = function_applied_by(function)
    if applied is not None:
        return _of_forward(applied)
    schemas = schemas_of(function)
    if schemas:
        return _of_schema(schemas[0]) if len(schemas) == 1 else None
    return _read(uncompiled(function).forward if isinstance(function, nn.Module) else function)


def function_applied_by(function: Any) -> type[Function] | None:
    """The Function whose own `apply` this is; None of anything else, also of an `apply` that a Function overrides."""
    owner = getattr(function, "__self__", None)
    return owner if is_apply(function) and isinstance(owner, type) and issubclass(owner, Function) else None


def argument_names(function: Callable[..., Any], count: int) -> list[str]:
    """The names of the first `count` positional arguments: `args[2]` for one that has none."""
    signature = signature_of(function)
    names = (
        [] if signature is None else [each.name for each in signature.parameters.values() if each.kind in POSITIONAL]
    )
    return [*names[:count], *[f"args[{position}]" for position in range(len(names), count)]]


def positional(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Keyword arguments as they can be given: `apply` of a Function takes positional ones only, up to the last given.

    Returns positional and keyword arguments.
    """
    signature = signature_of(function)
    if function_applied_by(function) is None or signature is None:
        return (), arguments
    try:
        bound = signature.bind(**arguments)
    except TypeError:
        return (), arguments  # to be refused by the call
    last = max([position for position, name in enumerate(signature.parameters) if name in arguments], default=-1)
    bound.apply_defaults()
    return bound.args[: last + 1], {}


def callable_name(function: Callable[..., Any]) -> str:
    """What a report calls it: the Function that `apply` is of, an operator's or a function's own name, a class."""
    function = inspect.unwrap(function)
    if isinstance(function, functools.partial):
        return callable_name(function.func)
    if isinstance(function, nn.Module):
        return type(uncompiled(function)).__name__
    named = function_applied_by(function) or function
    return operator_name(function) or str(getattr(named, "__name__", type(function).__name__))


def misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why the arguments do not fit, as "it has the signature (x): ..."; "" where they do, or nobody can tell."""
    signature = signature_of(function)
    if signature is None:
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"has the signature {signature}: {error}"
    return ""


def counted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """The arguments counted, as "2 positional arguments and the keywords ['mask']"."""
    keywords = f" and the keywords {list(kwargs)}" if kwargs else ""
    return f"{len(args)} positional argument{'' if len(args) == 1 else 's'}{keywords}"


def _of_partial(function: functools.partial[Any]) -> inspect.Signature | None:
    of = signature_of(function.func)
    return None if of is None else _read(functools.partial(_Signed(of), *function.args, **function.keywords))


class _Signed:
    """Has a signature, for `inspect` to bind arguments to."""

    def __init__(self, signature: inspect.Signature) -> None:
        self.__signature__ = signature

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...


def _of_forward(function: type[Function]) -> inspect.Signature | None:
    signature = _read(function.forward)
    if signature is None or function.setup_context is not Function.setup_context:
        return signature
    parameters = list(signature.parameters.values())
    return signature.replace(parameters=parameters[bool(parameters and parameters[0].kind in POSITIONAL) :])


def _of_schema(arguments: tuple[Any, ...]) -> inspect.Signature | None:
    try:
        return inspect.Signature([_parameter(argument) for argument in arguments])
    except ValueError:  # an argument without a default behind one that has one
        return None


def _parameter(argument: Any) -> Parameter:
    kind = Parameter.KEYWORD_ONLY if argument.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD
    default = argument.default_value if argument.has_default_value() else Parameter.empty
    return Parameter(argument.name, kind, default=default)


def _read(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None
