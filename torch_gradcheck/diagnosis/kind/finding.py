"""A finding: a diagnosis that one parameter's numbers suggest, and whether they alone prove it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind


class Finding(NamedTuple):
    """A diagnosis, and whether this parameter alone proves it."""

    diagnosis: Diagnosis
    conclusive: bool


Kind = Callable[[Evidence, Sequence[FactorMeaning]], Finding | None]


def conclusive(kind: DiagnosisKind, message: str, factor: float | None = None) -> Finding:
    """A finding that one parameter proves by itself."""
    return Finding(Diagnosis(kind, message, factor), conclusive=True)
