"""`repeatable`: two equal calls, forward and backward, give the same bits, or differ by a spread of rounding's size.

So do a backward that runs after another call, and a second one through a graph that is kept; and no call changes what
another has returned.
"""

from __future__ import annotations

import torch

from torch_gradcheck.contract.comparison import difference, distance, largest, same_bits
from torch_gradcheck.contract.outcome import failed, passed
from torch_gradcheck.contract.overwritten_gradients import overwritten_gradients
from torch_gradcheck.contract.trial import Trial, gradient_of
from torch_gradcheck.contract.two_calls import Disturbance, disturbance
from torch_gradcheck.reporting.facts import ContractEntry

NAME = "repeatable"

Pair = tuple[str, torch.Tensor | None, torch.Tensor | None]


def repeatable(trial: Trial) -> ContractEntry:
    """Two runs from the same random state, bit by bit; then a backward after another call, and a second one."""
    spread = 0.0
    for what, one, other in _pairs(trial):
        if same_bits(one, other):
            continue
        found = difference(other, one, trial.allowance.of(one, name=what))
        if found:
            return failed(
                NAME,
                "of two equal calls from the same random state, the second gives another result: "
                f"{what} {found}, as in the first{trial.at_fault(trial.second, trial.first)}",
            )
        spread = max(spread, _share(one, other))
    differed = trial.earlier_difference()
    if differed:
        return failed(NAME, differed)
    disturbed = Disturbance() if trial.draws else disturbance(trial)
    if disturbed.words:
        return failed(NAME, disturbed.words)
    overwritten = "" if trial.draws else overwritten_gradients(trial)
    if overwritten:
        return failed(NAME, overwritten + trial.backwards)
    rounding = f"two equal calls differ by {spread:.0e} of the largest entry, as rounding" if spread else ""
    return passed(NAME, "; ".join(filter(None, [rounding, disturbed.refused])))


def _pairs(trial: Trial) -> list[Pair]:
    one, other = trial.first, trial.second
    outputs = zip(one.names, one.outputs, other.outputs, strict=True)
    names = [gradient_of(name) for name in trial.all_names]
    return [*outputs, *zip(names, one.gradients, other.gradients, strict=True)]


def _share(one: torch.Tensor | None, other: torch.Tensor | None) -> float:
    size = largest(one)
    return distance(one, other) / size if size else 0.0
