"""The runs of both sides: the candidate as it is, and the reference in float64."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.compiled_code import AsCompiled, CompiledParts
from torch_gradcheck.against_reference.runs.computation import Computation, Forward
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran, run_of
from torch_gradcheck.borrowing.loan import Borrowed, Loan, Start, lend
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.gradients.refused_gradients import raise_misfit
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.refusals import raise_any, refusal
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.replay import coarsest

CANDIDATE_RUNS = 5
"""Runs of the candidate: where it is not deterministic, as with atomic adds, their spread joins the error bar. A race
that one run in three loses shows in 87 of 100 checks."""


@dataclass(frozen=True)
class Candidate:
    """What the candidate computed in its own precision.

    Attributes:
        theta: all that is on trial.
        runs: equal runs, its very first among them; they differ where the candidate is not deterministic.
        drawn_in: the precisions of its random numbers.
        has_drawn: whether it draws any, from a generator that is known.
        drawn_to: in which state that left the global generators.
        compiled_code: what of it torch.compile was given, and whether that ran compiled.
    """

    theta: Theta
    runs: Sequence[Run]
    drawn_in: DrawnIn
    has_drawn: bool
    drawn_to: RandomState
    compiled_code: CompiledParts


def candidate_of(
    computation: Computation,
    request: Request,
    start: Start,
    count: int = CANDIDATE_RUNS,
    compiled: Collection[int] | None = None,
) -> Candidate:
    """Runs the candidate `count` times, each from its first state; nothing is raised to another precision.

    Args:
        computation: the candidate.
        request: the options.
        start: the values that it has.
        count: the number of runs.
        compiled: the keys of the parts that run compiled, of those that torch.compile was given; None for all.
    """
    loss, autocast = computation.loss, CallersAutocast()
    with lent(computation, request, start) as borrowed:
        theta = theta_of(computation.model, request.include, request.exclude, loss.variables)
        parts, forward = parts_on_trial(theta), autocast.over(computation.at(None))
        with AsCompiled(computation, compiled) as code:
            runs = [_ran(computation, forward, parts, borrowed) for _ in range(count)]
        drawn_in = DrawnIn(torch.get_default_dtype(), coarsest(theta))
        return Candidate(theta, runs, drawn_in, borrowed.has_drawn, RandomState.of_everything(), code.found)


def _ran(
    computation: Computation,
    forward: Callable[[], Forward],
    parts: Sequence[Sequence[torch.Tensor]],
    borrowed: Borrowed,
) -> Run:
    """A run of the candidate; raises `MisfitError` where torch refuses what it hands to it."""
    try:
        return ran(forward, parts, borrowed)
    except Exception as error:
        again = partial(ran, forward, parts, borrowed)
        raise_any(refusal(error, again, computation.model, computation.loss.given), error)
        raise_misfit(error, again, computation.model)
        raise


def exact_run(problem: Problem, computation: Computation, candidate: Candidate) -> Run:
    """The reference in float64, on the same rounded inputs and upstream gradients; `problem` has lent it."""
    parts = parts_of_gradients(candidate.theta, problem.theta, computation.loss)
    forward = computation.at(torch.float64)
    with torch.enable_grad(), problem.objective.evaluation(at_theta=True):
        return run_of(forward, parts)


def lent(computation: Computation, request: Request, start: Start, dtype: torch.dtype | None = None) -> Loan[Borrowed]:
    """The loan of a computation; `dtype` None leaves every tensor in its own."""
    loss, seed = computation.loss, request.seed
    return lend(computation.model, loss.holders, request.mode, dtype, seed, start, objects_of(loss.variables))


def parts_on_trial(theta: Theta) -> list[list[torch.Tensor]]:
    """The tensors whose gradients are on trial, each as the only part of it."""
    return [[theta[position].parameter] for position in theta.checked]
