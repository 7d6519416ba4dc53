"""Says for which output's gradient a function's backward is wrong, and for which it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.diagnosis.kind.factors import factor_in_words
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import MovedCoordinate, coordinate_views, real_view
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.words import listed

CLEAR = 10.0
"""An output is told wrong whose slope is off by 10 error bars, and right where it is not."""

STRAIGHT = 0.01
"""The slopes to both sides may differ by 1 % of the error: where they differ more, a kink may be what is seen."""

UNITS = 32
"""The noise of ⟨v, y⟩ is taken for 32 units in its last place."""

FEW = 3
"""A factor is looked for at 3 of the worst entries, one by one."""

SAME_FACTOR = 1e-4
"""Factors are one where they agree to 1e-4."""

MOST = 6
"""How many outputs a sentence names, at most."""


def told_by_output(
    problem: Problem, loss: FunctionLoss, rows: Sequence[ParameterReport]
) -> tuple[ParameterReport, ...]:
    """The rows, the wrong ones with a reason that says for which output's gradient they are.

    J is differenced output by output, in five evaluations a wrong row, along one direction through the row's worst
    entries, and in five at each of three of them; the gradient is that of one output, with zeros for the others. Costs
    nothing where nothing is wrong, or there is only one output.

    Args:
        problem: J, lent.
        loss: J as a sum over outputs.
        rows: in the order of θ.
    """
    wrong = [position for position, row in enumerate(rows) if row.status is Status.MISMATCH]
    if not wrong or len(loss.in_j) < 2:
        return tuple(rows)
    told = list(rows)
    try:
        outputs = _Outputs(problem, loss)
        for position in wrong:
            told[position] = outputs.told(position, rows[position])
    except Exception:  # whatever the function raises for the gradient of one output, the verdict stands
        return tuple(rows)
    return tuple(told)


@dataclass(frozen=True)
class Slope:
    """The slope of ⟨v, y⟩ of one output: by its gradient, and by differences; `kink`: how much these differ by side."""

    analytic: float
    numeric: float
    error_bar: float
    kink: float

    @property
    def is_nothing(self) -> bool:
        """Whether the output does not depend on what was moved, nor its gradient."""
        return max(abs(self.analytic), abs(self.numeric)) <= self.error_bar

    @property
    def is_right(self) -> bool:
        """Whether gradient and differences agree."""
        return abs(self.analytic - self.numeric) <= CLEAR * self.error_bar

    @property
    def is_wrong(self) -> bool:
        """Whether they differ, at no kink."""
        off = abs(self.analytic - self.numeric)
        return not self.is_right and (self.kink <= STRAIGHT * off or not math.isfinite(off))

    @property
    def factor(self) -> float:
        """How many times the right slope it is; NaN where that is not resolved."""
        return self.analytic / self.numeric if abs(self.numeric) > self.error_bar / SAME_FACTOR else math.nan


class _Outputs:
    """J output by output; the gradients of each are taken once, when this is made."""

    def __init__(self, problem: Problem, loss: FunctionLoss) -> None:
        self._problem, self._loss, self._objective = problem, loss, problem.objective
        parameters = [entry.parameter for entry in problem.theta]
        self._gradients = {name: self._gradient(name, parameters) for name in loss.in_j}

    def told(self, position: int, row: ParameterReport) -> ParameterReport:
        """The row with a reason that says which gradients it is wrong for, and by which factor."""
        entry = self._problem.theta[position]
        worst = [each for each in row.worst if each.status is Status.MISMATCH]
        coordinates = np.array([_flat(entry, each.index, each.part) for each in worst], dtype=np.int64)
        signs = np.array([1.0 if each.analytic > each.numeric else -1.0 for each in worst])
        h = row.eps or epsilon(self._objective.dtype) ** (1 / 3)
        slopes = self._slopes(position, coordinates, signs, h)
        wrong = [name for name, slope in slopes.items() if slope.is_wrong]
        several = range(min(FEW, len(worst))) if wrong and len(worst) > 1 else ()
        alone = [self._slopes(position, coordinates[[k]], signs[[k]], h) for k in several]
        factors = {name: _common([each[name].factor for each in alone]) for name in wrong}
        return _told(row, slopes, [f"{name}{factors[name]}" for name in wrong])

    def _slopes(self, position: int, coordinates: Indices, signs: Floats, h: float) -> Mapping[str, Slope]:
        """The slopes along these entries of θ, each moved with its sign."""
        entry = self._problem.theta[position]
        at = {step: self._terms(entry, coordinates, step * signs) for step in (0.0, h, -h, h / 2, -h / 2)}
        return {
            name: self._slope(self._along(name, position, coordinates, signs), {s: v[name] for s, v in at.items()}, h)
            for name in self._loss.in_j
        }

    def _slope(self, analytic: float, at: Mapping[float, float], h: float) -> Slope:
        wide, close = (at[h] - at[-h]) / (2 * h), (at[h / 2] - at[-h / 2]) / h
        noise = UNITS * epsilon(self._objective.dtype) * max(map(abs, at.values())) / h
        by_side = abs((at[h] - at[0.0]) - (at[0.0] - at[-h])) / h
        return Slope(analytic, (4 * close - wide) / 3, abs(close - wide) + noise, by_side)

    def _along(self, name: str, position: int, coordinates: Indices, signs: Floats) -> float:
        gradient = self._gradients[name][position]
        if gradient is None:
            return 0.0
        dense = gradient.detach() if gradient.layout is torch.strided else gradient.detach().to_dense()
        numbers = real_view(dense.resolve_conj()).reshape(-1)[torch.from_numpy(coordinates)]
        return float((numbers.cpu().to(torch.float64) * torch.from_numpy(signs)).sum())

    def _gradient(self, name: str, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Of ⟨v, y⟩ of one output; the others take part with gradients of zeros."""
        with torch.enable_grad(), self._objective.evaluation(at_theta=True):
            terms = self._loss.terms()
            total = sum([term * float(name == other) for other, term in terms.items()], torch.zeros(()))
            return gradients_of([total] if total.requires_grad else [], parameters)

    def _terms(self, entry: ThetaEntry, coordinates: Indices, steps: Floats) -> dict[str, float]:
        """⟨v, y⟩ of every output with these coordinates moved."""
        views = coordinate_views(entry.parameter.data, coordinates)
        with ExitStack() as moved:
            for view, step in zip(list(views), steps, strict=True):
                moved.enter_context(MovedCoordinate(view, float(step)))
            return _numbers(self._objective, self._loss)


