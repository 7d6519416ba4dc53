"""The `.grad` of all ranks: where they are not the same, that of each rank, and the worst of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.processes.team import Team
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.training_step.diagnosis import Reference
from torch_gradcheck.training_step.judge import Judged
from torch_gradcheck.training_step.ranks.replicas import that_differ
from torch_gradcheck.verdicts.trial import ParameterTrial

MOST_COUNTED = 9
"""The number of ranks up to which it is counted how many of them have made a mistake."""

Left = Mapping[int, AnalyticGradient]
"""What `.grad` holds, by position in θ."""


class GradsOfRanks:
    """What the ranks hold in `.grad`, compared; collective.

    Args:
        team: the ranks.
        theta: the parameters.
        left: what this rank holds.

    Attributes:
        of_rank: rank → its `.grad` of the parameters where the ranks' are not the same.
        shown_on: position in θ → the rank whose `.grad` its row is about, where that is not the leader's.
    """

    def __init__(self, team: Team, theta: Theta, left: Left) -> None:
        position_of = {theta[position].name: position for position in left}
        held = {name: partial(_held, left[position]) for name, position in position_of.items()}
        differing = that_differ(team, held) if team.size > 1 else {}
        self.of_rank: list[dict[int, AnalyticGradient]] = [
            {position_of[name]: _received(left[position_of[name]], each[rank]) for name, each in differing.items()}
            for rank in range(team.size)
        ]
        self.shown_on: dict[int, int] = {}
        self._wrong_on: dict[int, list[int]] = {}

    @property
    def differing(self) -> list[int]:
        """The positions of the parameters whose `.grad` is not the same on all ranks."""
        return sorted(self.of_rank[0])

    def at(self, position: int, trial: ParameterTrial) -> list[Floats]:
        """The `.grad` of each rank of a parameter on which they do not agree, at the coordinates that were tried."""
        return [trial.at(left[position].values) for left in self.of_rank]

    def on_its_rank(self, position: int, diagnosis: Diagnosis) -> Diagnosis:
        """The diagnosis of a parameter on which the ranks do not agree, with the rank that it is of."""
        if diagnosis.kind is DiagnosisKind.UNREDUCED:
            return diagnosis
        rank, wrong = self.shown_on.get(position, LEADER), self._wrong_on.get(position, [])
        if len(wrong) == len(self.of_rank):
            return replace(
                diagnosis, message=f"on rank {rank}, of ranks that hold different .grad: {diagnosis.message}"
            )
        message, others = (
            diagnosis.message,
            listed([str(each) for each in range(len(self.of_rank)) if each not in wrong]),
        )
        if diagnosis.kind is DiagnosisKind.SCALED:  # whatever left the factor, it left it on this rank only
            message = message.partition(": ")[0]
        which = f"on rank {listed([str(each) for each in wrong])} only, and right on rank {others}"
        return replace(diagnosis, message=f"{which}, so it was changed after the ranks were averaged: {message}")

    def worst(self, judged: Mapping[int, Judged], judge: Callable[[Left], Mapping[int, Judged]]) -> dict[int, Judged]:
        """Every `.grad` as judged, that of another rank where only it is wrong.

        Args:
            judged: the leader's.
            judge: judges those of another rank; what is not given is the leader's.
        """
        found = dict(judged)
        self._wrong_on = {
            position: [LEADER] for position in self.differing if position in judged and judged[position].is_wrong
        }
        for rank, left in enumerate(self.of_rank[1:], 1):
            others = judge(left) if left else {}
            for position in left.keys() & others.keys():
                if not others[position].is_wrong:
                    continue
                self._wrong_on.setdefault(position, []).append(rank)
                if not found[position].is_wrong:
                    found[position], self.shown_on[position] = others[position], rank
        return found


def held_on_some(earlier: Mapping[int, Floats], world: int) -> list[Reference]:
    """What the mean over the ranks holds of a step before where some of them have not zeroed theirs."""
    return [
        Reference(
            f"{some}/{world} of what .grad held after the step before, as {some} of {world} ranks had not zeroed it",
            {position: values * some / world for position, values in earlier.items()},
        )
        for some in range(1, min(world, MOST_COUNTED))
    ]


def _held(gradient: AnalyticGradient) -> Floats | None:
    return gradient.values if gradient.reached else None


def _received(here: AnalyticGradient, values: Floats | None) -> AnalyticGradient:
    """The gradient of another rank, of the parameter that this rank's is of."""
    return AnalyticGradient(np.zeros_like(here.values) if values is None else values, values is not None, here.epsilon)
