"""Whether the backward of every rank that shares a check gives the gradient that is on trial."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

from torch_gradcheck.arrays import Floats
from torch_gradcheck.errors import UnequalRanksError
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.repeated import beyond_rounding_of
from torch_gradcheck.methods.problem import BACKWARD, Problem
from torch_gradcheck.reporting.words import noun

Gradients = Mapping[int, AnalyticGradient]


def refuse_unequal(problem: Problem, gradients: Gradients) -> None:
    """Raises where the backward of another rank gives another gradient than the leader's, by more than rounding.

    Checksums are compared first; numbers only where they differ, as they may between two kinds of processors. Nothing
    is said where two backwards of the leader do not agree.

    Args:
        problem: that of the leader, whose `backward` has run.
        gradients: what it gave, by position in θ.

    Raises:
        UnequalRanksError: names the rank and the parameter.
        Exception: what the backward of another rank has ended in.
    """
    team = problem.team
    if not team.can_share:
        return
    if problem.repeated.difference is None:
        own = _checksums(gradients)
        for rank, others in enumerate(team.shared(checksums_of_rank, [None] * team.size)[1:], start=1):
            for position in [each for each in own if own[each] != others[each]]:
                _compare(problem, gradients, position, rank)
    team.order(forget, None)


def _compare(problem: Problem, gradients: Gradients, position: int, rank: int) -> None:
    """Compares the numbers of one parameter: those of all may be as large as the model."""
    shares = [position if each == rank else None for each in range(problem.team.size)]
    values = problem.team.shared(gradient_of_rank, shares)[rank]
    other = {position: replace(gradients[position], values=values)}
    off = beyond_rounding_of(gradients, other, problem.objective, problem.request.tolerance, problem.resolved())
    if off:
        entry = problem.theta[position]
        raise UnequalRanksError(
            f"the ranks do not compute the same gradient: that of the {noun([entry.role])} {entry.name} on rank {rank} "
            f"differs from rank 0's by up to {off[position]:.2g}, by more than rounding. What the ranks were given and "
            "J(θ) are the same, so a backward depends on something else there: the number of the rank, other versions "
            "of a kernel, a hook or a detach that only one rank has. Run the same code on every rank; to have one rank "
            "judged, call the check without group there."
        )


def checksums_of_rank(problem: Problem, share: object) -> dict[int, int] | None:  # noqa: ARG001 - a task
    """The checksums of a rank's own gradients, or the exception in which its backward ended; None of the leader."""
    kept = problem.kept.get(BACKWARD)
    if isinstance(kept, Exception):
        raise kept
    return None if kept is None else _checksums(kept)


def gradient_of_rank(problem: Problem, position: int | None) -> Floats | None:
    """A rank's own gradient of the parameter at a position of θ; None of a rank that is not asked."""
    values: Floats | None = None if position is None else problem.kept[BACKWARD][position].values
    return values


def forget(problem: Problem, share: object) -> None:  # noqa: ARG001 - a task
    """Lets go of the gradients of a rank, which have been compared."""
    problem.kept.pop(BACKWARD, None)


def _checksums(gradients: Gradients) -> dict[int, int]:
    """A checksum of each gradient, by position in θ."""
    return {position: zlib.crc32(each.values.data) for position, each in gradients.items()}
