"""The Jacobian on trial, by the backward or in forward mode, against differences; in fast mode random parts of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.drop_in.columns import Columns, EveryCoordinate, RandomColumns
from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.function import LentFunction
from torch_gradcheck.drop_in.inputs import StridedInput
from torch_gradcheck.drop_in.judge import Judge, Tolerances
from torch_gradcheck.drop_in.noise import RowNoise, row_noise
from torch_gradcheck.drop_in.options import Options
from torch_gradcheck.drop_in.rows import EveryEntry, RandomRows, Rows
from torch_gradcheck.drop_in.sentences import Place, Places, not_decided, wrong_jacobian
from torch_gradcheck.objective.perturbation import RandomDirection

SEED = 0
"""Of all that is drawn: the same call has the same result."""

SUSPICIOUS = Tolerances(1e-7, 1e-7)
"""Fast mode looks at every entry where a random derivative differs by more than this."""

PARTS = ("real", "imaginary")

MadeBy = Callable[[Rows, Columns], Floats]
"""Gives the Jacobian on trial, shape (M, N), at what the inputs are moved to."""


def check_jacobian(function: LentFunction, options: Options, made_by: MadeBy, *, forward: bool) -> None:
    """Raises where the Jacobian is wrong, or cannot be told right.

    Args:
        function: the function, lent and started.
        options: what is asked of it.
        made_by: the Jacobian on trial.
        forward: whether it was made in forward mode.
    """
    if options.fast_mode and _Part.random(function, options, made_by).is_right():
        return
    _Part.whole(function, options, made_by).check(forward)


@dataclass(frozen=True)
class _Part:
    """The Jacobian, or random combinations of its entries.

    Attributes:
        function, options, made_by: as for `check_jacobian`.
        rows, columns: what it consists of.
        tolerances: what passes.
    """

    function: LentFunction
    options: Options
    made_by: MadeBy
    rows: Rows
    columns: Columns
    tolerances: Tolerances

    @classmethod
    def whole(cls, function: LentFunction, options: Options, made_by: MadeBy) -> _Part:
        """Every entry."""
        rows, columns = EveryEntry(function.chosen(function.outputs)), EveryCoordinate(function.inputs)
        return cls(function, options, made_by, rows, columns, Tolerances(options.atol, options.rtol))

    @classmethod
    def random(cls, function: LentFunction, options: Options, made_by: MadeBy) -> _Part:
        """One random derivative for each output and input."""
        rows = RandomRows(function.chosen(function.outputs), SEED)
        columns = RandomColumns(function.inputs, SEED + 1)
        return cls(function, options, made_by, rows, columns, SUSPICIOUS)

    @cached_property
    def _memories(self) -> list[Tensor]:
        return [each.memory for each in self.function.inputs]

    def _quantities(self) -> Floats:
        return self.rows.of(self.function.values())

    @cached_property
    def _noise(self) -> RowNoise:
        return row_noise(self._quantities, self._memories, self.function.epsilon, SEED)

    @property
    def _judge(self) -> Judge:
        step, nearby = self.options.step, self._points_nearby
        return Judge(self._quantities, self.columns, self._noise, step, self.tolerances, nearby)

    @property
    def _points_nearby(self) -> tuple[Callable[[int], RandomDirection], Callable[[], Floats]] | None:
        """See `Judge.nearby`; a sparse input has a leaf of its own, which does not move."""
        if not all(isinstance(each, StridedInput) for each in self.function.inputs):
            return None
        return (lambda k: RandomDirection(self._memories, SEED + 1 + k)), lambda: self.made_by(self.rows, self.columns)

    def _partner(self, forward: bool) -> Indices:
        """The entries of the other part: of the input, whose gradient is complex, or of the tangent of the output."""
        rows, columns = np.arange(len(self.rows.owners)), np.arange(len(self.columns.owners))
        rows, columns = (self.rows.partner, columns) if forward else (rows, self.columns.partner)
        return (rows[:, None] * len(columns) + columns).reshape(-1)

    def is_right(self) -> bool:
        """Whether differences agree with every entry; where they do not, nothing is said."""
        return self._judge.agrees(self.made_by(self.rows, self.columns), self._partner(forward=False))

    def check(self, forward: bool) -> None:
        """Raises where an entry is wrong, or can neither be told by error bars nor by torch's own difference."""
        judged = self._judge.judged(self.made_by(self.rows, self.columns), self._partner(forward))
        if judged.wrong.any():
            raise GradcheckFailedError(
                wrong_jacobian(judged, judged.wrong, self._places(forward), self.options, forward)
            )
        differences = self._plain_differences(judged.open)
        apart = judged.open & ~(np.abs(judged.analytic - differences) <= self.tolerances.allowed(differences))
        if apart.any():
            raise GradcheckFailedError(not_decided(judged, apart, self._places(forward), differences, self.options))

    def _plain_differences(self, which: Flags) -> Floats:
        """Centered differences by the step `eps`, as torch takes them, of the columns that have such entries."""
        found = np.full(which.shape, np.nan)
        for column in np.flatnonzero(which.any(axis=0)):
            with self.columns.at(int(column), self.options.eps) as right:
                above = self._quantities()
            with self.columns.at(int(column), -self.options.eps) as left:
                below = self._quantities()
            width = right - left  # NaN at an infinite entry, which no step moves
            found[:, column] = (above - below) / (width if np.isfinite(width) else 2 * self.options.eps)
        return found

    def _places(self, forward: bool) -> Places:
        rows, columns = self.rows, self.columns
        assert isinstance(rows, EveryEntry)
        assert isinstance(columns, EveryCoordinate)

        def place(row: int, column: int) -> Place:
            output, given = self.function.differentiable[int(rows.owners[row])], int(columns.owners[column])
            entry, coordinate = rows.index(row), columns.index(column)
            is_complex = (columns.partner[column] != column) if forward else (rows.partner[row] != row)
            part = PARTS[(coordinate if forward else entry)[-1]] if is_complex else ""
            return Place(output, entry, self.function.place_of(given), coordinate, part)

        return place


def check_independent(function: LentFunction, options: Options) -> None:
    """Raises where no output requires a gradient, and the outputs change with the inputs all the same."""
    inputs = function.inputs
    columns: Columns = RandomColumns(inputs, SEED) if options.fast_mode else EveryCoordinate(inputs)
    for column in range(len(columns.owners)):
        with columns.at(column, options.eps):
            above = function.values(everything=True)
        with columns.at(column, -options.eps):
            below = function.values(everything=True)
        if not np.array_equal(above, below, equal_nan=True):
            raise GradcheckFailedError(
                "Numerical gradient for function expected to be zero: none of its outputs requires a gradient, and "
                f"they change by up to {float(np.nanmax(np.abs(above - below))):.3g} where an input is moved by "
                f"{options.eps:g} to both sides. The graph is lost on the way: by detach(), .data, .item() or no_grad?"
            )
