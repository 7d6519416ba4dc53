"""Recognises gradients that were clipped a shard at a time: each rank by the norm of the entries that it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.training_step.window import SAME_SHARE

Rows = Sequence[tuple[int, int]]
"""Of each rank the entries of dim 0 that it holds, from and to."""


def clipped_by_shards(
    evidences: Mapping[int, Evidence], unclipped: Mapping[int, Floats], rows: Mapping[int, Rows]
) -> dict[int, Diagnosis]:
    """CLIPPED, by position in θ, where each rank's part of all gradients has a factor of its own, and none is above 1.

    Args:
        evidences: of every parameter.
        unclipped: what `.grad` should be before it is clipped.
        rows: of those that are sharded.
    """
    if len(rows) < len(evidences) or not all(evidence.finite for evidence in evidences.values()):
        return {}
    parts = {at: _parts(evidences[at], rows[at]) for at in evidences}
    ranks = max(len(each) for each in rows.values())
    factors = [_factor(evidences, unclipped, parts, rank) for rank in range(ranks)]
    known = [factor for factor in factors if np.isfinite(factor)]
    if len(known) < 2 or min(known) <= 0 or max(known) > 1 + SAME_SHARE or min(known) >= (1 - SAME_SHARE) * max(known):
        return {}
    wrong = [at for at, evidence in evidences.items() if evidence.wrong.any()]
    explained = [at for at in wrong if evidences[at].explains(_predicted(unclipped[at], parts[at], factors))]
    if len(explained) < len(wrong):
        return {}
    norms = [_norm(evidences, parts, rank) for rank in range(ranks)]
    listed = ", ".join(
        f"{factor:.4g} × on rank {rank} (norm {norm:.4g} there)"
        for rank, (factor, norm) in enumerate(zip(factors, norms, strict=True))
        if np.isfinite(factor)
    )
    message = (
        f"a shard at a time: dθ is the right gradient times a factor for each rank's shard, {listed}. Clip by "
        "the norm over all shards: torch.nn.utils.clip_grad_norm_ of the parameters themselves, not of their to_local()"
    )
    return dict.fromkeys(wrong, Diagnosis(DiagnosisKind.CLIPPED, message))


def _parts(evidence: Evidence, rows: Rows) -> list[Flags]:
    """Which entries each rank holds."""
    length = evidence.shape[0] if evidence.shape else 1
    row = np.repeat(np.arange(length), evidence.analytic.size // max(length, 1))
    return [np.asarray((row >= start) & (row < stop)) for start, stop in rows]


def _factor(
    evidences: Mapping[int, Evidence],
    unclipped: Mapping[int, Floats],
    parts: Mapping[int, Sequence[Flags]],
    rank: int,
) -> float:
    """The factor on what one rank holds, of all parameters together; NaN where that is nothing."""
    given = np.concatenate([evidences[at].analytic[part[rank]] for at, part in parts.items()])
    right = np.concatenate([unclipped[at][part[rank]] for at, part in parts.items()])
    along, square = float(np.dot(given, right)), float(np.dot(right, right))
    return along / square if square else np.nan


def _predicted(unclipped: Floats, parts: Sequence[Flags], factors: Sequence[float]) -> Floats:
    predicted = unclipped.copy()
    for part, factor in zip(parts, factors, strict=True):
        predicted[part] *= factor
    return predicted


def _norm(evidences: Mapping[int, Evidence], parts: Mapping[int, Sequence[Flags]], rank: int) -> float:
    held = [evidences[at].analytic[part[rank]] for at, part in parts.items()]
    return float(np.linalg.norm(np.concatenate(held)))
