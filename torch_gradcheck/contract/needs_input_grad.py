"""`needs_input_grad`: whichever tensors require a gradient, each gradient is the same, and the others have none.

A forward that raises for a subset has refused it, and told so: forces need positions that require a gradient. Once it
has run, the backward has to work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TypeVar

import torch

from torch_gradcheck.contract.outcome import UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.run import Run
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed

NAME = "needs_input_grad"

MOST = 30
"""The number of subsets that are tried: all of five tensors; of more, some of one, of all but one, and of two."""

MOST_OF_CANDIDATE = 18
"""The same of a candidate in its own precision, which may be a kernel under an interpreter: all of four tensors."""

Subset = tuple[int, ...]

Result = TypeVar("Result")


def needs_input_grad(trial: Trial) -> ContractEntry:
    """Every subset of the arguments and parameters on trial, compared with the run in which all require a gradient."""
    if len(trial.all_names) < 2:
        return not_applicable(NAME, f"{trial.all_names[0]} is the only tensor on trial")
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    refused: list[str] = []
    every = subsets(len(trial.all_names), MOST_OF_CANDIDATE if trial.is_candidate else MOST)
    for subset in every:
        found = _found(trial, subset)
        where = _where(trial, subset)
        if found.wrong:
            return failed(NAME, f"{where}, {found.wrong}{trial.backwards}")
        if found.refused:
            refused.append(f"{where}, the function raises {found.refused}")
    if len(refused) == len(every):
        return not_applicable(NAME, f"{refused[0]}, and for no other subset of the tensors on trial does it run either")
    return passed(NAME, f"not tried {refused[0]}{_and_more(refused)}" if refused else "")


def _where(trial: Trial, subset: Subset) -> str:
    verb = "requires" if len(subset) == 1 else "require"
    return f"where only {listed([trial.all_names[position] for position in subset])} {verb} a gradient"


def _and_more(refused: Sequence[str]) -> str:
    others = len(refused) - 1
    return f", nor for {others} more subset{'s' * (others > 1)} of the tensors on trial" if others else ""


def subsets(count: int, most: int = MOST) -> list[Subset]:
    """Subsets of so many positions, none of them empty or all of them, at most `most`."""
    if 2**count - 2 <= most:
        return list(chain.from_iterable(combinations(range(count), size) for size in range(1, count)))
    kinds = [list(combinations(range(count), size)) for size in (1, count - 1, 2)]
    return [subset for kind in kinds for subset in _some(kind, most // len(kinds))]


def _some(subsets: list[Subset], most: int) -> list[Subset]:
    """At most so many of them, evenly spaced."""
    return subsets[:: -(-len(subsets) // most)]


@dataclass(frozen=True)
class _Found:
    """What a subset gave.

    Attributes:
        wrong: what is not as where all tensors require a gradient; "" for nothing.
        refused: the error of the forward; "" for none.
    """

    wrong: str = ""
    refused: str = ""


def _found(trial: Trial, subset: Subset) -> _Found:
    found = attempted(lambda: _ran(trial, subset, lambda tensors: (trial.run(tensors), _requiring(tensors))))
    if not isinstance(found, Raised):
        return _Found(_wrong(trial, subset, *found))
    if isinstance(attempted(lambda: _ran(trial, subset, trial.forward)), Raised):
        return _Found(refused=str(found))
    return _Found(f"the backward raises {found}; where all do, it does not")


def _requiring(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [position for position, tensor in enumerate(tensors) if tensor.requires_grad]


def _wrong(trial: Trial, subset: Subset, found: Run, requiring: Sequence[int]) -> str:
    """What is not as where all tensors do; `requiring`, arguments that do so now: the forward may see to it itself."""
    others = [position for position in range(len(trial.all_names)) if position not in {*subset, *requiring}]
    left = [trial.all_names[position] for position in others if found.gradients[position] is not None]
    if left:
        return f"the backward leaves a gradient for {listed(left)}, should leave None"
    wrong = trial.gradient_difference(found.gradients, trial.first.gradients, subset)
    if wrong and trial.draws and trial.output_difference(found, trial.first):
        return ""  # other random numbers
    return wrong and f"{wrong}, as where all tensors on trial do"


def _ran(trial: Trial, subset: Subset, run: Callable[[list[torch.Tensor]], Result]) -> Result:
    """What `run` gives for the arguments on trial where the subset alone requires a gradient."""
    tensors = trial.fresh()
    for position, tensor in enumerate(tensors):
        tensor.requires_grad_(position in subset)
    frozen = [p for k, p in enumerate(objects_of(trial.parameters), start=len(tensors)) if k not in subset]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        return run(tensors)
    finally:
        for parameter in frozen:
            parameter.requires_grad_()
