"""`needs_input_grad`: whichever tensors require a gradient, each gradient is the same, and the others have none."""

from __future__ import annotations

from itertools import chain, combinations

from torch_gradcheck.contract.outcome import UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.run import Run
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed

NAME = "needs_input_grad"

MOST = 30
"""The number of subsets that are tried: all of five tensors; of more, some of one, of all but one, and of two."""

Subset = tuple[int, ...]


def needs_input_grad(trial: Trial) -> ContractEntry:
    """Every subset of the arguments and parameters on trial, compared with the run in which all require a gradient."""
    if len(trial.all_names) < 2:
        return not_applicable(NAME, f"{trial.all_names[0]} is the only tensor on trial")
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    for subset in subsets(len(trial.all_names)):
        wrong = _wrong(trial, subset)
        if wrong:
            names = listed([trial.all_names[position] for position in subset])
            verb = "requires" if len(subset) == 1 else "require"
            return failed(NAME, f"where only {names} {verb} a gradient, {wrong}{trial.backwards}")
    return passed(NAME)


def subsets(count: int) -> list[Subset]:
    """Subsets of so many positions, none of them empty or all of them, at most `MOST`."""
    if 2**count - 2 <= MOST:
        return list(chain.from_iterable(combinations(range(count), size) for size in range(1, count)))
    kinds = [list(combinations(range(count), size)) for size in (1, count - 1, 2)]
    return [subset for kind in kinds for subset in _some(kind, MOST // len(kinds))]


def _some(subsets: list[Subset], most: int) -> list[Subset]:
    """At most so many of them, evenly spaced."""
    return subsets[:: -(-len(subsets) // most)]


def _wrong(trial: Trial, subset: Subset) -> str:
    """What is not as where all tensors require a gradient; "" for nothing."""
    found = attempted(lambda: _run(trial, subset))
    if isinstance(found, Raised):
        return f"the function raises {found}; where all do, it does not"
    others = [position for position in range(len(trial.all_names)) if position not in subset]
    left = [trial.all_names[position] for position in others if found.gradients[position] is not None]
    if left:
        return f"the backward leaves a gradient for {listed(left)}, should leave None"
    wrong = trial.gradient_difference(found.gradients, trial.first.gradients, subset)
    if wrong and trial.draws and trial.output_difference(found, trial.first):
        return ""  # other random numbers
    return wrong and f"{wrong}, as where all tensors on trial do"


def _run(trial: Trial, subset: Subset) -> Run:
    tensors = trial.fresh()
    for position, tensor in enumerate(tensors):
        tensor.requires_grad_(position in subset)
    frozen = [p for k, p in enumerate(objects_of(trial.parameters), start=len(tensors)) if k not in subset]
    try:
        for parameter in frozen:
            parameter.requires_grad_(False)
        return trial.run(tensors)
    finally:
        for parameter in frozen:
            parameter.requires_grad_()
