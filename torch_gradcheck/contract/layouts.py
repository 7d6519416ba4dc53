"""`layouts`: inputs and gradients transposed, sliced, expanded or in channels_last give the same as contiguous ones.

A forward that raises has refused a layout, and told so: that is no wrong gradient. Once it has accepted one, the
backward has to work; and nobody can choose the layout of the gradient that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.contract.draws import draws_inside
from torch_gradcheck.contract.gradient_layouts import gradient_layouts
from torch_gradcheck.contract.input_layouts import input_layouts
from torch_gradcheck.contract.outcome import UNREPEATABLE, failed, not_applicable, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed

NAME = "layouts"

DRAWS = "the function draws random numbers, and draws others in another layout"


def layouts(trial: Trial) -> ContractEntry:
    """Every argument in every layout, then the gradients of the outputs, each compared with contiguous copies."""
    if trial.draws:
        return not_applicable(NAME, DRAWS)
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    of_inputs, of_gradients = input_layouts(trial), gradient_layouts(trial)
    wrong = [each.wrong for each in of_inputs] + of_gradients
    refused = [each.refused for each in of_inputs if each.refused]
    if any(wrong) and draws_inside(trial):
        return not_applicable(NAME, DRAWS)
    if any(wrong):
        return failed(NAME, next(filter(None, wrong)))
    if refused:
        return not_applicable(NAME, f"the function refuses {refused[0]}{_and_more(refused)}")
    if not wrong:
        return not_applicable(NAME, "no argument and no output has a second layout")
    kinks = [each.at_a_kink for each in of_inputs if each.at_a_kink]
    return passed(NAME, f"not tried, being at a kink: {listed(kinks)}" if kinks else "")


def _and_more(refused: Sequence[str]) -> str:
    others = len(refused) - 1
    return f", and {others} more layout{'s' * (others > 1)}" if others else ""
