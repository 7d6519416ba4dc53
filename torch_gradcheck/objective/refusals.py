"""What torch refuses when J is first evaluated, told with the module, what it was given, and what it wants.

An exception is torch's where a function of torch raises it: in C++, or by a `raise` in torch's own Python. It then
becomes a `MisfitError`, raised from the original, with torch's words in it. What other code raises comes through as it
is, as does what torch says of memory, of a device that failed, of a matrix that is singular, and in a backward. To tell
who has raised, J is evaluated once more with calls of torch watched; where it raises otherwise then, nothing is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from torch_gradcheck.errors import GradcheckError, MisfitError
from torch_gradcheck.objective.given import Given, of_tensor, of_value
from torch_gradcheck.objective.nested import children_of, tensors_in
from torch_gradcheck.objective.refused_functions import of_function
from torch_gradcheck.objective.refused_graphs import of_graph
from torch_gradcheck.objective.refused_module_calls import of_module_call
from torch_gradcheck.objective.refused_places import at_line, first_line, is_torchs, place_of
from torch_gradcheck.objective.signatures import callable_name
from torch_gradcheck.objective.wants import wants_of, wants_of_function
from torch_gradcheck.torch_internals.refused_calls import (
    RefusedCall,
    comes_from_torch,
    has_no_forward,
    lacks_backward,
    may_be_torchs,
    operator_without_backward,
    raises_itself,
    refused_call,
    without_backward,
)

InWords = Callable[[Sequence[Any], Mapping[str, Any]], str]
"""Tells of positional and keyword arguments."""

MOST = 4
"""How many arguments of a call it tells of."""


def refusal(error: Exception, again: Callable[[], object], model: nn.Module, given: Given) -> MisfitError | None:
    """The error to raise from one that came out of J; None where that is the user's own, and comes through.

    Args:
        error: what J has raised.
        again: evaluates J once more.
        model: the lent model.
        given: what the caller gave.
    """
    if isinstance(error, GradcheckError):
        return None
    misfit = _misfit(error, model, given)
    if misfit is not None:
        return misfit
    if may_be_torchs(error):
        call = refused_call(error, again)
        if call is not None:
            return MisfitError(_sentence(error, call, model, given))
    if isinstance(error, TypeError | AttributeError) and not raises_itself(error):
        foreign = _of_foreign(error, given)
        return MisfitError(f"{foreign} ({type(error).__name__}: {first_line(error)}).") if foreign else None
    return None


def raise_any(why: Exception | None, error: Exception) -> None:
    """Raises the one exception from the other, if there is one; no frame holds on to it then."""
    try:
        if why is not None:
            raise why from error
    finally:
        del why, error


def refused_output(error: Exception, output: Any, given: Given) -> MisfitError | None:
    """The error to raise where torch, called by the loss function, cannot take what the model returns; else None.

    Args:
        error: what the loss function has raised.
        output: what the model has returned.
        given: what the caller gave.
    """
    if isinstance(error, GradcheckError) or isinstance(output, torch.Tensor) or not comes_from_torch(error):
        return None
    kind, said = type(output).__name__, first_line(error)
    if kind not in said:
        return None
    if output is None:
        return MisfitError(f"the model returned None: is the `return` of its forward missing? ({said})")
    inside, part = _parts(output)
    return MisfitError(
        f"the model returned {of_value(output)}{inside}, which {given.named} cannot take ({said}): give a loss_fn that "
        f"picks what it needs, as `lambda out, *targets: loss(out{part}, *targets)`."
    )


def refused_backward(error: Exception) -> MisfitError | None:
    """The error to raise where a Function, or an operation of torch's for such tensors, has no backward; else None."""
    function = without_backward(error)
    if function is not None:
        return MisfitError(f"autograd.Function {function} has no backward: write one, as a static method of that name.")
    operator = operator_without_backward(error)
    if operator is not None:
        return MisfitError(
            f"the operator {operator} has no backward: register one, by its register_autograd(backward, "
            "setup_context=setup_context)."
        )
    if isinstance(error, GradcheckError) or not lacks_backward(error):
        return None
    return MisfitError(
        f"the backward of an operation has no kernel in torch for the tensors that it was given, so there is no "
        f"gradient to check (torch says: {first_line(error)}): give that operation dense tensors, as x.to_dense(), or "
        "write its backward in an autograd.Function."
    )


def _parts(output: Any) -> tuple[str, str]:
    """What a tuple or mapping holds, and how its first part is taken from it."""
    inside = children_of(output)[:MOST]
    if not inside:
        return "", ".logits"
    return f" ({', '.join([f'{path} is {of_value(each)}' for path, each in inside])})", inside[0][0]


