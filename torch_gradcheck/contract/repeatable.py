"""`repeatable`: two equal calls, forward and backward, give the same bits, or differ by a spread of rounding's size.

So does a call whose backward runs after another call, or for the second time: as where a model calls a function at two
places, and where a graph is kept.
"""

from __future__ import annotations

import torch

from torch_gradcheck.contract.comparison import difference, distance, largest, same_bits
from torch_gradcheck.contract.kinks import beside
from torch_gradcheck.contract.outcome import Raised, attempted, failed, passed
from torch_gradcheck.contract.trial import Gradients, Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.reporting.facts import ContractEntry

NAME = "repeatable"

ELSEWHERE = 0.1
"""The other call has arguments that are moved by up to a twentieth of their size."""

Pair = tuple[str, torch.Tensor | None, torch.Tensor | None]


def repeatable(trial: Trial) -> ContractEntry:
    """Two runs from the same random state, bit by bit; then a backward after another call, and a second one."""
    spread = 0.0
    for what, one, other in _pairs(trial):
        if same_bits(one, other):
            continue
        found = difference(other, one, trial.allowance.of(one))
        if found:
            return failed(
                NAME,
                "of two equal calls from the same random state, the second gives another result: "
                f"{what} {found}, as in the first{trial.backwards}",
            )
        spread = max(spread, _share(one, other))
    disturbed = "" if trial.draws else _disturbed(trial)
    if disturbed:
        return failed(NAME, disturbed + trial.backwards)
    return passed(NAME, f"two equal calls differ by {spread:.0e} of the largest entry, as rounding" if spread else "")


def _pairs(trial: Trial) -> list[Pair]:
    one, other = trial.first, trial.second
    outputs = zip(one.names, one.outputs, other.outputs, strict=True)
    names = [f"the gradient of {name}" for name in trial.all_names]
    return [*outputs, *zip(names, one.gradients, other.gradients, strict=True)]


def _share(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    size = largest(one)
    return distance(one, other) / size if size else 0.0


def _disturbed(trial: Trial) -> str:
    """What a backward gives otherwise after another call, or when it runs again; "" for nothing, or where it raises."""
    found = attempted(lambda: _after_another_call(trial))
    once, twice = (found, found) if isinstance(found, Raised) else found
    if not isinstance(once, Raised):
        wrong = trial.gradient_difference(once, trial.first.gradients)
        if wrong:
            return f"where it is called again, with other arguments, before the backward of the first call, {wrong}"
    if not isinstance(twice, Raised):
        wrong = trial.gradient_difference(twice, trial.first.gradients)
        return wrong and f"in a second backward through the same graph (retain_graph=True) {wrong}, as in the first"
    return ""


def _after_another_call(trial: Trial) -> tuple[Gradients, Gradients | Raised]:
    """The gradients by the first backward of a call, after another one, and by the second."""
    with torch.enable_grad(), trial.regime():
        leaves = trial.fresh()
        outputs, every_leaf = trial.outputs(leaves), [*leaves, *objects_of(trial.parameters)]
        other = trial.outputs(beside(leaves, seed=0, step=ELSEWHERE))  # noqa: F841  (its graph is there)
        once = gradients_under(outputs, trial.cotangents(outputs), every_leaf, keep_graph=True)
        kept = [None if each is None else each.clone() for each in once]  # the second may write to what it has returned
        return kept, attempted(lambda: gradients_under(outputs, trial.cotangents(outputs), every_leaf))
