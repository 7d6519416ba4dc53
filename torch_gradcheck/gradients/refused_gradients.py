"""What torch does not take of the backward of a Function, told with its line, the argument, what it got and wants.

Torch names none of these: it looks at gradients when the backward has returned. So J and its backward are run once
more, and the last backward that has run is the one that torch speaks of. So it is with hooks, with what was written to
after it was saved, and with operations that a backward calls. What code of the user's raises itself comes through as it
is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import nn

from torch_gradcheck.errors import GradcheckError, MisfitError
from torch_gradcheck.gradients.context_notes import note_what_is_missing
from torch_gradcheck.gradients.kept_graphs import KeptGraphs
from torch_gradcheck.gradients.last_backward import LastBackward
from torch_gradcheck.gradients.overwritten_values import of_overwritten
from torch_gradcheck.gradients.refused_hooks import of_hook
from torch_gradcheck.objective.given import of_tensor, of_value
from torch_gradcheck.objective.refusals import call_in_words, doing, misdeed, raise_any, refused_backward
from torch_gradcheck.objective.refused_places import at_line, first_line
from torch_gradcheck.objective.signatures import signature_of
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import backward_of, graph_is_used_up, input_forms
from torch_gradcheck.torch_internals.modules import named_modules
from torch_gradcheck.torch_internals.refused_calls import (
    KINDS,
    RefusedCall,
    call_of,
    has_run_a_backward,
    is_raised_by_the_user,
    may_be_of_an_operation,
)
from torch_gradcheck.torch_internals.refused_gradients import (
    code_in_a_backward,
    is_of_calling_backward,
    is_of_returned_gradients,
    refused_position,
    returned_under_vmap,
)
from torch_gradcheck.torch_internals.watched_hooks import HookWatch, tensors_with_hooks
from torch_gradcheck.torch_internals.written_tensors import WriteWatch, overwritten_in

T = TypeVar("T")

IN_ORDER = (
    "Return as a tuple what forward's arguments get, in their order: a tensor, or None for one that needs no gradient."
)

ORDINARY = (
    "Return an ordinary real tensor of the argument's own shape: of a complex one its .real, where that is meant."
)

MOST_ARGUMENTS = 6
"""Names of arguments that a refusal repeats."""


def told(run: Callable[[], T], model: nn.Module) -> T:
    """What `run` returns; raises a `MisfitError` where torch cannot use the backward of a Function in it.

    Args:
        run: a run of J and its backward, which is repeated where torch has refused that.
        model: the lent model.
    """
    try:
        return run()
    except Exception as error:
        raise_any(_refused(error, run, model), error)
        note_what_is_missing(error)
        raise


def _refused(error: Exception, again: Callable[[], object], model: nn.Module) -> MisfitError | None:
    """The error to raise from one that came out of a run of J; None where that is the user's own."""
    if isinstance(error, GradcheckError) or not _is_of_a_backward(error):
        return refused_backward(error)
    run = _SecondRun(model)
    try:
        with warnings.catch_warnings(), run:
            warnings.simplefilter("ignore")  # they have been shown
            again()
    except Exception as second:
        said = run.said(error, second)
        return refused_backward(error) if said is None else MisfitError(said)
    return None


def _is_of_a_backward(error: Exception) -> bool:
    """Whether torch or Python has raised an exception in a backward."""
    is_torchs = type(error) in KINDS or returned_under_vmap(error) is not None
    return is_torchs and has_run_a_backward(error) and not is_raised_by_the_user(error)


class _SecondRun:
    """All that is watched while a run is repeated whose backward has been refused."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._last, hooked = model, LastBackward(model), tensors_with_hooks(model)
        modules = list(named_modules(model))
        where = self._where
        self._hooks = HookWatch(
            [tensor for _, tensor in hooked], [module for _, module in modules], where, self._last.calls
        )
        self._writes = WriteWatch(where)
        self._kept = KeptGraphs(model)
        self._names = {id(each): name for name, each in [*modules, *hooked]}
        self._open: list[Any] = []

    def __enter__(self) -> None:
        for watch in (self._last, self._kept, self._hooks, self._writes):
            watch.__enter__()
            self._open.append(watch)

    def __exit__(self, *exception: object) -> None:
        while self._open:
            self._open.pop().__exit__(*exception)

    def _where(self) -> str | None:
        return self._last.current_module

    def said(self, error: Exception, second: Exception) -> str | None:
        """What is wrong, from the error and the one of the second run; None where that is another, or nobody knows."""
        call = self._last.calls.refused(second)
        if type(second) is not type(error) or str(second) != str(error):
            return None
        if (overwritten := overwritten_in(error)) is not None:
            return of_overwritten(overwritten, self._writes)
        if (hook := of_hook(error, self._hooks, self._names)) is not None:
            return hook
        return self._of_backward(error) or self._of_code(error, call_of(error, second, call))

    def _of_backward(self, error: Exception) -> str | None:
        """What is wrong with how a backward is called, or with what it returns."""
        has_returned = is_of_returned_gradients(error)
        if has_returned and returned_under_vmap(error) is not None:
            return _of_vmap(error, self._last) if self._last.is_known(False) else None
        if not (has_returned or is_of_calling_backward(error)) or not self._last.is_known(has_returned):
            return None
        return _of_returned(error, self._last) if has_returned else _of_called(error, self._last)

    def _of_code(self, error: Exception, call: RefusedCall | None) -> str | None:
        """What code of the user's does in a backward that torch has refused."""
        code, does = code_in_a_backward(error), misdeed(error)
        if code is None and graph_is_used_up(error):
            return self._kept.said
        if does is not None:
            return doing(error, *does, self._running(code))
        if code is None or call is None or not may_be_of_an_operation(error):
            return None
        place = self._running(code)
        return f"{place}{at_line(error, place)} calls {call_in_words(error, call)} (torch says: {first_line(error)})."

    def _running(self, code: CodeType | None) -> str:
        """What runs this code: the backward of a Function, else what has it."""
        function = self._last.function
        if code is None:
            return "J"
        if self._last.node is not None and getattr(backward_of(function), "__code__", None) is code:
            return self._last.name.rstrip(",")
        return f"{code.co_name.strip('<>')}, which runs in a backward"


