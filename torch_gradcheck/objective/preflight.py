"""The preflight of J: before any verdict it must be one finite, deterministic number; else the module is named."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.errors import InvalidRequestError, NonDeterministicLossError, NonFiniteLossError
from torch_gradcheck.objective.collectives import refuse_synchronised
from torch_gradcheck.objective.given import UNKNOWN, Given
from torch_gradcheck.objective.held_values import HeldValues
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.objective import ROUNDOFF_BETWEEN_CALLS, Objective
from torch_gradcheck.objective.overflow import OverflowWatch
from torch_gradcheck.objective.own_steps import after_its_step
from torch_gradcheck.objective.refusals import raise_any, refusal
from torch_gradcheck.objective.scripted import fixed_to_a_precision
from torch_gradcheck.objective.second_order import Slope
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.reporting.words import LOSS_WORDS, LossWords, listed, noun
from torch_gradcheck.torch_internals.autograd import CHECKPOINT_WITHOUT_GRAPH
from torch_gradcheck.torch_internals.devices import lacks_float64_kernel
from torch_gradcheck.torch_internals.modules import module_at, modules_in_traceback, named_modules, named_parameters

Output = tuple[str, list[torch.Tensor]]


def preflighted(
    model: nn.Module,
    compute: Callable[[], Any],
    borrowed: Borrowed,
    dtype: torch.dtype,
    drawn_in: DrawnIn | None = None,
    beat: Callable[[], None] = lambda: None,
    hold_detached: bool = False,
    variables: Sequence[Variable] = (),
    words: LossWords = LOSS_WORDS,
    slope: Slope | None = None,
    given: Given = UNKNOWN,
    aside: Callable[[], Collection[torch.Tensor]] = list,
) -> Objective:
    """J, finished: evaluated at θ with a graph, then without one; without one is kept where both agree to the bit.

    The slope of another J is evaluated without a graph in any case.

    Args:
        model: the borrowed model.
        compute: J.
        borrowed: the way back to the first state around each evaluation of J.
        dtype: the precision J is evaluated in.
        drawn_in: the precisions of random draws, None for that of the check.
        beat: called before every evaluation.
        hold_detached: values at which the graph of J is cut are held; J is then evaluated with a graph.
        variables: the lent variables that J depends on besides the model's parameters.
        words: what a report calls the code that computes J.
        slope: J itself, where it is the slope of another one.
        given: what the caller gave to compute J.
        aside: gives the tensors that require a gradient and are not on trial; asked where J takes a step.

    Raises:
        NonScalarLossError: J is not one real number.
        NonFiniteLossError: J(θ) is NaN or infinite.
        NonDeterministicLossError: equal calls give different values.
        InvalidRequestError: J needs an operation that has no kernel in `dtype`, talks to other ranks, or is computed
            from weights that it has moved itself.
        MisfitError: torch refuses what the model or the loss hands to it.
    """
    refuse_synchronised(model)
    held = HeldValues() if hold_detached else None
    objective = Objective(model, compute, borrowed, dtype, drawn_in, beat, held, variables, words, given)
    try:
        objective.loss = objective.record_evaluation()
    except Exception as error:
        raise_any(_refusal(objective, error), error)
        raise
    if not math.isfinite(objective.loss):
        raise _non_finite(objective)
    if objective.stepped:
        _settle_steps(objective, aside)
    if objective.held is not None and not objective.held.values:
        objective.held = None
    if objective.held is not None:
        check_unchanged(objective)
    elif slope is not None:
        _by_ordinary_backward(objective, slope)
    elif _without_graph(objective) != objective.loss:
        objective.needs_graph = True
        check_unchanged(objective)
    return objective


def _settle_steps(objective: Objective, aside: Callable[[], Collection[torch.Tensor]]) -> None:
    """Finds out what J may read of the weights that it has moved itself: what is not on trial, and what is held.

    Raises:
        InvalidRequestError: it reads others.
    """
    if not objective.is_after_its_step():
        return
    objective.aside = frozenset(map(id, aside()))
    if not (objective.aside and not objective.is_after_its_step()):
        objective.reads_held_steps = objective.held is not None and not objective.is_after_its_step(holding=True)
        if not objective.reads_held_steps:
            raise InvalidRequestError(after_its_step(objective.words.runs_backward, objective.stepped))


def _refusal(objective: Objective, error: Exception) -> InvalidRequestError | None:
    """The error to raise from one of the first evaluation of J; None where that comes through as it is."""
    if isinstance(error, RuntimeError | torch.jit.Error):
        if objective.dtype is torch.float64 and lacks_float64_kernel(error):
            return _no_kernel(objective, error)
        fixed = fixed_to_a_precision(objective.model, objective.dtype, error)
        if fixed is not None:
            return fixed
    return refusal(error, objective.record_evaluation, objective.model, objective.given)


def _no_kernel(objective: Objective, error: Exception) -> InvalidRequestError:
    where = objective.words.short
    for module in modules_in_traceback(error):
        where = _name_of(objective.model, module) or where
    return InvalidRequestError(
        f"dtype=torch.float64: {where} uses an operation that has no float64 kernel ({error}). "
        "Check it with dtype=torch.float32, with wider error bars."
    )


def _name_of(model: nn.Module, module: object) -> str:
    return next((f"{name!r} ({type(found).__name__})" for name, found in named_modules(model) if found is module), "")


def _without_graph(objective: Objective) -> float | None:
    """J(θ) under no_grad; None where it raises only there, since it needs autograd itself.

    An exception that does not come a second time under no_grad is the user's own and passes through.
    """
    objective.needs_graph = False
    try:
        return _value_unwarned(objective)
    except Exception as error:
        objective.needs_graph = True
        objective.value()
        objective.needs_graph = False
        try:
            _value_unwarned(objective)
        except Exception:
            return None
        raise error


def _value_unwarned(objective: Objective) -> float:
    """J(θ); the warning of reentrant checkpoints that they miss autograd becomes an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=CHECKPOINT_WITHOUT_GRAPH, category=UserWarning)
        return objective.value()


