"""The user's loss as an object: what it holds, and J as a function of nothing in a given precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.batch import BatchCopy

Loss = Callable[[], Any]


def batch_loss(model: nn.Module, loss_fn: Callable[..., Any], batch: Any, dtype: torch.dtype | None) -> Loss:
    """J as a function of nothing: the model called on the batch as API.md's table says, then `loss_fn`.

    A tuple or list is `(inputs, *targets)`; a mapping is the model's keyword arguments; anything else its one input.
    Inputs that are themselves a tuple or list are positional arguments, a mapping keyword arguments.
    """
    if isinstance(batch, tuple | list) and not batch and not hasattr(batch, "_fields"):
        raise InvalidRequestError(
            "batch is empty; give (inputs, *targets), a mapping of keyword arguments, or a tensor."
        )
    copy = BatchCopy(batch, dtype)

    def loss() -> Any:
        fresh = copy.fresh()
        inputs, targets = (fresh[0], fresh[1:]) if _is_sequence(fresh) else (fresh, ())
        return _fitting("loss_fn", loss_fn, (_called(model, inputs), *targets), {})

    return loss


def _called(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        if not all(isinstance(name, str) for name in inputs):
            raise InvalidRequestError(f"batch has keys that are no names of arguments: {list(inputs)}.")
        return _fitting("model", model, (), inputs)
    return _fitting("model", model, tuple(inputs) if _is_sequence(inputs) else (inputs,), {})


def _fitting(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the call gives; a call that its signature has no place for is the batch's fault."""
    try:
        return function(*args, **kwargs)
    except TypeError as error:
        misfit = _misfit(function.forward if isinstance(function, nn.Module) else function, args, kwargs)
        if not misfit:
            raise
        raise InvalidRequestError(
            f"batch does not fit {name}: it is called with {_counted(args, kwargs)}, and {misfit}. A batch is "
            "(inputs, *targets); inputs that are a tuple or list are positional arguments of the model, a mapping its "
            "keyword arguments."
        ) from error


def _counted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """How many arguments of which kind."""
    keywords = f" and the keywords {list(kwargs)}" if kwargs else ""
    return f"{len(args)} positional argument{'' if len(args) == 1 else 's'}{keywords}"


def _misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Why the arguments do not fit the signature of a function; "" where they do, or it has none to be read."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return f"has the signature {signature}: {error}"
    return ""


def _is_sequence(value: Any) -> bool:
    """Whether `value` lists several things; a PackedSequence is a tuple to Python but one input to a model."""
    return isinstance(value, tuple | list) and not isinstance(value, nn.utils.rnn.PackedSequence)


NOTHING: Any = object()
"""Stands for a batch that was not given."""


def closure_loss(closure: Callable[..., Any], batch: Any, precision: torch.dtype | None) -> Callable[[], Any]:
    """J as a closure of the batch, or of nothing."""
    if batch is NOTHING:
        return closure
    copy = BatchCopy(batch, precision)
    return lambda: closure(copy.fresh())


Computation = Callable[[torch.dtype | None], Callable[[], Any]]
"""From the precision of the check (None: every tensor's own) to the function that computes the loss."""
