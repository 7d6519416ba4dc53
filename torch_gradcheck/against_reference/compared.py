"""The tensors that are compared, every gradient and every output, as flat numbers of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torch_gradcheck.against_reference.run import Run
from torch_gradcheck.against_reference.sides import Candidate
from torch_gradcheck.arrays import Floats
from torch_gradcheck.errors import InvalidRequestError
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
    found = {name: each for name, each in candidate.runs[0].outputs.items() if is_inexact(each)}
    _check_alike(found, exact)
    entries = {name: _entry_of(name, each) for name, each in found.items()}
    return [
        Compared(
            entry,
            [_flat(entry, run.outputs[name]) for run in candidate.runs],
            _flat(entry, exact.outputs[name]),
            [_flat(entry, run.outputs[name]) for run in rounded],
            True,
            epsilon(entry.own_dtype),
        )
        for name, entry in entries.items()
    ]


def _check_alike(found: dict[str, torch.Tensor], exact: Run) -> None:
    """Raises InvalidRequestError where the reference returns something else."""
    shapes = {name: tuple(each.shape) for name, each in found.items()}
    others = {name: tuple(each.shape) for name, each in exact.outputs.items() if is_inexact(each)}
    if shapes != others:
        raise InvalidRequestError(
            f"reference returns {_in_words(others)}, and the candidate {_in_words(shapes)}: both must return tensors "
            "of the same shapes in the same places."
        )


def _in_words(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items()) or "no tensor"


def _entry_of(name: str, output: torch.Tensor) -> ThetaEntry:
    nothing = np.empty(0, dtype=np.int64)
    return ThetaEntry(name, (), output, True, False, nothing, output.dtype, Role.OUTPUT)


def _flat(entry: ThetaEntry, tensor: torch.Tensor | None) -> Floats:
    return analytic_gradient(entry, tensor, 0.0).values