def _by_ordinary_backward(objective: Objective, slope: Slope) -> None:
    """Has the slope be that along the gradient which a backward without a graph gives, as an optimizer gets it.

    Rounding is relative to the terms of the slope: these may cancel.
    """
    with_graph, objective.needs_graph = objective.loss, False
    objective.loss = objective.value()
    if not objective.same(with_graph, objective.loss):
        with objective.evaluation():
            terms = slope.terms()
        if abs(with_graph - objective.loss) > ROUNDOFF_BETWEEN_CALLS * epsilon(objective.dtype) * terms:
            objective.with_graph = with_graph
    check_unchanged(objective)


def check_unchanged(objective: Objective) -> None:
    """Evaluates J(θ) once more; raises `NonDeterministicLossError` when it is not what it was before."""
    again = objective.value_again()
    if not objective.same(again, objective.loss):
        raise _non_deterministic(objective, again)


def _non_finite(objective: Objective) -> NonFiniteLossError:
    found = f"J(θ) = {objective.loss}"
    for name, parameter in named_parameters(objective.model):
        if not torch.isfinite(parameter).all():
            return NonFiniteLossError(
                f"{found}: parameter {name!r} holds {_not_finite(parameter)}. Check it before it diverged."
            )
    for each in objective.variables:
        if not torch.isfinite(each.tensor).all():
            what = noun([each.role])
            return NonFiniteLossError(
                f"{found}: {what} {each.name!r} holds {_not_finite(each.tensor)}. Check it with finite numbers."
            )
    made = _made_by(objective)
    for name, tensors in _outputs(objective):
        for tensor in tensors:
            if not torch.isfinite(tensor).all():
                return NonFiniteLossError(
                    f"{found}: the first module whose output is not finite is {_module(objective, name)}: "
                    f"{_not_finite(tensor)}{made}. Look at its inputs and at what it divides by, takes the log or root "
                    "of.",
                    module=name,
                )
    empty = [f"{name} of shape {tuple(each.shape)}" for name, each in objective.given.tensors if not each.numel()]
    if empty:
        return NonFiniteLossError(f"{found}: {listed(empty)} holds no sample. Give a batch that has some.")
    all_finite = ", though every module's output is finite" if objective.activity.ran else ""
    return NonFiniteLossError(
        f"{found}{all_finite}: it arises in {objective.words.computes}{made}. "
        "Look at what it divides by, takes the log or root of."
    )


def _made_by(objective: Objective) -> str:
    """Words on the first call that makes NaN of numbers, or infinity where J is infinite; "" where none has a line."""
    with (
        torch.set_grad_enabled(objective.needs_graph),
        forward_hooks(objective.model) as modules,
        objective.evaluation(),
        OverflowWatch(modules, _made_by.__code__) as watch,
    ):
        objective.compute()
    first = (watch.nan if math.isnan(objective.loss) else None) or watch.overflow
    if first is None or first.line is None:
        return ""
    of_what = "numbers without one" if first is not watch.overflow else "finite numbers"
    return f"; {first} makes the first {'NaN' if first is watch.nan else 'infinity'} of {of_what}"


def _non_deterministic(objective: Objective, again: float) -> NonDeterministicLossError:
    found = f"two equal calls gave J(θ) = {objective.loss!r} and {again!r} (difference {again - objective.loss:.3g})"
    advice = (
        "The generators of torch, numpy and Python, buffers and tensors of the modules were put back in between; "
        f"turn off what else changes (a counter, a clock, the system's entropy), or pass it in {objective.words.given}."
    )
    name = _first_difference(_outputs(objective), _outputs(objective))
    if name is None:
        unchanged = ", and no module's output changes" if objective.activity.ran else ""
        return NonDeterministicLossError(f"{found}{unchanged}: it is {objective.words.described}. {advice}")
    return NonDeterministicLossError(
        f"{found}; the first module whose output changes is {_module(objective, name)}. {advice}", module=name
    )


def _outputs(objective: Objective) -> list[Output]:
    """The outputs of each module during one evaluation, inner modules before those that contain them."""
    outputs: list[Output] = []

    def keep(name: str, tensors: list[torch.Tensor]) -> None:
        outputs.append((name, [tensor.detach().clone() for tensor in tensors]))

    with forward_hooks(objective.model, keep):
        objective()
    return outputs


def _first_difference(one: list[Output], other: list[Output]) -> str | None:
    for (name, tensors), (other_name, other_tensors) in zip(one, other, strict=False):
        if name != other_name or not _equal(tensors, other_tensors):
            return name
    return None


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        for a, b in zip(one, other, strict=True)
    )


def _not_finite(tensor: torch.Tensor) -> str:
    wrong = ~torch.isfinite(tensor)
    nan, count = int(torch.isnan(tensor).sum()), int(wrong.sum())
    index = tuple(wrong.nonzero()[0].tolist())
    return f"{count} of {tensor.numel()} entries not finite ({nan} nan, {count - nan} infinite), first at {index}"


def _module(objective: Objective, name: str) -> str:
    module = module_at(objective.model, name)
    return f"{name!r} ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
