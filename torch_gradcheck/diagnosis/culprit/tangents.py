"""One coordinate of θ whose gradient is known to be wrong, and the tangents of all calls' inputs along it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.diagnosis.culprit.call_recording import Recording
from torch_gradcheck.diagnosis.culprit.pairing import kind_of
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.unwritten_memory import ZeroedMemory
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import MovedCoordinate, coordinate_views, real_view
from torch_gradcheck.objective.theta import ThetaEntry

Tangents = list[torch.Tensor | None]
"""The derivative of each tensor in a call's arguments along the coordinate; None for a tensor that does not move."""


@dataclass(frozen=True, eq=False)
class WrongCoordinate:
    """A coordinate whose gradient is wrong.

    Attributes:
        entry: its parameter.
        coordinate: flat, in the order of `ThetaEntry.locate`.
        analytic: autograd's gradient.
        numeric, error_bar: the right gradient and its error bar.
        unit: max(1, |θ_i|); steps are multiples of it.
    """

    entry: ThetaEntry
    coordinate: int
    analytic: float
    numeric: float
    error_bar: float
    unit: float

    @property
    def error(self) -> float:
        """E = analytic − numeric, which the contributions of all calls add up to."""
        return self.analytic - self.numeric

    @property
    def name(self) -> str:
        """Parameter name and index, such as "fc.weight[2, 0]"."""
        index, part = self.entry.locate(self.coordinate)
        return f"{self.entry.name}{list(index) if index else ''}{f' ({part})' if part else ''}"

    def of(self, gradient: torch.Tensor) -> float:
        """This coordinate's entry of a gradient of the whole parameter, which may be sparse or complex."""
        dense = gradient.detach().to_dense() if gradient.layout is not torch.strided else gradient.detach()
        return float(real_view(dense.resolve_conj()).reshape(-1)[self.coordinate])

    def moved(self, step: float) -> MovedCoordinate:
        """θ with this coordinate moved inside the block, which gets the step really taken in the precision of θ."""
        (coordinate,) = coordinate_views(self.entry.parameter.data, np.array([self.coordinate]))
        return MovedCoordinate(coordinate, step)


@dataclass(frozen=True)
class Motion:
    """How the calls of J move along one coordinate.

    Attributes:
        kinds: what each call is, in order, by `kind_of`.
        tangents: those of its inputs.
        roots: outputs that move though they have no graph: the number of the call, and the position.
    """

    kinds: list[tuple[str, bool]]
    tangents: list[Tangents]
    roots: frozenset[tuple[int, int]]

    @classmethod
    def along(cls, wrong: WrongCoordinate, step: float, objective: Objective) -> Motion | None:
        """By centered differences between θ ± step; None where J makes other calls at one than at the other.

        Args:
            wrong: the coordinate to move.
            step: how far.
            objective: J; it is evaluated and recorded twice.
        """
        (plus, ahead), (minus, back) = [_recorded(wrong, sign * step, objective) for sign in (1.0, -1.0)]
        kinds = list(map(kind_of, plus))
        if kinds != list(map(kind_of, minus)):
            return None
        pairs = list(zip(plus, minus, strict=True))
        tangents = [
            [_slope(a, b, ahead - back) for a, b in zip(after.inputs, before.inputs, strict=False)]
            for after, before in pairs
        ]
        roots = [(after.number, k) for after, before in pairs for k in _moving(after.ungraphed, before.ungraphed)]
        return cls(kinds, tangents, frozenset(roots))

    def of(self, calls: Sequence[RecordedCall]) -> dict[RecordedCall, Tangents] | None:
        """The tangents of the calls of a run at θ; None where these are others. A backward may have ended J early."""
        kinds = list(map(kind_of, calls))
        return dict(zip(calls, self.tangents, strict=False)) if kinds == self.kinds[: len(kinds)] else None


def _recorded(wrong: WrongCoordinate, step: float, objective: Objective) -> tuple[list[RecordedCall], float]:
    recording = Recording(lambda: objective.random_state, outputs=False)
    with wrong.moved(step) as taken, torch.enable_grad(), objective.evaluation(), recording, ZeroedMemory():
        objective.compute()
    return [call for call in recording.calls if not call.in_backward], taken


def _moving(plus: dict[int, torch.Tensor], minus: dict[int, torch.Tensor]) -> list[int]:
    """The positions of the tensors that are not the same in both; all, where one has others than the other."""
    return [k for k in plus | minus if k not in plus or k not in minus or _slope(plus[k], minus[k], 1.0) is not None]


def _slope(plus: torch.Tensor, minus: torch.Tensor, width: float) -> torch.Tensor | None:
    inexact = plus.is_floating_point() or plus.is_complex()
    if not inexact or plus.shape != minus.shape or torch.equal(plus, minus):
        return None
    return change(plus, minus) / width


def change(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """after − before; 0 where they are equal, the −∞ of masked scores too."""
    return torch.where(after == before, 0.0, after - before)
