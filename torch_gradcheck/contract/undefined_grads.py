"""`undefined_grads`: an output that the loss does not use, whose gradient is None or zero, changes nothing else.

What is given None counts where it is a backward of the user's: a hook, which only looks, is given none where the
output is not used at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import Function

from torch_gradcheck.contract.comparison import largest, size_of_terms
from torch_gradcheck.contract.outcome import UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.trial import Gradients, Trial
from torch_gradcheck.gradients.function_backwards import FunctionBackwards
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed

NAME = "undefined_grads"

MOST = 6
"""Of more outputs, this many are tried."""


def undefined_grads(trial: Trial) -> ContractEntry:
    """No gradient for all outputs but one, for one, and for all: compared with zeros, whose gradients add up.

    The Functions of a function of one output are given None as well, as by a Function further down that returns None.
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
    """What is wrong where the backwards of the user's are given no gradient at all; "" for nothing."""
    answers, nothing = _Answers(), [None for _ in trial.all_names]
    found = _tried(trial, [None for _ in trial.first.outputs], answers)
    return _in_words(trial, "no gradient (None) for any output", found, nothing) if answers.are_wrong else ""


class _Answers:
    """What the backwards of the user's Functions have made of what they were given.

    Attributes:
        raised: one of them has raised.
        invented: one has returned a gradient where it was given none, or zeros.
    """

    def __init__(self) -> None:
        self.raised = self.invented = False

    @property
    def are_wrong(self) -> bool:
        """Where all outputs have no gradient."""
        return self.raised or self.invented

    def look(self, _: Any, __: type[Function], gradients: tuple[Any, ...], run: Callable[[], Any]) -> Any:
        """Runs a backward, see `FunctionBackwards`."""
        is_given_nothing = _are_nothing(gradients)  # asked first: a backward may write to what it is given
        try:
            returned = run()
        except Exception:
            self.raised = True
            raise
        answer = returned if isinstance(returned, tuple) else (returned,)
        self.invented = self.invented or (is_given_nothing and not _are_nothing(answer))
        return returned


def _are_nothing(gradients: tuple[Any, ...]) -> bool:
    """Whether all are None or zeros; NaN, such as 0 · ∞, is none."""
    tensors = [each for each in gradients if isinstance(each, torch.Tensor)]
    return not any(largest(each if each.layout is torch.strided else each.to_dense()) for each in tensors)


def _without_some(trial: Trial, used: Sequence[int]) -> str:
    """What is wrong where the loss uses one output, and where it uses all but one; "" for nothing."""
    alone: dict[int, Gradients] = {}
    for position in used[:MOST]:
        others = [other for other in used if other != position]
        zeros, nothing = _given(trial, others, zeros=True), _given(trial, others, zeros=False)
        with_zeros = _tried(trial, zeros)
        if isinstance(with_zeros, Raised):
            return f"with a gradient of zeros for {_names(trial, others)} the backward raises {with_zeros}"
        if with_zeros is None:
            continue
        alone[position] = with_zeros
        found = _tried(trial, nothing)
        wrong = _in_words(trial, f"no gradient (None) for {_names(trial, others)}", found, with_zeros)
        if wrong:
            return f"{wrong}; with zeros for {'it' if len(others) == 1 else 'them'}, that is what comes"
    return _sums(trial, alone) if len(alone) == len(used) else ""


def _sums(trial: Trial, alone: dict[int, Gradients]) -> str:
    """What is wrong with sums of the gradients of single outputs: of all of them, and without one; "" for nothing."""
    terms = [size_of_terms(column) for column in zip(*alone.values(), strict=True)]
    wrong = trial.gradient_difference(_sum(alone), trial.first.gradients, terms=terms)
    if wrong:
        return (
            f"the gradients of the loss by {_names(trial, [*alone])} alone, with zeros for the others, do not add up "
            f"to that by all of them: {wrong}"
        )
    for position in alone if len(alone) > 2 else ():
        given = _given(trial, [position], zeros=False)
        found = _tried(trial, given)
        expected = _sum({other: each for other, each in alone.items() if other != position})
        wrong = _in_words(trial, f"no gradient (None) for {_names(trial, [position])}", found, expected, terms)
        if wrong:
            return f"{wrong}, the sum over the other outputs"
    return ""


def _tried(trial: Trial, cotangents: Gradients, answers: _Answers | None = None) -> Gradients | Raised | None:
    """The gradients of a run, or what a backward of the user's raises; None where a hook, or torch, does."""
    answers = answers or _Answers()
    with FunctionBackwards(answers.look):
        found = attempted(lambda: trial.run(cotangents=cotangents).gradients)
    return None if isinstance(found, Raised) and not answers.raised else found


def _in_words(
    trial: Trial, given: str, found: Gradients | Raised | None, expected: Gradients, terms: Sequence[float] = ()
) -> str:
    if isinstance(found, Raised):
        return f"with {given} the backward raises {found}"
    wrong = "" if found is None else trial.gradient_difference(found, expected, terms=terms)
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
