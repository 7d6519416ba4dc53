"""The window of a training step: the batches it accumulates over, their weights, and mistakes in weighting them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.diagnosis.kind.evidence import ERROR_BARS_ALLOWED, Evidence
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.objective.loss import Loss, MeanLoss
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind

SAME_SHARE = 5e-3
"""The distance within which two shares of a window are the same, relative to the largest: 0.5 %."""

NOTHING = 0.02
"""A batch whose share is below 2 % of the largest has left nothing in `.grad`."""

KNOWN = 0.05
"""Shares are believed where rounding leaves each of them open by at most 5 % of the largest."""

ENTRIES_BESIDES = 8
"""Entries needed besides one for each share that is fitted: so many do not agree by accident."""

LISTED = 6
"""The largest number of batches whose shares are listed."""


@dataclass(frozen=True)
class Window:
    """The batches of one optimizer step: J = Σ wᵢ Jᵢ / divisor.

    Attributes:
        losses: Jᵢ, one a batch.
        weights: wᵢ as the loop declared them; empty: equal, 1 each.
        divisor: the sum of the weights; another number where a trainer divides by it.
        accumulate: the batches of a whole window, as declared.
    """

    losses: Sequence[Loss]
    weights: Sequence[float]
    divisor: float
    accumulate: int

    def mean(self, starts: Sequence[Start] = ()) -> MeanLoss:
        """J, each batch from its own random state."""
        return MeanLoss(self.losses, self.divisor, starts, self.weights)

    @property
    def shares(self) -> Floats:
        """What each batch's gradient is multiplied by."""
        return np.array(self.weights or [1.0] * len(self.losses)) / self.divisor

    @property
    def suspected(self) -> Sequence[Floats]:
        """Shares that a usual mistake leaves, to be tried where rounding leaves the fitted ones open."""
        return ()

    @property
    def note(self) -> str:
        """Words on a divisor that is not the sum of the weights; "" where it is."""
        share = float(np.sum(self.shares))
        if self.weights or abs(share - 1) < SAME_SHARE:
            return ""
        return (
            f"this step has {_batches(len(self.losses))}, and the trainer divides the sum of their losses by "
            f"{self.divisor:g}: .grad is judged as {share:.3g} of the gradient of their mean"
        )

    def factor_meanings(self) -> list[FactorMeaning]:
        """Factors on the right gradient that mistakes in dividing the losses of this window leave."""
        count, total = len(self.losses), float(np.sum(self.weights or [1.0] * len(self.losses)))
        meanings = [
            FactorMeaning(
                1 / self.accumulate,
                f"losses that are means over the window already were divided by {self.accumulate} accumulation steps",
            )
        ]
        if count != self.accumulate:
            words = (
                f"this window has {_batches(count)}, and their losses were divided by {self.accumulate} (accumulate=), "
                "not by their own number"
            )
            meanings.insert(0, FactorMeaning(count / self.accumulate, words))
        if self.weights:
            undivided = f"the losses were summed and not divided by the sum of the weights, {total:g}"
            meanings += [
                FactorMeaning(total, undivided),
                FactorMeaning(total / self.accumulate, f"{undivided}, but by {self.accumulate} accumulation steps"),
            ]
        return [meaning for meaning in meanings if abs(meaning.factor - 1) > SAME_SHARE]

    def message(self, found: Floats, scaled: bool) -> str:
        """Words on shares that are not those declared; "" where they are, but for a factor on all.

        Args:
            found: the share of each batch in `.grad`.
            scaled: a clipped norm has scaled all of them alike.
        """
        declared, total = self.shares, float(np.sum(found))
        if not total or alike(found / total, declared / np.sum(declared)):
            return ""
        factor = 1.0 if scaled else total / float(np.sum(declared))
        times = "" if abs(factor - 1) <= SAME_SHARE else f"{factor:.4g} × "
        return self._words_on(found, times)

    def _words_on(self, found: Floats, times: str) -> str:
        """The mistake, `times` being words on a factor on all."""
        total, of = float(np.sum(found)), f"the {len(found)} batches of this step"
        missing = [str(at + 1) for at in nothing_of(found)]
        if missing:
            return (
                f"dθ holds nothing of batch {', '.join(missing[:LISTED])} of {of}: was zero_grad() called within the "
                "window, or are they not one window (accumulate=, last=)?"
            )
        declared = self.shares / np.sum(self.shares)
        if alike(found / total, np.full(len(found), 1 / len(found))):
            return (
                f"dθ is {times}the mean of {of} with equal weights, a mean of means, where they count "
                f"{shares_listed(declared)} by their weight=: the micro-batches were averaged with equal "
                f"weights. Divide each batch's summed loss by the window's total, {np.sum(self.weights):g}"
            )
        by = shares_listed(declared) if self.weights else "equal weights"
        return (
            f"dθ is {times}the mean of {of} with weights {shares_listed(found / total)}, where {by} are declared. "
            "If that is meant (tokens, samples), tell the monitor: step(batch, weight=)"
        )


