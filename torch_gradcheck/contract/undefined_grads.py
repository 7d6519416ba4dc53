"""`undefined_grads`: an output that the loss does not use, whose gradient is None or zero, changes nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.contract.outcome import UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.trial import Gradients, Trial
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed

NAME = "undefined_grads"

MOST = 6
"""Of more outputs, this many are tried."""


def undefined_grads(trial: Trial) -> ContractEntry:
    """No gradient for all outputs but one, for one, and for all: compared with zeros, whose gradients add up.

    A function of one output is given None as well, as by a Function further down that returns None.
    """
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    used = [position for position, has_graph in enumerate(trial.first.have_graphs) if has_graph]
    wrong = (_without_some(trial, used) if len(used) > 1 else "") or _without_any(trial)
    if wrong:
        return failed(NAME, wrong + trial.backwards)
    if len(used) < 2:
        count = "one" if used else "no"
        return not_applicable(NAME, f"the function has {count} differentiable output, without which there is no loss")
    return passed(NAME)


def _without_any(trial: Trial) -> str:
    """What is wrong where the backward is given no gradient at all; "" for nothing."""
    found = _tried(trial, [None for _ in trial.first.outputs])
    return _in_words(trial, "no gradient (None) for any output", found, [None for _ in trial.all_names])


def _without_some(trial: Trial, used: Sequence[int]) -> str:
    """What is wrong where the loss uses one output, and where it uses all but one; "" for nothing."""
    alone: dict[int, Gradients] = {}
    for position in used[:MOST]:
        others = [other for other in used if other != position]
        zeros, nothing = _given(trial, others, zeros=True), _given(trial, others, zeros=False)
        with_zeros = _tried(trial, zeros)
        if isinstance(with_zeros, Raised):
            return f"with a gradient of zeros for {_names(trial, others)} the backward raises {with_zeros}"
        alone[position] = with_zeros
        found = _tried(trial, nothing)
        wrong = _in_words(trial, f"no gradient (None) for {_names(trial, others)}", found, with_zeros)
        if wrong:
            return f"{wrong}; with zeros for {'it' if len(others) == 1 else 'them'}, that is what comes"
    return _sums(trial, alone) if len(used) <= MOST else ""


def _sums(trial: Trial, alone: dict[int, Gradients]) -> str:
    """What is wrong with sums of the gradients of single outputs: of all of them, and without one; "" for nothing."""
    wrong = trial.gradient_difference(_sum(alone), trial.first.gradients)
    if wrong:
        return (
            f"the gradients of the loss by {_names(trial, [*alone])} alone, with zeros for the others, do not add up "
            f"to that by all of them: {wrong}"
        )
    for position in alone if len(alone) > 2 else ():
        given = _given(trial, [position], zeros=False)
        found = _tried(trial, given)
        expected = _sum({other: each for other, each in alone.items() if other != position})
        wrong = _in_words(trial, f"no gradient (None) for {_names(trial, [position])}", found, expected)
        if wrong:
            return f"{wrong}, the sum over the other outputs"
    return ""


def _tried(trial: Trial, cotangents: Gradients) -> Gradients | Raised:
    return attempted(lambda: trial.run(cotangents=cotangents).gradients)


def _in_words(trial: Trial, given: str, found: Gradients | Raised, expected: Gradients) -> str:
    if isinstance(found, Raised):
        return f"with {given} the backward raises {found}"
    wrong = trial.gradient_difference(found, expected)
    return wrong and f"with {given}, {wrong}"


def _given(trial: Trial, unused: Sequence[int], *, zeros: bool) -> list[torch.Tensor | None]:
    """v for each output, zeros or None for those at the positions that the loss does not use."""
    vs = trial.cotangents(trial.first.outputs)
    return [v if position not in unused else torch.zeros_like(v) if zeros else None for position, v in enumerate(vs)]


def _sum(gradients: dict[int, Gradients]) -> list[torch.Tensor | None]:
    columns = zip(*gradients.values(), strict=True)
    present = [[each for each in column if each is not None] for column in columns]
    return [sum(each[1:], each[0]) if each else None for each in present]


def _names(trial: Trial, positions: Sequence[int]) -> str:
    return listed([trial.first.names[position] for position in positions])
