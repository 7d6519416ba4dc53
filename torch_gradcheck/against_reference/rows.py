"""From a judged tensor to its row: how much worse than rounding explains, or how tight the match is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from torch_gradcheck.against_reference.judge import Judged
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import Diagnosis, ParameterReport, Status
from torch_gradcheck.training_step.diagnosis import step_evidence
from torch_gradcheck.verdicts.rows import compared_row


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
