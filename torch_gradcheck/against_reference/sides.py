"""The runs of both sides: the candidate as it is, the reference in float64, and in the candidate's dtypes, rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.run import Run, ran, run_of
from torch_gradcheck.borrowing.loan import Borrowed, Loan, Start, lend
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import Theta, theta_of
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.rounding_noise import RoundingMode
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.request import Request

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
        runs: equal runs, the first of them the candidate's first; they differ where the candidate is not deterministic.
    """

    theta: Theta
    runs: Sequence[Run]


def candidate_of(computation: Computation, request: Request) -> Candidate:
    """Runs the candidate a few times, each from its first state; nothing is raised to another precision."""
    loss = computation.loss
    with _lent(computation, request, None) as borrowed:
        theta = theta_of(computation.model, request.include, request.exclude, loss.variables)
        leaves, forward = _checked(theta), computation.at(None)
        return Candidate(theta, [ran(forward, leaves, borrowed) for _ in range(CANDIDATE_RUNS)])


def exact_run(problem: Problem, computation: Computation, candidate: Candidate) -> Run:
    """The reference in float64, on the same rounded inputs and upstream gradients; `problem` has lent it."""
    leaves, forward = _counterparts(candidate.theta, problem.theta), computation.at(torch.float64)
    with torch.enable_grad(), problem.objective.evaluation(at_theta=True):
        return run_of(forward, leaves)


def rounded_runs(computation: Computation, candidate: Candidate, request: Request, start: Start) -> list[Run]:
    """The reference in the candidate's dtypes: plainly, then with rounding as noise."""
    generator = torch.Generator("cpu").manual_seed(request.seed)
    with _lent(computation, request, start) as borrowed:
        theta = theta_of(computation.model, (), (), computation.loss.variables)
        leaves, forward = _counterparts(candidate.theta, theta), computation.at(None)
        plain = ran(forward, leaves, borrowed)
        return [plain, *[ran(forward, leaves, borrowed, RoundingMode(generator)) for _ in range(NOISY_RUNS)]]


def given_values(candidate: nn.Module, reference: nn.Module) -> Mapping[torch.Tensor, torch.Tensor]:
    """The reference's parameters and buffers, each with the candidate's tensor of the same name and shape."""
    own = {**dict(candidate.named_parameters()), **dict(candidate.named_buffers())}
    theirs = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    return {each: own[name] for name, each in theirs.items() if name in own and own[name].shape == each.shape}


def _lent(computation: Computation, request: Request, start: Start | None) -> Loan[Borrowed]:
    loss = computation.loss
    return lend(computation.model, loss.holders, request.mode, None, request.seed, start, objects_of(loss.variables))


def _checked(theta: Theta) -> list[torch.Tensor]:
    return [theta[position].parameter for position in theta.checked]


def _counterparts(candidate: Theta, reference: Theta) -> list[torch.Tensor]:
    """The reference's tensors beside those that are checked of the candidate: parameters by name, others by place."""
    parameters = {name: each.parameter for each in reference for name in (each.name, *each.aliases)}
    variables = [each.parameter for each in reference if each.role is not Role.PARAMETER]
    of_candidate = [each for each in candidate if each.role is not Role.PARAMETER]
    places = {id(each): tensor for each, tensor in zip(of_candidate, variables, strict=True)}
    return [
        parameters[entry.name] if entry.role is Role.PARAMETER else places[id(entry)]
        for entry in [candidate[position] for position in candidate.checked]
    ]
