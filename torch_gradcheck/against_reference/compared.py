"""The tensors that are compared, every gradient and every output, as flat numbers of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from torch_gradcheck.against_reference.alike import common_outputs
from torch_gradcheck.against_reference.run import Run
from torch_gradcheck.against_reference.sides import Candidate
from torch_gradcheck.arrays import Floats
from torch_gradcheck.gradients.analytic import analytic_gradient
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.precision.dtypes import epsilon
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
    """

    entry: ThetaEntry
    candidate: Sequence[Floats]
    right: Floats
    rounded: Sequence[Floats]
    reached: bool
    epsilon: float


def compared(candidate: Candidate, exact: Run, rounded: Sequence[Run]) -> list[Compared]:
    """Every tensor on trial, then every output of floating point or complex numbers."""
    return [*_gradients(candidate, exact, rounded), *_outputs(candidate, exact, rounded)]


def _gradients(candidate: Candidate, exact: Run, rounded: Sequence[Run]) -> list[Compared]:
    entries = [candidate.theta[position] for position in candidate.theta.checked]
    return [
        Compared(
            entry,
            [_flat(entry, run.gradients[k]) for run in candidate.runs],
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
                [_flat(entry, run.outputs[name]) for run in candidate.runs],
                _flat(entry, exact.outputs[name]),
                [_flat(entry, run.outputs[name]) for run in rounded],
                True,
                epsilon(entry.own_dtype),
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


def _flat(entry: ThetaEntry, tensor: torch.Tensor | None) -> Floats:
    return analytic_gradient(entry, tensor, 0.0).values