def _numbers(objective: Objective, loss: FunctionLoss) -> dict[str, float]:
    with torch.set_grad_enabled(objective.needs_graph), objective.evaluation():
        return {name: float(term.detach()) for name, term in loss.terms().items()}


def _flat(entry: ThetaEntry, index: Sequence[int], part: str | None) -> int:
    """The flat coordinate that `ThetaEntry.locate` gives this index and part for."""
    flat = int(np.ravel_multi_index(tuple(index), entry.shape)) if entry.shape else 0
    return 2 * flat + (part == "imag") if entry.is_complex else flat


def _common(factors: Sequence[float]) -> str:
    """Words on the factor that several entries have in common; "" where they have none."""
    if not factors or not np.allclose(factors, factors[0], rtol=SAME_FACTOR, atol=SAME_FACTOR):
        return ""
    return f" ({factor_in_words(factors[0])} times the right one)" if factors[0] else " (it is 0)"


def _told(row: ParameterReport, slopes: Mapping[str, Slope], wrong: Sequence[str]) -> ParameterReport:
    depending = {name: slope for name, slope in slopes.items() if not slope.is_nothing}
    right = [name for name, slope in depending.items() if slope.is_right]
    if wrong:
        on_right = f"; right for that of {listed(right, MOST)}" if right else ""
        return replace(
            row,
            reason=f"{row.reason}: wrong for the gradient{'s' * (len(wrong) > 1)} of {listed(wrong, MOST)}{on_right}",
        )
    if depending and len(right) == len(depending) > 1:
        return replace(row, reason=f"{row.reason}: right for the gradient of each output alone, wrong for all together")
    return row
