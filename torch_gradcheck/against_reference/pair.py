"""A candidate judged beside its reference: under the gradients of all outputs together, then under each one's alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch_gradcheck.against_reference.judging.compared import compared
from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.against_reference.judging.ties import judged_at_ties
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import Counterparts
from torch_gradcheck.against_reference.runs.rounded import rounded_runs
from torch_gradcheck.against_reference.runs.run import Run
from torch_gradcheck.against_reference.runs.sides import CANDIDATE_RUNS, Candidate, candidate_of
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.request import Request


@dataclass(frozen=True)
class Pair:
    """Two computations under the same gradients of their outputs.

    Attributes:
        candidate, reference: the computations.
        request: the options.
        counterparts: the values that the reference is given.
        compiled: the keys of the parts of the candidate that run compiled; None for all that torch.compile was given.
    """

    candidate: Computation
    reference: Computation
    request: Request
    counterparts: Counterparts
    compiled: Collection[int] | None = None

    def judged(self, found: Candidate, exact: Run) -> list[Judged]:
        """The verdict on every tensor that is compared.

        Args:
            found: what the candidate computed.
            exact: what the reference computed in float64.
        """
        values = self.counterparts
        start, in_float64 = values.start(values.rounded), values.start(values.exact)
        rounded = rounded_runs(self.reference, found, self.request, start, in_float64)
        verdicts = [judged(each, self.request.beyond_rounding) for each in compared(found, exact, rounded)]
        return judged_at_ties(verdicts, self.reference, found, self.request, in_float64)

    def candidate_runs(self, count: int = CANDIDATE_RUNS) -> Candidate:
        """What the candidate computes in so many runs, at its own θ or away from it."""
        start = Start(values=self.counterparts.moved)
        return candidate_of(self.candidate, self.request, start, count, self.compiled)

    def alone(self) -> Mapping[str, Pair]:
        """The pairs in which one output only is given a gradient, by its name; to be asked after a first run."""
        own, other = self.candidate.alone(), self.reference.alone()
        return {name: replace(self, candidate=own[name], reference=other[name]) for name in own}


def judged_pair(pair: Pair, found: Candidate, exact: Sequence[Run]) -> tuple[list[Judged], dict[str, str]]:
    """The verdict on every tensor, and the names of those that are wrong under the gradient of one output only.

    Under all gradients together an output of large numbers, or whose gradient goes through large ones, hides a mistake
    in what the others give.

    Args:
        pair: under the gradients of all outputs.
        found: what the candidate computed under these.
        exact: of the reference, under these and then under each output's alone.
    """
    verdicts, under = pair.judged(found, exact[0]), {}
    for (output, single), run in zip(pair.alone().items(), exact[1:], strict=True):
        for k, each in enumerate(single.judged(single.candidate_runs(), run)):
            name = each.compared.entry.name
            if each.is_wrong and not verdicts[k].is_wrong and each.compared.entry.role is not Role.OUTPUT:
                verdicts[k], under[name] = each, output
    return verdicts, under


def told_under(rows: Sequence[ParameterReport], under: Mapping[str, str]) -> list[ParameterReport]:
    """The rows, those that are wrong under one output's gradient only saying so."""
    return [
        replace(row, reason=f"{row.reason}, under the gradient of {under[row.name]} alone")
        if row.name in under and row.status is Status.MISMATCH
        else row
        for row in rows
    ]