def _sentence(error: Exception, call: RefusedCall, model: nn.Module, given: Given) -> str:
    """Where torch refused, what it was given there, what it wants, its own words, and the batch."""
    says = f"(torch says: {first_line(error)})."
    foreign = _of_foreign(error, given) if isinstance(error, TypeError) else ""
    if foreign:
        return f"{foreign} {says}"
    place, inner = place_of(error, model, given)
    if inner is not None and has_no_forward(error):
        return f"{place} was called and has no forward{_forward_of(inner.module)}"
    given_as = _way_of_telling(error)
    if inner is not None and is_torchs(inner.module):
        told = f"{place} was given {given_as(inner.args, inner.kwargs)}{wants_of(inner.module, inner.args)}"
    elif _is_itself(call, given):
        told = f"{place} was given {given_as(call.args, call.kwargs)}"
    else:
        told = f"{place}{at_line(error, place)} calls {_of_function(call, given_as)}"
    handed = f" The check was given {given.shapes}." if given.shapes else ""
    return f"{told} {says}{handed}"


def call_in_words(error: Exception, call: RefusedCall) -> str:
    """A call of torch that an exception has come out of, and what it was given."""
    return _of_function(call, _way_of_telling(error))


def _way_of_telling(error: Exception) -> InWords:
    """Tells of the arguments of a call: by their kinds where one is of the wrong kind, else by their shapes."""
    return _kinds if isinstance(error, TypeError) else _given


def misdeed(error: Exception) -> tuple[str, str] | None:
    """What code does to a Function or to a graph that torch has refused, and what to do; None of other things."""
    of_call = of_function(error)
    return of_graph(error) if of_call is None else (of_call, "")


def _misfit(error: Exception, model: nn.Module, given: Given) -> MisfitError | None:
    """The error to raise where a Function, a graph, or the call of a module is not as torch takes it; else None."""
    of_call = of_module_call(error, model)
    if of_call is not None:
        return MisfitError(of_call)
    does = misdeed(error)
    return None if does is None else MisfitError(doing(error, *does, place_of(error, model, given).named))


def doing(error: Exception, does: str, advice: str, place: str) -> str:
    """What the code at the place where torch refused does, torch's own words, and what to do."""
    said = first_line(error).partition(". ")[0]  # what follows is torch's advice
    told = f"{place}{at_line(error, place)} {does} (torch says: {said})."
    return f"{told} {advice[0].upper()}{advice[1:]}." if advice else told


def _is_itself(call: RefusedCall, given: Given) -> bool:
    """Whether the function that was given is the one of torch that refused, as in check_function(torch.matmul, ...)."""
    return given.function is not None and call.function.rpartition(".")[2] == callable_name(given.function)


def _of_foreign(error: Exception, given: Given) -> str:
    """The words on a string or an array of the batch whose type the error names; "" where it names none."""
    for name, value in given.foreign:
        kind, advice = type(value).__name__, "give what a tokenizer makes of it"
        if not isinstance(value, str | bytes):
            kind, advice = "numpy", f"give torch.from_numpy({name})"
        if kind in str(error):
            return f"{name} is {of_value(value)}, which neither the model nor the loss can take: {advice}"
    return ""


def _forward_of(module: nn.Module) -> str:
    """What to do where a module has no forward: it is a container, calls it otherwise, or none was written."""
    if is_torchs(module):
        return ": it only holds others; call these one by one, or put them into nn.Sequential."
    own = {name for name in dir(type(module)) if not name.startswith("_")} - {*dir(nn.Module)}
    close = get_close_matches("forward", own, n=1)
    return (
        f"; is its {close[0]} meant?" if close else ": define one, as `def forward(self, x): ...` inside of the class."
    )


def _of_function(call: RefusedCall, given_as: InWords) -> str:
    """A function of torch's, what it was given and, where that is tensors, what it wants."""
    if not call.function:
        return "torch"
    arguments = given_as(call.args, call.kwargs) if call.args or call.kwargs else ""
    wants = wants_of_function(call.function, _tensors(call.args, call.kwargs)) if given_as is _given else ""
    return f"{call.function}{arguments and f', which was given {arguments}'}{wants}"


def _kinds(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call by what they are: "a tuple and a tensor of shape (32,) int64"."""
    given = [of_value(each) for each in [*args, *kwargs.values()] if each is not None]
    return " and ".join(given[:MOST]) or ("None" if args else "nothing")


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The arguments of a call: "an input of shape (32, 7)", "tensors of shapes (32, 7) and (8, 16)", "a list"."""
    shapes = [of_tensor(each) for each in _tensors(args, kwargs)]
    if not shapes:
        return _kinds(args, kwargs)
    return f"an input of shape {shapes[0]}" if len(shapes) == 1 else f"tensors of shapes {' and '.join(shapes[:MOST])}"


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [tensor for _, tensor in tensors_in([list(args), dict(kwargs)])]
