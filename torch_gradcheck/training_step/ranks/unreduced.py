"""Recognises gradients that were never averaged over the ranks: each rank's `.grad` is that of its own batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.training_step.ranks.window import WindowOfRanks
from torch_gradcheck.training_step.window import SAME_SHARE

OF_ALL = (
    "no_sync() was left on (set_requires_gradient_sync(False) of FSDP), or the backward did not go through the model "
    "that is wrapped"
)

WAITING = (
    "not reduced over the ranks: .grad is None, and each rank holds the gradient of its own batches, which FSDP has "
    "not reduced: set_requires_gradient_sync(False), or set_requires_all_reduce(False), was left on for the last "
    "backward of the step"
)

OF_ONE = "it was unused on a rank, made after the model was wrapped, or is among those that are not reduced"


def unreduced(
    evidences: Mapping[int, Evidence],
    held: Mapping[int, Sequence[Floats]],
    window: WindowOfRanks,
    parts: Sequence[Mapping[int, Floats]],
) -> dict[int, Diagnosis]:
    """UNREDUCED, by position in θ, where every rank holds a multiple of its own gradient.

    Args:
        evidences: of every parameter.
        held: position of a parameter whose `.grad` the ranks do not agree on → that of each of them, at the entries of
            the evidence.
        window: the batches of all ranks.
        parts: the gradient of each batch by position in θ, at these entries.
    """
    own = {position: [_own(window, parts, rank, position) for rank in range(window.world)] for position in held}
    factors = [_factor(held, own, rank) for rank in range(window.world)]
    found = [
        position
        for position in held
        if evidences[position].wrong.any() and _is_own(evidences[position], held[position], own[position], factors)
    ]
    informative = [position for position, evidence in evidences.items() if evidence.resolved.any()]
    whole = bool(informative) and set(informative) <= set(found)
    return {position: _diagnosis(own[position], factors, whole) for position in found}


def _own(window: WindowOfRanks, parts: Sequence[Mapping[int, Floats]], rank: int, position: int) -> Floats:
    """The gradient that one rank's own backward leaves."""
    shares = window.own_shares(rank)
    return np.asarray(sum(share * part[position] for share, part in zip(shares, parts, strict=True) if share))


def _factor(held: Mapping[int, Sequence[Floats]], own: Mapping[int, Sequence[Floats]], rank: int) -> float:
    """How many times its own gradient a rank holds; 1 where it has none of these parameters."""
    along = sum(float(np.dot(held[at][rank], own[at][rank])) for at in held)
    square = sum(float(np.dot(own[at][rank], own[at][rank])) for at in held)
    factor = along / square if square and np.isfinite(along) else 1.0
    return 1.0 if abs(factor - 1) <= SAME_SHARE else factor


def _is_own(evidence: Evidence, held: Sequence[Floats], own: Sequence[Floats], factors: Sequence[float]) -> bool:
    return all(
        replace(evidence, analytic=given).explains(factor * gradient)
        for given, gradient, factor in zip(held, own, factors, strict=True)
    )


def _diagnosis(own: Sequence[Floats], factors: Sequence[float], whole: bool) -> Diagnosis:
    times = {factor for gradient, factor in zip(own, factors, strict=True) if np.any(gradient)}
    factor = next(iter(times)) if len(times) == 1 else None
    what = "the gradient of that rank's own batch"
    if times != {1.0}:
        what = f"{factor:.4g} × {what}" if factor else f"a multiple of {what}"
    absent = [str(rank) for rank, gradient in enumerate(own) if not np.any(gradient)]
    unused = f" (the loss of rank {', '.join(absent)} does not reach it)" if absent else ""
    cause = OF_ALL if whole else OF_ONE
    return Diagnosis(
        DiagnosisKind.UNREDUCED,
        f"not reduced over the ranks: .grad on each rank is {what}{unused}: {cause}",
        None if factor == 1.0 else factor,
    )
