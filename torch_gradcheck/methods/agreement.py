"""Whether the ranks that share a check were given the same problem, asked before one of them goes on and leads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.loss import NOTHING, Loss, MeanLoss, ModuleLoss
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.objective import ROUNDOFF_BETWEEN_CALLS
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.processes.agreement import Fact, Facts, fact_of, form_of, spread_of
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import named_buffers, named_modules, named_parameters

OF_ONE_RANK = {"team", "progress", "gradients", "has_reference", "dtype", "tolerance", "beyond_rounding"}
"""Options that ranks need not have in common, or that are compared otherwise: gradients by hand by their numbers."""


T = TypeVar("T")


def led(problem: Problem, work: Callable[[], T]) -> T:
    """What the leader's `work` on a problem gives, on every rank, once the ranks have compared what they were given.

    Raises what `agree` and `Team.lead` do.
    """
    agree(problem)
    return problem.request.team.lead(problem, work, prepare=problem.get_ready)


def agree(problem: Problem, entry: str | None = None) -> None:
    """Evaluates J(θ), and compares it, and all that the ranks were given, between them.

    Where J(θ) differs by rounding only, as on two kinds of processors, that is taken for noise of J.

    Args:
        problem: that of this rank.
        entry: what was called, where that is no check.

    Raises:
        UnequalRanksError: on every rank, where one was given something else.
    """
    team = problem.request.team
    if team.size > 1:
        spread = spread_of(team.exchanged(facts_of(problem, entry)))
        problem.objective.spread = max(problem.objective.spread, spread)


def facts_of(problem: Problem, entry: str | None = None) -> Facts:
    """What this rank was given, its model lent and at θ; `entry` as in `agree`."""
    objective, theta, model = problem.objective, problem.theta, problem.model
    on_trial = {
        f"the gradient of {entry.name!r}": Fact("on trial" if entry.checked else "not on trial") for entry in theta
    }
    parameters = {f"parameter {name!r}": tensor for name, tensor in named_parameters(model)}
    topics = {
        "call": {"what was called": Fact(entry or _check_of(problem.loss))},
        "torch": {"torch": Fact(torch.__version__)},
        "options": _options(problem.request),
        "tensors": {name: form_of(tensor) for name, tensor in parameters.items()} | on_trial,
        "modes": {
            f"the mode of {name!r}" if name else "the mode of the model": Fact("train" if each.training else "eval")
            for name, each in named_modules(model)
        },
        "parameters": {name: fact_of(tensor) for name, tensor in parameters.items()},
        "buffers": {f"buffer {name!r}": fact_of(tensor) for name, tensor in named_buffers(model)},
        "batch": {name: fact_of(tensor) for name, tensor in _given(problem.loss)},
    }
    roundoff = ROUNDOFF_BETWEEN_CALLS * epsilon(objective.dtype) * abs(objective.loss)
    return Facts(objective.loss, roundoff, topics)


def _options(request: Request) -> dict[str, Fact]:
    options = {each.name: Fact(repr(getattr(request, each.name))) for each in fields(request)}
    is_default = request.has_reference and not request.beyond_rounding
    found = {"reference=": Fact("given" if request.has_reference else "not given")}
    found["dtype"] = options["dtype"]  # before the tolerance, which hangs on it
    found["tolerance"] = Fact("not given") if is_default else options["tolerance"]
    found |= {name: fact for name, fact in options.items() if name not in OF_ONE_RANK}
    given = request.gradients
    if isinstance(given, Mapping):
        return found | {f"gradients[{name!r}]": fact_of(torch.as_tensor(each)) for name, each in given.items()}
    return found | {"gradients": Fact(repr(given))}


def _check_of(loss: Loss) -> str:
    """What checks such a loss."""
    one = loss.losses[0] if isinstance(loss, MeanLoss) else loss
    if isinstance(one, FunctionLoss):
        return "a check of a function"
    return "a check of a model and a loss function" if isinstance(one, ModuleLoss) else "a check of a closure"


def _given(loss: Loss) -> list[tuple[str, Tensor]]:
    """The tensors that a loss was given beside the model, and how they are called."""
    if isinstance(loss, MeanLoss):
        return [
            (f"of batch {k}: {name}", tensor) for k, each in enumerate(loss.losses) for name, tensor in _given(each)
        ]
    if isinstance(loss, FunctionLoss):
        return [(f"inputs{path}", tensor) for path, tensor in tensors_in((loss.call.args, dict(loss.call.kwargs)))]
    batch = getattr(loss, "batch", NOTHING)
    given = [] if batch is NOTHING else [(f"batch{path}", tensor) for path, tensor in tensors_in(batch, objects=True)]
    captures = captures_of(*loss.holders)
    named = [(captures.names.get(key), tensor) for key, tensor in captures.tensors.items()]
    return given + [(name, tensor) for name, tensor in named if name]