def _of_returned(error: Exception, last: LastBackward) -> str | None:
    """The words on gradients that torch does not take; None where they are right, and a hook has changed them."""
    assert last.returned is not None
    position = refused_position(error, last.node, last.returned)
    names, says = last.arguments, f"(torch says: {first_line(error)})."
    if position is None:
        counted = f"{_counted(last.returned[: last.count])} and forward takes {_takes(names)}"
        return f"{last.name} returned {counted} {says} {IN_ORDER}"
    gradient, form = last.returned[position], input_forms(last.node).get(position)
    name = _name(names, position)
    if form is None or not isinstance(gradient, torch.Tensor):
        of_none = ", which needs none" if form is None else ""
        return f"{last.name} returned {of_value(gradient)} as the gradient of {name}{of_none} {says} {IN_ORDER}"
    if gradient.is_nested or gradient.is_quantized or (gradient.is_complex() and not form.dtype.is_complex):
        return f"{last.name} returned for {name} {_unlike(gradient)}, and {name} is {form.dtype} {says} {ORDINARY}"
    if (tuple(gradient.shape), gradient.device) == (form.shape, form.device):
        return None
    where = "" if gradient.device == form.device else f" on {form.device}"
    return (
        f"{last.name} returned for {name} a gradient of shape {of_tensor(gradient)}, and {name} has shape "
        f"{form.shape}{where} {says} Return for each argument a gradient of its own shape, on its device."
    )


def _unlike(gradient: torch.Tensor) -> str:
    """A gradient in a form that its argument has not."""
    kind = "nested" if gradient.is_nested else "quantized" if gradient.is_quantized else f"complex ({gradient.dtype})"
    return f"a gradient that is {kind}"


def _of_vmap(error: Exception, last: LastBackward) -> str | None:
    """The words on what a backward that runs under torch.vmap has returned, of one sample."""
    found, names = returned_under_vmap(error), last.arguments
    if found is None:
        return None
    says = f"(torch says: {first_line(error)})."
    for position, (gradient, shape) in enumerate(zip(found.returned, found.wanted, strict=False)):
        name = _name(names, position)
        if gradient is not None and not isinstance(gradient, torch.Tensor):
            return f"{last.name} returned {of_value(gradient)} as the gradient of {name} {says} {IN_ORDER}"
        if gradient is not None and shape is not None and not _sums_to(tuple(gradient.shape), shape):
            return (
                f"{last.name} returned for {name} a gradient of shape {of_tensor(gradient)} for each sample of "
                f"torch.vmap, and {name} has shape {shape} there {says} Return for each argument a gradient of its own "
                "shape."
            )
    return None


def _sums_to(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether autograd can sum a gradient of one shape to that of its argument, which broadcasting has enlarged."""
    ends = shape[len(shape) - len(wanted) :]
    return len(shape) >= len(wanted) and all(b in (a, 1) for a, b in zip(ends, wanted, strict=True))


def _name(names: Sequence[str], position: int) -> str:
    return names[position] if position < len(names) else f"argument {position}"


def _counted(returned: tuple[Any, ...]) -> str:
    """What a backward has returned as a whole, as "2 gradients", "None", "a list"."""
    if len(returned) == 1 and not isinstance(returned[0], torch.Tensor):
        return f"{of_value(returned[0])}, which counts as one gradient,"
    return f"{len(returned)} gradient{'' if len(returned) == 1 else 's'},"


def _takes(names: Sequence[str]) -> str:
    """The arguments of a forward, as "2 arguments (x, w)"."""
    return f"{len(names)} argument{'' if len(names) == 1 else 's'} ({listed(names, MOST_ARGUMENTS)})"


def _of_called(error: Exception, last: LastBackward) -> str:
    """The words on a backward that torch cannot call."""
    says = f"(torch says: {first_line(error)})."
    gradients = "1 gradient" if last.given == 1 else f"{last.given} gradients"
    return (
        f"{last.name} has the signature {_signature(backward_of(last.function))}, and torch calls it with ctx and "
        f"{gradients}, one for each output of forward {says} Have it take these."
    )


def _signature(backward: Callable[..., Any]) -> str:
    signature = signature_of(backward)
    return "(unknown)" if signature is None else str(signature)
