"""From a judged tensor to its row: how much worse than rounding explains, or how tight the match is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.judging.wholes import ITSELF, Finding
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import Coordinate, Diagnosis, ParameterReport, Status, Verdict
from torch_gradcheck.reporting.words import percent, times
from torch_gradcheck.training_step.diagnosis import step_evidence
from torch_gradcheck.verdicts.rows import compared_row, frozen_row, ratio_of
from torch_gradcheck.verdicts.shown_entries import coordinates_of, furthest_entries

RESOLVED = 1.0
"""A tensor matches only if a factor of 2 on it, or of 0, would have been a mismatch."""

WITHIN = "no single entry is beyond its error bar"
"""What is said of a mistake that only the tensor as a whole shows."""


def row_of(judged: Judged, diagnosis: Diagnosis | None) -> ParameterReport:
    """The row of one tensor."""
    entry = judged.compared.entry
    row = compared_row(entry, judged.trial, tolerance=np.inf)
    row = replace(
        row,
        rounding_ratio=judged.rounding_ratio,
        worst=coordinates_of(entry, judged.trial, furthest_entries(judged.trial, in_bars=True)),
    )
    if row.status is Status.MISMATCH:
        picture = wrong_map(step_evidence(entry, judged.trial), aligned=True)
        return replace(row, reason=_how_wrong(row, judged, diagnosis), diagnosis=diagnosis, map=picture)
    if judged.why_unproven:
        return replace(row, reason=judged.why_unproven)
    if row.status in (Status.MATCH, Status.FLAT) and np.any(judged.compared.right):
        return _proven(row, judged)
    return replace(row, detectable=judged.detectable) if row.status.is_proven else row


def _proven(row: ParameterReport, judged: Judged) -> ParameterReport:
    """The row of a tensor that is not zero: a match where a missing or doubled one would have shown, else undecided.

    Each entry may be within its error bar of 0, and the tensor as a whole still be known.
    """
    ratio, detectable = ratio_of(judged.trial), judged.detectable
    unknown = judged.unknown_share
    if row.status is Status.FLAT and unknown > RESOLVED:
        return row
    decided = replace(row, relative_error=ratio, verdict=Verdict.of(ratio), detectable=detectable)
    if unknown > RESOLVED:
        return replace(decided, status=Status.UNDECIDED, reason=f"{_may_move(judged)}: twice as much would not show")
    return replace(decided, status=Status.MATCH, reason=_how_tight(judged))


def _may_move(judged: Judged) -> str:
    """The words "rounding in bfloat16 may move it by as much as its own size"."""
    return f"rounding in {name_of(judged.compared.entry.own_dtype)} may move it by as much as its own size"


def _how_wrong(row: ParameterReport, judged: Judged, diagnosis: Diagnosis | None) -> str:
    if judged.as_a_whole:
        scaled = [str(each) for each in judged.findings if _is_factor(each)] if diagnosis and diagnosis.factor else []
        return f"{scaled[0] if scaled else judged.as_a_whole}; {WITHIN}"
    return "; ".join(filter(None, [row.reason, _at(row.worst[0], judged), _rms(judged)]))


def _is_factor(finding: Finding) -> bool:
    """Whether it shows a factor on all of the tensor."""
    return finding.along == ITSELF and not finding.part.axes and finding.times > 1


def _at(worst: Coordinate, judged: Judged) -> str:
    """How far the worst entry is off, in multiples of what rounding may do; "" where there is no multiple."""
    dtype, index = name_of(judged.compared.entry.own_dtype), list(worst.index) or "it"
    if not math.isfinite(worst.analytic):
        return f"{index} is {worst.analytic}, where {worst.numeric:.3g} is right{_beyond(worst, judged)}"
    if not math.isfinite(worst.in_bars):
        return ""
    return f"{index} is off by {times(worst.in_bars)} times what rounding in {dtype} explains"


def _beyond(worst: Coordinate, judged: Judged) -> str:
    """Words on a right number that the candidate's dtype cannot hold; "" where it can."""
    dtype = judged.compared.entry.own_dtype
    largest = torch.finfo(dtype).max
    is_overflow = math.isinf(worst.analytic) and largest < abs(worst.numeric) < math.inf
    return f": {name_of(dtype)} overflows at {largest:.5g}" if is_overflow else ""


def _rms(judged: Judged) -> str:
    ratio, dtype = judged.rounding_ratio, name_of(judged.compared.entry.own_dtype)
    if not 1 < ratio < math.inf or not np.isfinite(judged.compared.candidate[0]).all():
        return ""
    error = "the root mean square error" if len(judged.compared.right) > 1 else "that"
    return f"{error} is {times(ratio)} times what the reference loses in {dtype}"


def _how_tight(judged: Judged) -> str:
    """Words on a match: its error beside that of the reference, and the factor that would have shown."""
    dtype, ratio = name_of(judged.compared.entry.own_dtype), judged.rounding_ratio
    loses = f"{times(ratio)} times what {dtype} loses" if ratio else "no error at all"
    if math.isnan(ratio):
        loses = f"within its error bars, where the reference loses nothing in {dtype}"
    return f"{loses}; a factor off by {percent(judged.detectable)} would have shown"


def with_frozen(rows: Sequence[ParameterReport], theta: Theta) -> list[ParameterReport]:
    """The rows in the order of θ, and of outputs behind them, with those of parameters that are frozen."""
    named = {row.name: row for row in rows}
    of_theta = [named.pop(entry.name) if entry.name in named else frozen_row(entry) for entry in theta]
    return [*of_theta, *named.values()]
