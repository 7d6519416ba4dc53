"""What torch does not take of a hook: told with its line, what it is registered on, what it was given and returned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.given import of_value
from torch_gradcheck.objective.refused_places import first_line, named_module
from torch_gradcheck.objective.signatures import callable_name, signature_of
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.function_calls import unbound
from torch_gradcheck.torch_internals.watched_hooks import HookKind, HookRun, HookWatch

OF_RETURNED = re.compile(
    r"^hook '.*' has changed the |^expected Variable, but hook returned |^Backward (?:pre )?hook returned an invalid"
)
"""How torch speaks of what a hook has returned."""

ADVICE = "Have it return None to leave the gradient as it is, or one of the same shape and dtype."

IN_DOUBLE = " A check runs in float64: have the hook keep the dtype that it is given, or check with dtype={}."


def of_hook(error: Exception, watch: HookWatch, names: Mapping[int, str]) -> str | None:
    """What is wrong with the hook that torch has refused; None where it speaks of none.

    Args:
        error: what torch has raised.
        watch: what has seen the hooks that ran.
        names: the names of modules and parameters, by id.
    """
    last = watch.last
    if last is not None and not last.is_finished:
        does_not_fit = isinstance(error, TypeError) and unbound(last.hook, *last.given)
        return _of_call(error, last, names) if does_not_fit else None
    found = watch.last_to_change
    return None if found is None or not OF_RETURNED.match(str(error)) else _of_returned(error, found, names)


def _of_call(error: Exception, run: HookRun, names: Mapping[int, str]) -> str:
    signature = signature_of(run.hook)
    return (
        f"{_named(run, names)} has the signature {signature or '(unknown)'}, and torch calls it with {run.kind.value} "
        f"(torch says: {first_line(error)}). Have it take these."
    )


def _of_returned(error: Exception, run: HookRun, names: Mapping[int, str]) -> str:
    given, returned = run.given[-1] if run.kind is not HookKind.MODULE else run.given[1], run.returned
    told = (
        f"{_named(run, names)} returned {_in_words(returned, given)} in place of {_in_words(given, returned)} "
        f"(torch says: {first_line(error)}). {ADVICE}"
    )
    return told + _on_precision(given, returned)


def _on_precision(given: Any, returned: Any) -> str:
    """What to do where a hook has brought a gradient of the check into the precision that training has."""
    is_lower = _is_real(given) and _is_real(returned) and returned.dtype != given.dtype
    return IN_DOUBLE.format(returned.dtype) if is_lower and given.dtype is torch.float64 else ""


def _is_real(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _in_words(value: Any, beside: Any) -> str:
    """A gradient, or a tuple of these, by shapes; with the dtype where that is not the one of what stands beside it."""
    if isinstance(value, tuple | list):
        others = [*beside, *[None] * len(value)] if isinstance(beside, tuple | list) else [None] * len(value)
        inside = ", ".join([_in_words(one, other) for one, other in zip(value, others, strict=False)])
        return f"({inside}{',' if len(value) == 1 else ''})"
    other = getattr(beside, "dtype", None)
    is_odd = _is_real(value) and other not in (None, value.dtype)
    return f"{of_value(value)}{f' ({value.dtype})' if is_odd else ''}"


def _named(run: HookRun, names: Mapping[int, str]) -> str:
    """A hook by its name, its line, and what it is registered on."""
    kind = "the hook" if run.kind is HookKind.TENSOR else "the backward hook"
    return f"{kind} {callable_name(run.hook).strip('<>')}{at_line_of(run.hook)}{_on(run, names)}"


def _on(run: HookRun, names: Mapping[int, str]) -> str:
    name = names.get(id(run.owner))
    if isinstance(run.owner, nn.Module):
        return f" of {named_module(name or '', run.owner)}"
    if name is not None:
        return f" of {name}"
    return "" if run.place is None else f", registered in {run.place},"