def window_mistake(
    evidences: Mapping[int, Evidence], window: Window, parts: Sequence[Mapping[int, Floats]], scaled: bool
) -> dict[int, Diagnosis]:
    """The mistake in how the batches of a window are weighted, by position in θ; nothing where there is none.

    `.grad` is taken for Σ cᵢ gᵢ with gᵢ the gradient of Jᵢ, and the cᵢ are found from all parameters together.

    Args:
        evidences: of every parameter.
        window: as the loop declared it.
        parts: gᵢ by position in θ, at the entries of the evidence.
        scaled: a clipped norm has scaled all cᵢ alike.
    """
    wrong = [position for position, evidence in evidences.items() if evidence.wrong.any()]
    fitted = [found for found in (_equal(evidences, parts), _fitted(evidences, parts)) if len(found)]
    candidates = [*fitted, *window.suspected]
    for candidate in candidates:
        predicted = {
            at: np.asarray(sum(c * part[at] for c, part in zip(candidate, parts, strict=True))) for at in wrong
        }
        explained = [position for position in wrong if evidences[position].explains(predicted[position])]
        message = window.message(candidate, scaled)
        if message and 2 * len(explained) > len(wrong):
            return dict.fromkeys(explained, Diagnosis(DiagnosisKind.WEIGHTED, message))
    return {}


def _fitted(evidences: Mapping[int, Evidence], parts: Sequence[Mapping[int, Floats]]) -> Floats:
    """The cᵢ that come closest to `.grad`, by least squares; empty where they are not determined."""
    columns, targets = [], []
    for position, evidence in evidences.items():
        which = evidence.judged & np.isfinite(evidence.analytic)
        weight = evidence.weights[which]
        columns.append(np.stack([part[position][which] * weight for part in parts], axis=1))
        targets.append(evidence.analytic[which] * weight)
    matrix, target = np.concatenate(columns), np.concatenate(targets)
    if len(target) < len(parts) + ENTRIES_BESIDES or not np.all(np.isfinite(matrix)):
        return np.empty(0)
    found, _, rank, _ = np.linalg.lstsq(matrix, target, rcond=None)
    if rank < len(parts):
        return np.empty(0)
    open_by = ERROR_BARS_ALLOWED * np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)))
    known = np.max(open_by) <= KNOWN * np.max(np.abs(found))
    return np.asarray(found) if known else np.empty(0)


def _equal(evidences: Mapping[int, Evidence], parts: Sequence[Mapping[int, Floats]]) -> Floats:
    """The same, all cᵢ alike: one number is determined where rounding leaves several open."""
    together = {position: np.asarray(sum(part[position] for part in parts)) for position in evidences}
    return np.repeat(_fitted(evidences, [together]), len(parts))


def nothing_of(found: Floats) -> list[int]:
    """The places of the batches that have left nothing in `.grad`."""
    return [int(at) for at in np.flatnonzero(np.abs(found) < NOTHING * np.max(np.abs(found)))]


def alike(one: Floats, other: Floats) -> bool:
    """Whether two lists of shares are the same."""
    return bool(np.max(np.abs(one - other)) <= SAME_SHARE * np.max(np.abs(other)))


def shares_listed(shares: Floats) -> str:
    """Shares in words, the first of many."""
    listed = ", ".join(f"{share:.3g}" for share in shares[:LISTED])
    return f"{listed}, ..." if len(shares) > LISTED else listed


def _batches(count: int) -> str:
    return f"{count} batch{'' if count == 1 else 'es'}"
