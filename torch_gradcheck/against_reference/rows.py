"""From a judged tensor to its row: how much worse than rounding explains, or how tight the match is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from torch_gradcheck.against_reference.judge import Judged
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import Diagnosis, ParameterReport, Status
from torch_gradcheck.training_step.diagnosis import step_evidence
from torch_gradcheck.verdicts.rows import compared_row, frozen_row


def row_of(judged: Judged, diagnosis: Diagnosis | None) -> ParameterReport:
    """The row of one tensor."""
    entry = judged.compared.entry
    row = replace(compared_row(entry, judged.trial, tolerance=np.inf), rounding_ratio=judged.rounding_ratio)
    if row.status is Status.MISMATCH:
        picture = wrong_map(step_evidence(entry, judged.trial))
        return replace(row, reason=judged.as_a_whole or row.reason, diagnosis=diagnosis, map=picture)
    if row.status is Status.MATCH and not np.isnan(judged.rounding_ratio):
        return replace(row, reason=f"{judged.rounding_ratio:.2g} times what {name_of(entry.own_dtype)} loses")
    return row


def with_frozen(rows: Sequence[ParameterReport], theta: Theta) -> list[ParameterReport]:
    """The rows in the order of θ, and of outputs behind them, with those of parameters that are frozen."""
    named = {row.name: row for row in rows}
    of_theta = [named.pop(entry.name) if entry.name in named else frozen_row(entry) for entry in theta]
    return [*of_theta, *named.values()]
