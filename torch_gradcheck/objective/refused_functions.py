"""What torch refuses of how a Function is called forward, or of how it is written: told with its lines and arguments.

Torch raises it where the Function is applied, so the frames of the exception have all that is to be said.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch_gradcheck.objective.given import of_value
from torch_gradcheck.objective.refused_places import first_line
from torch_gradcheck.objective.signatures import signature_of
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import CustomOp, custom_op_of, users_function
from torch_gradcheck.torch_internals.function_calls import Application, application_of, unbound
from torch_gradcheck.torch_internals.refused_calls import is_raised_by_the_user

MOST = 6
"""How many arguments of a call are told of."""


class Slip(NamedTuple):
    """A mistake in a Function that torch finds while it runs forward.

    Attributes:
        words: how torch begins to speak of it.
        method: the method that has the mistake.
        told: what it does.
        advice: what to do instead.
    """

    words: re.Pattern[str]
    method: str
    told: str
    advice: str


SLIPS = (
    Slip(
        re.compile(r"^save_for_(?:backward|forward) can only save (?:variables|tensors)"),
        "forward",
        "saves something that is no tensor",
        "ctx.save_for_backward takes tensors alone, one by one: keep numbers and the like as attributes, as ctx.k = k",
    ),
    Slip(
        re.compile(r"^Some elements marked as dirty"),
        "forward",
        "marks as dirty what it does not return",
        "return the very tensor that was written to, or write to a copy and leave ctx.mark_dirty out",
    ),
    Slip(
        re.compile(r"^mark_non_differentiable only accepts"),
        "forward",
        "marks as not differentiable what is no tensor",
        "ctx.mark_non_differentiable takes outputs of forward",
    ),
    Slip(
        re.compile(r"^mark_dirty only accepts"),
        "forward",
        "marks as dirty what is no tensor",
        "ctx.mark_dirty takes arguments of forward that it has written to",
    ),
    Slip(
        re.compile(r"^a (?:view of a )?leaf Variable that requires grad (?:has been|is being) used in an in-place"),
        "forward",
        "writes to an argument that is a parameter, or another leaf that requires grad",
        "have it return a new tensor, or give it a copy, as x.clone()",
    ),
    Slip(
        re.compile(r"^In order to use an autograd\.Function with functorch transforms"),
        "forward",
        "takes ctx, and torch.func goes through it (vmap, grad, jvp, ...)",
        "have forward take its arguments alone, and save for the backward in setup_context(ctx, inputs, output)",
    ),
    Slip(
        re.compile(r"^You tried to vmap over \w+, but it does not have vmap support"),
        "",
        "has no rule for torch.vmap, which goes through it",
        "set generate_vmap_rule = True in its class if its methods are made of operations of torch, or write its vmap",
    ),
    Slip(
        re.compile(r"^You tried to vmap over \w+, but it has both"),
        "",
        "has two rules for torch.vmap",
        "leave out generate_vmap_rule = True or its vmap",
    ),
    Slip(
        re.compile(r"^Expected the vmap staticmethod to have two|^The autograd\.Function's vmap staticmethod returned"),
        "vmap",
        "does not return what torch.vmap takes",
        "return two things: the output, and in which of its dimensions the batch is, as (y, 0), in the same nest",
    ),
    Slip(
        re.compile(r"^You must implement the jvp function|^You must implement either the .* jvp"),
        "",
        "has no jvp, and forward-mode autograd goes through it",
        "write its jvp(ctx, *tangents), or take the gradient by torch.func.grad or vjp",
    ),
    Slip(
        re.compile(
            r"^Function's jvp returned|^Trying to set a forward gradient|^jvp is not allowed|"
            r".* INTERNAL ASSERT FAILED .*forward grad"
        ),
        "jvp",
        "does not return what forward-mode autograd takes",
        "return for each output of forward a tangent of its shape and dtype",
    ),
)


def of_function(error: Exception) -> str | None:
    """What is wrong with the call of a Function, or with the Function, that torch has refused; None of other things."""
    applied = None if is_raised_by_the_user(error) else application_of(error)
    if applied is None:
        return None
    operator = custom_op_of(applied.function)
    if operator is not None or users_function(applied.function) is not applied.function:
        return None if operator is None else _of_operator(operator)
    name = applied.function.__name__
    if applied.is_an_instance:
        return f"calls an instance of {name}: apply the Function itself, as {name}.apply(x)"
    of_call = _of_call(applied) if isinstance(error, TypeError) else None
    return of_call or _of_slip(first_line(error), applied)


def about_context(applied: Application) -> str:
    """What to do where forward does not take ctx and should, or does and should not; "" elsewhere."""
    forward, given = applied.function.forward, applied.args
    if not (applied.has_context_apart or _takes_context(forward) or unbound(forward, *given, **applied.kwargs)):
        return "torch gives it ctx in front of these; have it take ctx first, or write a setup_context"
    if applied.has_context_apart and _takes_context(forward) and not unbound(forward, None, *given, **applied.kwargs):
        return "beside a setup_context it is given no ctx; have it take the others alone"
    return ""


def _of_operator(operator: CustomOp) -> str | None:
    """The words on a setup_context that torch cannot call for an operator of torch.library."""
    setup = operator.setup_context
    if setup is None or not unbound(setup, ctx=None, inputs=None, output=None):
        return None
    return (
        f"calls {operator.name}, and the setup_context of its backward{at_line_of(setup)} has the signature "
        f"{_signature(setup)}: torch calls it with ctx, inputs and output, by these names"
    )


def _of_slip(said: str, applied: Application) -> str | None:
    slip = next((each for each in SLIPS if each.words.match(said)), None)
    if slip is None:
        return None
    method = _method(applied, slip.method) if slip.method else applied.function.__name__
    return f"applies {applied.function.__name__}; {method} {slip.told}: {slip.advice}"


def _of_call(applied: Application) -> str | None:
    """The words on a method that cannot take what torch calls it with."""
    misfits, name = applied.misfits(), applied.function.__name__
    if misfits:
        given = " and ".join(map(of_value, [*applied.args, *applied.kwargs.values()][:MOST])) or "nothing"
        return f"applies {name} to {given}, and {_signed(applied, 'forward')}: {_advice(applied, misfits)}"
    for method, wanted, args in _calls(applied):
        own = getattr(applied.function, method)
        if own is not getattr(applied.function.__base__, method, None) and unbound(own, *args):
            return f"applies {name}, and {_signed(applied, method)}: torch calls it with {wanted}"
    return None


def _calls(applied: Application) -> list[tuple[str, str, list[Any]]]:
    """The other methods that torch may call on the way forward, with what, in words and in numbers."""
    count = len(applied.args)
    return [
        ("setup_context", "ctx, the tuple of all inputs, and the output", [None] * 3),
        ("vmap", f"info, in_dims and the {count} arguments of forward", [None] * (2 + count)),
        ("jvp", f"ctx and {count} tangents, one for each argument of forward", [None] * (1 + count)),
    ]


def _advice(applied: Application, misfits: str) -> str:
    """What to do where forward does not fit: give it ctx, take ctx from it, or give other arguments."""
    in_front = "" if applied.has_context_apart else ", behind the ctx that torch gives it"
    return about_context(applied) or f"{misfits}{in_front}"


def _takes_context(forward: Callable[..., Any]) -> bool:
    """Whether the first argument of a forward is the context, by its name."""
    first = next(iter(inspect.signature(forward).parameters), "")
    return "ctx" in first or "context" in first or first in ("self", "_")


def _signed(applied: Application, method: str) -> str:
    own = getattr(applied.function, method)
    return f"{_method(applied, method)} has the signature {_signature(own)}"


def _method(applied: Application, method: str) -> str:
    return f"{applied.function.__name__}.{method}{at_line_of(getattr(applied.function, method))}"


def _signature(method: Callable[..., Any]) -> str:
    signature = signature_of(method)
    return "(unknown)" if signature is None else str(signature)
