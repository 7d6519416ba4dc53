"""The call of an autograd.Function that torch has refused, as the frames of the exception have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from traceback import walk_tb
from types import BuiltinMethodType, FrameType
from typing import Any, NamedTuple

from torch.autograd import Function

from torch_gradcheck.torch_internals.code_lines import is_frame_of_the_user

APPLY = getattr(getattr(Function.apply, "__func__", None), "__code__", None)
"""The code by which every Function is applied; None where it is C++, as from torch 2.15 on, and has no frames."""

LEGACY = Function.__call__.__code__
"""The code that runs where an instance of a Function is called."""


class Application(NamedTuple):
    """A call of a Function, or of an operator of torch.library, that an exception of torch has come out of.

    Attributes:
        function: the Function.
        args, kwargs: what it was given.
        is_an_instance: an instance was called, and not `apply`.
    """

    function: type[Function]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    is_an_instance: bool = False

    @property
    def has_context_apart(self) -> bool:
        """Whether forward is given no context, since `setup_context` gets it."""
        return self.function.setup_context is not Function.setup_context

    def misfits(self) -> str:
        """Why forward cannot take what was given, as "missing a required argument: 'w'"; "" where it can."""
        context = () if self.has_context_apart else (None,)
        return unbound(self.function.forward, *context, *self.args, **self.kwargs)


def application_of(error: BaseException) -> Application | None:
    """The application of a Function that an exception has come out of; None where code of the user's ran since."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    last = max([k for k, frame in enumerate(frames) if is_frame_of_the_user(frame)], default=-1)
    applied = [found for frame in frames[last + 1 :] if (found := _applied_in(frame)) is not None]
    return applied[0] if applied else None  # those behind it are of classes that torch has made of it


def _applied_in(frame: FrameType) -> Application | None:
    given = frame.f_locals
    if frame.f_code is APPLY:
        return Application(given["cls"], given["args"], given["kwargs"])
    if frame.f_code is LEGACY:
        return Application(type(given["self"]), given["args"], given["kwargs"], is_an_instance=True)
    return None


def is_apply(function: object) -> bool:
    """Whether this is the `apply` of a Function that does not override it."""
    if APPLY is None:
        return isinstance(function, BuiltinMethodType) and function.__name__ == "apply"
    return getattr(getattr(function, "__func__", None), "__code__", None) is APPLY


def unbound(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Why a function cannot be called with these arguments; "" where it can, or nobody can tell."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:  # it has no signature
        return ""
    return ""
