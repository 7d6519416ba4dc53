"""Each argument transposed, sliced or expanded: whether the function gives what it gives for a contiguous copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from torch_gradcheck.contract.kinks import beside, is_at_a_kink
from torch_gradcheck.contract.memory_layouts import SAME_NUMBERS, Layout, expanded, in_words
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.run import Run
from torch_gradcheck.contract.trial import Trial

ONE_BY_ONE = 8
"""Of more arguments than these all are tried in a layout at once."""

Tensors = list[torch.Tensor]


@dataclass(frozen=True)
class Found:
    """What a layout gave.

    Attributes:
        wrong: what is not as it should be; "" for nothing.
        refused: the error of the forward; "" for none.
        at_a_kink: what was given says nothing, since it is another right beside these numbers.
    """

    wrong: str = ""
    refused: str = ""
    at_a_kink: str = ""


def input_layouts(trial: Trial) -> list[Found]:
    """What each argument gives, alone in each layout that it has."""
    count = len(trial.names)
    groups = [[position] for position in range(count)] if count <= ONE_BY_ONE else [[*range(count)]]
    return [
        found
        for group in groups
        for found in [
            *[_same_numbers(trial, group, word, layout) for word, layout in SAME_NUMBERS.items()],
            _expanded(trial, group),
        ]
        if found is not None
    ]


def _same_numbers(trial: Trial, group: Sequence[int], word: str, layout: Layout) -> Found | None:
    """These arguments in a layout, compared with contiguous ones; beside a kink where θ is at one."""
    tensors = trial.fresh()
    laid = _laid_out(tensors, group, layout)
    if laid is None:
        return None
    what = _what(trial, laid, group, word)
    found = _compared(trial, laid, trial.first, what)
    if not found.wrong or not is_at_a_kink(trial, trial.first, tensors):
        return found
    moved = beside(tensors, 0)
    expected, laid = trial.run(moved), _laid_out(moved, group, layout)
    if laid is None or is_at_a_kink(trial, expected, moved):
        return Found(at_a_kink=what)
    return _compared(trial, laid, expected, what)


def _expanded(trial: Trial, group: Sequence[int]) -> Found | None:
    """These arguments expanded, compared with contiguous copies of the same numbers."""
    laid = _laid_out(trial.fresh(), group, expanded)
    if laid is None or trial.writes:
        return None
    what = _what(trial, laid, group, "expanded")
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in laid]
    expected = attempted(lambda: trial.run(copies))
    if isinstance(expected, Raised):
        return None  # equal numbers are no argument of this function
    found = _compared(trial, laid, expected, what)
    return Found(at_a_kink=what) if found.wrong and is_at_a_kink(trial, expected, copies) else found


def _compared(trial: Trial, tensors: Tensors, expected: Run, what: str) -> Found:
    run = attempted(lambda: trial.run(tensors))
    if not isinstance(run, Raised):
        wrong = trial.difference(_folded(run, tensors), _folded(expected, tensors))
        return Found(wrong and f"with {what}: {wrong}, as with a contiguous copy{trial.backwards}")
    if isinstance(attempted(lambda: trial.forward(tensors)), Raised):
        return Found(refused=f"{what}: {run}")
    return Found(f"with {what} the backward raises {run}; with a contiguous copy it does not")


def _folded(run: Run, tensors: Tensors) -> Run:
    """The run with the gradients of expanded tensors summed over each number's many entries: only the sum is told of.

    What each entry adds to it is a matter of taste: of a tie, or of an operation on the memory.
    """
    repeated = [[dim for dim, stride in enumerate(each.stride()) if stride == 0] for each in tensors]
    dims = [*repeated, *[[] for _ in run.gradients[len(tensors) :]]]
    pairs = zip(run.gradients, dims, strict=True)
    return replace(run, gradients=[g if g is None or not dim else g.sum(dim, keepdim=True) for g, dim in pairs])


def _laid_out(tensors: Tensors, group: Sequence[int], layout: Layout) -> Tensors | None:
    """The tensors with those of the group in a layout; None where none of them has it."""
    laid = {position: layout(tensors[position]) for position in group}
    if all(each is None for each in laid.values()):
        return None
    chosen = [laid.get(position) for position in range(len(tensors))]
    return [tensor if other is None else other.requires_grad_() for tensor, other in zip(tensors, chosen, strict=True)]


def _what(trial: Trial, laid: Tensors, group: Sequence[int], word: str) -> str:
    if len(group) > 1:
        return f"every argument {word}"
    return f"{trial.names[group[0]]} {word} ({in_words(laid[group[0]])})"
