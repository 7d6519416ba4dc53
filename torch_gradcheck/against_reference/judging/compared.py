"""The tensors that are compared, every gradient and every output, as flat numbers of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from torch_gradcheck.against_reference.runs.alike import common_outputs
from torch_gradcheck.against_reference.runs.run import Run
from torch_gradcheck.against_reference.runs.sides import Candidate
from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import analytic_gradient
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon, is_inexact
from torch_gradcheck.reporting.facts import Role


@dataclass(frozen=True)
class Compared:
    """One tensor of the candidate beside the reference's; all arrays of shape (coordinates,), float64.

    Attributes:
        entry: its name, shape and role; of an output with the output itself in place of a parameter.
        candidate: what the candidate computed, in each of its runs.
        right: what the reference computed in float64.
        rounded: what the reference computed in the candidate's dtype: plainly, then with rounding as noise.
        reached: whether the candidate's backward left a gradient at all.
        epsilon: machine epsilon of the dtype that the candidate keeps the tensor in.
        beside: what a mistake may be proportional to, by name: the inputs and the outputs of the same shape.
        refusal: why the reference does not run in that dtype, and `rounded` was simulated in float64; "" where it does.
        reference_dtype: of an output in which dtype the reference returns it there; None where that is not known.
    """

    entry: ThetaEntry
    candidate: Sequence[Floats]
    right: Floats
    rounded: Sequence[Floats]
    reached: bool
    epsilon: float
    beside: Mapping[str, Floats] = field(default_factory=dict)
    refusal: str = ""
    reference_dtype: torch.dtype | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the coordinates: a complex entry has two."""
        return (*self.entry.shape, 2) if self.entry.is_complex else self.entry.shape

    @property
    def largest(self) -> float:
        """The largest finite number of the dtype that the candidate keeps the tensor in."""
        return float(torch.finfo(self.entry.own_dtype).max)

    @property
    def smallest(self) -> float:
        """The smallest positive number of that dtype."""
        return float(torch.finfo(self.entry.own_dtype).smallest_normal) * self.epsilon


def compared(candidate: Candidate, exact: Run, rounded: Sequence[Run]) -> list[Compared]:
    """Every tensor on trial, then every output of floating point or complex numbers."""
    found = [*_gradients(candidate, exact, rounded), *_outputs(candidate, exact, rounded)]
    known = [*_inputs(candidate), *[(each.entry, each.right) for each in found if each.entry.role is Role.OUTPUT]]
    refusal = rounded[0].refusal if rounded else ""
    return [replace(each, beside=_beside(each, known), refusal=refusal) for each in found]


def _inputs(candidate: Candidate) -> list[tuple[ThetaEntry, Floats]]:
    return [(entry, _flat(entry, entry.parameter)) for entry in candidate.theta if is_inexact(entry.parameter)]


def _beside(each: Compared, known: Sequence[tuple[ThetaEntry, Floats]]) -> dict[str, Floats]:
    """The finite ones of the tensors known of the same shape."""
    alike = [
        (entry.name, values)
        for entry, values in known
        if entry.shape == each.entry.shape and entry.is_complex == each.entry.is_complex and values is not each.right
    ]
    return {name: values for name, values in alike if np.all(np.isfinite(values))}


def _gradients(candidate: Candidate, exact: Run, rounded: Sequence[Run]) -> list[Compared]:
    entries = [candidate.theta[position] for position in candidate.theta.checked]
    return [
        Compared(
            entry,
            _runs(entry, [run.gradients[k] for run in candidate.runs]),
            _flat(entry, exact.gradients[k]),
            [_flat(entry, run.gradients[k]) for run in rounded],
            candidate.runs[0].gradients[k] is not None,
            epsilon(entry.own_dtype),
        )
        for k, entry in enumerate(entries)
    ]


def _outputs(candidate: Candidate, exact: Run, rounded: Sequence[Run]) -> list[Compared]:
    found = candidate.runs[0].outputs
    entries = {name: _entry_of(name, found[name]) for name in common_outputs(found, exact.outputs)}
    return [
        _without_equal_infinities(
            Compared(
                entry,
                _runs(entry, [run.outputs[name] for run in candidate.runs]),
                _flat(entry, exact.outputs[name]),
                [_flat(entry, run.outputs[name]) for run in rounded],
                True,
                epsilon(entry.own_dtype),
                reference_dtype=rounded[0].outputs[name].dtype if rounded and not rounded[0].refusal else None,
            )
        )
        for name, entry in entries.items()
    ]


def _without_equal_infinities(each: Compared) -> Compared:
    """The same with 0 in all runs where the candidate returns the infinity that is right, as of a mask."""
    equal = np.isinf(each.right) & np.all([run == each.right for run in each.candidate], axis=0)
    if not equal.any():
        return each

    def finite(numbers: Floats) -> Floats:
        return np.where(equal, 0.0, numbers)

    return replace(
        each,
        candidate=[finite(run) for run in each.candidate],
        right=finite(each.right),
        rounded=[finite(run) for run in each.rounded],
    )


def _entry_of(name: str, output: torch.Tensor) -> ThetaEntry:
    nothing = np.empty(0, dtype=np.int64)
    return ThetaEntry(name, (), output, True, False, nothing, output.dtype, Role.OUTPUT)


def _runs(entry: ThetaEntry, tensors: Sequence[torch.Tensor | None]) -> list[Floats]:
    """The numbers of each run; one array for all that equal the first."""
    first, *others = [_flat(entry, tensor) for tensor in tensors]
    return [first, *[first if np.array_equal(each, first) else each for each in others]]


def _flat(entry: ThetaEntry, tensor: torch.Tensor | None) -> Floats:
    return analytic_gradient(entry, tensor, 0.0).values
