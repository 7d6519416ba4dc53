"""A Jacobian judged as torch judges it, |a − n| ≤ atol + rtol·|n| in every entry, by differences with error bars.

Entry (i, j) is the derivative of f_ij(t), quantity i of the outputs with the inputs moved by t in direction j. All are
judged at once, as the entries of a gradient are; one run of the function serves a whole column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.drop_in.columns import Columns
from torch_gradcheck.drop_in.noise import Quantities, RowNoise
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.verdicts.entry_check import (
    ANALYTIC_ROUNDING,
    CONTRADICTION,
    FEW_PROBES,
    EntryCheck,
    NearbyGradient,
    NearbySampler,
    Outcome,
)
from torch_gradcheck.verdicts.judge import judge_suspects
from torch_gradcheck.verdicts.measurement import better_measured, measured

LEAST_TOLERANCE, LARGEST_TOLERANCE = 1e-8, 1e-3
"""A step is chosen to resolve relative errors between these, whatever the tolerances are."""

FIRST = 4
"""How many entries are looked at first where differences disagree: one that is wrong is enough to fail."""

NO_FLOATS: Floats = np.empty(0)


@dataclass(frozen=True)
class Tolerances:
    """The largest difference that passes: atol + rtol·|n|."""

    atol: float
    rtol: float

    def allowed(self, numeric: Floats) -> Floats:
        """For each derivative the difference that passes."""
        return np.asarray(self.atol + self.rtol * np.abs(numeric))


@dataclass(frozen=True)
class JacobianCheck(EntryCheck):
    """Entries of a Jacobian on trial, each in units of the noise of its row.

    Attributes:
        absolute: shape (N,), atol in these units.
        relative: rtol.
        partner: shape (N,), the gradient on trial of the other part of the same complex number, 0 for a real one.
        rounding_of_rows: shape (N,), see `EntryCheck.rounding`.
    """

    absolute: Floats = field(default_factory=lambda: NO_FLOATS)
    relative: float = 0.0
    partner: Floats = field(default_factory=lambda: NO_FLOATS)
    rounding_of_rows: Floats = field(default_factory=lambda: NO_FLOATS)

    def agrees(self, which: Indices, numeric: Floats, error_bar: Floats, margin: float = 1.0) -> Flags:
        """See `EntryCheck.agrees`: |a − n| ≤ atol + rtol·|n| + margin · error bar + rounding of a."""
        analytic = self.analytic[which]
        with np.errstate(all="ignore"):
            allowed = self.absolute[which] + self.relative * np.hypot(numeric, self.partner[which])
            allowed = allowed + margin * error_bar + self.rounding[which]
            return np.asarray(np.isfinite(analytic) & (np.abs(analytic - numeric) <= allowed))

    @cached_property
    def rounding(self) -> Floats:
        """See `EntryCheck.rounding`."""
        return self.rounding_of_rows


@dataclass(frozen=True)
class Judged:
    """What was found of every entry; shape (M, N), rows by columns.

    Attributes:
        analytic, numeric, error_bar: of the derivative.
        wrong: the entries that are off by more than the tolerances allow.
        open: those of which differences can say neither.
    """

    analytic: Floats
    numeric: Floats
    error_bar: Floats
    wrong: Flags
    open: Flags


@dataclass(frozen=True)
class Judge:
    """Judges Jacobians of one function.

    Attributes:
        quantities: runs the function: the rows at what the inputs are moved to.
        columns: the directions of the moves.
        noise: of the rows.
        step: of the differences; None chooses one.
        tolerances: what passes.
        nearby: the k-th direction to points near the inputs, and the Jacobian on trial at what they are moved to; None
            where there is no way to have it.
    """

    quantities: Quantities
    columns: Columns
    noise: RowNoise
    step: float | None
    tolerances: Tolerances
    nearby: tuple[Callable[[int], RandomDirection], Callable[[], Floats]] | None = None

    def judged(self, analytic: Floats, partner: Indices) -> Judged:
        """The verdict on every entry.

        Args:
            analytic: shape (M, N), on trial.
            partner: shape (M · N,), the entry of the other part of the same complex number; itself for a real one.
        """
        check = self._check(analytic, partner)
        results = judge_suspects(better_measured(measured(check, None)), FIRST)
        shape, unit = analytic.shape, self._unit.reshape(analytic.shape)
        numeric, error_bar = results.numeric.reshape(shape) * unit, results.error_bar.reshape(shape) * unit
        outcome = results.outcome.reshape(shape)
        judged = Judged(analytic, numeric, error_bar, outcome == Outcome.MISMATCH, outcome == Outcome.UNDECIDED)
        return self._both_parts(judged, outcome, partner)

    def agrees(self, analytic: Floats, partner: Indices) -> bool:
        """Whether differences that resolve the tolerances agree with every entry, with no closer look at any."""
        measurement = measured(self._check(analytic, partner), None)
        numeric = measurement.results.numeric * self._unit
        unresolved = measurement.results.error_bar * self._unit > self.tolerances.allowed(numeric)
        return not (len(measurement.suspects) or unresolved.any())

    def _both_parts(self, judged: Judged, outcome: NDArray[np.int8], partner: Indices) -> Judged:
        """The same where complex numbers are judged by their modulus, and what is not resolved is left open."""
        off, shape = np.abs(judged.analytic - judged.numeric), judged.analytic.shape
        size, bar = np.abs(judged.numeric), judged.error_bar
        if np.any(partner != np.arange(len(partner))):
            is_real = (partner == np.arange(len(partner))).reshape(shape)
            off, size, bar = (
                np.where(is_real, x, np.hypot(x, x.reshape(-1)[partner].reshape(shape))) for x in (off, size, bar)
            )
        allowed = self.tolerances.allowed(size)
        match = outcome == Outcome.MATCH
        rounding = (self._rounding(judged.analytic) * self._unit).reshape(shape)
        wrong = judged.wrong | (match & (off > allowed + CONTRADICTION * bar + rounding))
        return Judged(judged.analytic, judged.numeric, bar, wrong, ~wrong & (judged.open | (match & (bar > allowed))))

    def _check(self, analytic: Floats, partner: Indices) -> JacobianCheck:
        flat, rows = analytic.reshape(-1) / self._unit, analytic.shape[0]
        noise = self.noise.in_units
        nearby, nearby_analytic = self._nearby(partner)
        sampler = self._sampler(self.noise.at_zero)
        return JacobianCheck(
            sampler=sampler,
            at_zero=lambda: noise.at_zero,
            eager_sampler=sampler,
            nearby=nearby,
            nearby_analytic=nearby_analytic,
            analytic=flat,
            analytic_epsilon=self.noise.epsilon,
            unit=_repeated(self.columns.unit, rows),
            scale=_repeated(self.columns.scale, rows),
            noise=noise,
            tolerance=float(np.clip(self.tolerances.rtol / 2, LEAST_TOLERANCE, LARGEST_TOLERANCE)),
            eps=self.step,
            probes=FEW_PROBES,
            absolute=self.tolerances.atol / self._unit,
            relative=self.tolerances.rtol,
            partner=np.where(partner == np.arange(len(flat)), 0.0, flat[partner]),
            rounding_of_rows=self._rounding(analytic),
        )

    def _rounding(self, analytic: Floats) -> Floats:
        """How far entries may be off by their own rounding, in units of noise: 64 ε of the largest of their row."""
        size = np.nan_to_num(np.abs(analytic), posinf=0.0)
        largest = np.max(size, axis=1, initial=0.0, keepdims=True)
        epsilon = self.noise.epsilon
        return np.asarray((ANALYTIC_ROUNDING * epsilon * largest + epsilon * size).reshape(-1) / self._unit)

    @cached_property
    def _unit(self) -> Floats:
        """The noise of the row of every entry, shape (M · N,)."""
        return np.repeat(self.noise.sigma, len(self.columns.owners))

    def _sampler(self, at_zero: Floats) -> Sampler:
        """Evaluates f_ij(t), less its value at 0, in units of the noise of row i, plus one level for all."""
        level, count = self.noise.level, len(self.columns.owners)

        def sample(which: Indices, steps: Floats) -> Samples:
            rows, columns = np.divmod(which, count)
            first, inverse = _distinct(columns, steps)
            taken, found = np.empty(len(first)), np.empty((len(first), len(at_zero)))
            for k, which_first in enumerate(first):
                with self.columns.at(int(columns[which_first]), float(steps[which_first])) as taken[k]:
                    found[k] = self.quantities()
            with np.errstate(all="ignore"):
                values = (found[inverse, rows] - at_zero[rows]) / self.noise.sigma[rows] + level
            return Samples(taken[inverse], values)

        return sample

    def _nearby(self, partner: Indices) -> tuple[NearbySampler | None, NearbyGradient | None]:  # noqa: ARG002
        if self.nearby is None:
            return None, None
        direction, jacobian = self.nearby

        def sampler(k: int, distance: float) -> Sampler:
            def sample(which: Indices, steps: Floats) -> Samples:
                with direction(k).at(distance):
                    return self._sampler(self.quantities())(which, steps)

            return sample

        def analytic(k: int, distance: float) -> Floats:
            with direction(k).at(distance):
                return jacobian().reshape(-1) / self._unit

        return sampler, analytic


def _distinct(columns: Indices, steps: Floats) -> tuple[Indices, Indices]:
    """The first place of each distinct pair (column, step), and for every place the number of its pair."""
    order = np.lexsort((steps, columns))
    changes = (np.diff(columns[order]) != 0) | (np.diff(steps[order]) != 0)
    numbers = np.concatenate([[0], np.cumsum(changes)]) if len(order) else order
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = numbers
    starts = np.flatnonzero(np.concatenate([[True], changes])) if len(order) else order
    return order[starts], inverse


def _repeated(of_columns: Floats, rows: int) -> Floats:
    """From one number a column to one an entry, shape (M · N,)."""
    return np.concatenate([of_columns] * rows) if rows else np.empty(0)
