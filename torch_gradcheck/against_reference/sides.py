"""The runs of both sides: the candidate as it is, the reference in float64, and in the candidate's dtypes, rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torch_gradcheck.against_reference.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.run import Run, ran, run_of
from torch_gradcheck.borrowing.loan import Borrowed, Loan, Start, lend
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.precision.rounding_noise import RoundingMode
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.replay import coarsest

CANDIDATE_RUNS = 5
"""Runs of the candidate: where it is not deterministic, as with atomic adds, their spread joins the error bar. A race
that one run in three loses shows in 87 of 100 checks."""

NOISY_RUNS = 6
"""Runs of the reference with rounding as noise."""


@dataclass(frozen=True)
class Candidate:
    """What the candidate computed in its own precision.

    Attributes:
        theta: all that is on trial.
        runs: equal runs, its very first among them; they differ where the candidate is not deterministic.
        drawn_in: the precisions of its random numbers.
        has_drawn: whether it draws any, from a generator that is known.
    """

    theta: Theta
    runs: Sequence[Run]
    drawn_in: DrawnIn
    has_drawn: bool


def candidate_of(computation: Computation, request: Request, start: Start) -> Candidate:
    """Runs the candidate a few times, each from its first state; nothing is raised to another precision."""
    loss, autocast = computation.loss, CallersAutocast()
    with lent(computation, request, start) as borrowed:
        theta = theta_of(computation.model, request.include, request.exclude, loss.variables)
        parts, forward = _checked(theta), autocast.over(computation.at(None))
        runs = [ran(forward, parts, borrowed) for _ in range(CANDIDATE_RUNS)]
        return Candidate(theta, runs, DrawnIn(torch.get_default_dtype(), coarsest(theta)), borrowed.has_drawn)


def exact_run(problem: Problem, computation: Computation, candidate: Candidate) -> Run:
    """The reference in float64, on the same rounded inputs and upstream gradients; `problem` has lent it."""
    parts = parts_of_gradients(candidate.theta, problem.theta, computation.loss)
    forward = computation.at(torch.float64)
    with torch.enable_grad(), problem.objective.evaluation(at_theta=True):
        return run_of(forward, parts)


def rounded_runs(computation: Computation, candidate: Candidate, request: Request, start: Start) -> list[Run]:
    """The reference in the candidate's dtypes: plainly, then with rounding as noise."""
    generator, autocast = torch.Generator("cpu").manual_seed(request.seed), CallersAutocast()
    with lent(computation, request, start) as borrowed:
        theta = theta_of(computation.model, (), (), computation.loss.variables)
        parts = parts_of_gradients(candidate.theta, theta, computation.loss)
        forward = autocast.over(computation.at(None))
        plain = ran(forward, parts, borrowed)
        return [plain, *[ran(forward, parts, borrowed, RoundingMode(generator)) for _ in range(NOISY_RUNS)]]


def lent(computation: Computation, request: Request, start: Start, dtype: torch.dtype | None = None) -> Loan[Borrowed]:
    """The loan of a computation; `dtype` None leaves every tensor in its own."""
    loss, seed = computation.loss, request.seed
    return lend(computation.model, loss.holders, request.mode, dtype, seed, start, objects_of(loss.variables))


def _checked(theta: Theta) -> list[list[torch.Tensor]]:
    return [[theta[position].parameter] for position in theta.checked]
