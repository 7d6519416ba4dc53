"""Each argument in other memory layouts: whether the function gives what it gives for a contiguous copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from torch_gradcheck.contract.comparison import largest
from torch_gradcheck.contract.kinks import beside, is_at_a_kink
from torch_gradcheck.contract.memory_layouts import EXPANDED, SAME_NUMBERS, Layout, in_words
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.run import Run
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.objective.function_call import FunctionCall
from torch_gradcheck.torch_internals.tensors import is_wrapper

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
    """What each argument gives, alone in each layout that it has.

    Those that are not on trial keep their numbers: equal ones may be no indices of anything.
    """
    count = len(trial.names)
    groups = [[position] for position in range(count)] if count <= ONE_BY_ONE else [[*range(count)]]
    found = [_same_numbers(trial, group, word, layout) for group in groups for word, layout in SAME_NUMBERS.items()]
    found += [_expanded(trial, group, word, layout) for group in groups for word, layout in EXPANDED.items()]
    for name, tensor in trial.call.others[:ONE_BY_ONE]:
        if tensor.layout is torch.strided and not is_wrapper(tensor):
            found += [_other(trial, name, tensor, word, layout) for word, layout in SAME_NUMBERS.items()]
    return [each for each in found if each is not None]


def _same_numbers(trial: Trial, group: Sequence[int], word: str, layout: Layout) -> Found | None:
    """These arguments in a layout, compared with contiguous ones."""
    laid = _laid_out(trial.fresh(), group, layout)
    if laid is None:
        return None
    return _beside_kinks(
        trial, _what(trial, laid, group, word), trial.call, lambda each: _laid_out(each, group, layout) or each
    )


def _other(trial: Trial, name: str, tensor: torch.Tensor, word: str, layout: Layout) -> Found | None:
    """The same with an argument that is not on trial: indices, a mask."""
    laid = layout(tensor)
    if laid is None:
        return None
    call = trial.call.with_other(tensor, laid)
    return _beside_kinks(trial, f"{name} {word} ({in_words(laid)})", call, lambda tensors: tensors)


def _beside_kinks(trial: Trial, what: str, call: FunctionCall, laid_out: Callable[[Tensors], Tensors]) -> Found:
    """What the call gives for tensors that are laid out; at θ or, where there is a kink, right beside it."""
    tensors, expected = trial.fresh(), trial.first
    found = _compared(trial, laid_out(tensors), expected, what, call)
    if not found.wrong or not is_at_a_kink(trial, expected, tensors):
        return found
    tensors = beside(tensors, seed=0)
    expected = trial.run(tensors)
    if is_at_a_kink(trial, expected, tensors):
        return Found(at_a_kink=what)
    return _compared(trial, laid_out(tensors), expected, what, call)


def _expanded(trial: Trial, group: Sequence[int], word: str, layout: Layout) -> Found | None:
    """These arguments expanded, compared with contiguous copies of the same numbers."""
    laid = _laid_out(trial.fresh(), group, layout)
    if laid is None or trial.writes:
        return None
    what = _what(trial, laid, group, word)
    copies = [tensor.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for tensor in laid]
    expected = attempted(lambda: trial.run(copies))
    if isinstance(expected, Raised):
        return None  # equal numbers are no argument of this function
    found = _compared(trial, laid, expected, what, trial.call)
    return Found(at_a_kink=what) if found.wrong and is_at_a_kink(trial, expected, copies) else found


def _compared(trial: Trial, tensors: Tensors, expected: Run, what: str, call: FunctionCall) -> Found:
    run = attempted(lambda: trial.run(tensors, call=call))
    if not isinstance(run, Raised):
        wrong = trial.difference(_folded(run, tensors), _folded(expected, tensors), _terms(expected, tensors))
        return Found(wrong and f"with {what}: {wrong}, as with a contiguous copy{trial.at_fault(run, expected)}")
    if isinstance(attempted(lambda: trial.forward(tensors, call)), Raised):
        return Found(refused=f"{what}: {run}")
    return Found(f"with {what} the backward raises {run}; with a contiguous copy it does not")


def _folded(run: Run, tensors: Tensors) -> Run:
    """The run with the gradients of expanded tensors summed over each number's many entries: only the sum is told of.

    What each entry adds to it is a matter of taste: of a tie, or of an operation on the memory.
    """
    pairs = zip(run.gradients, _repeated(run, tensors), strict=True)
    return replace(run, gradients=[g if g is None or not dim else g.sum(dim, keepdim=True) for g, dim in pairs])


def _repeated(run: Run, tensors: Tensors) -> list[list[int]]:
    """The dimensions of each gradient of a run in which its tensor is expanded."""
    repeated = [[dim for dim, stride in enumerate(each.stride()) if stride == 0] for each in tensors]
    return [*repeated, *[[] for _ in run.gradients[len(tensors) :]]]


def _terms(run: Run, tensors: Tensors) -> list[float]:
    """How large the numbers are that are summed of each gradient; 0 where none are."""
    pairs = zip(run.gradients, _repeated(run, tensors), strict=True)
    return [0.0 if g is None or not dim else largest(g.abs().sum(dim)) for g, dim in pairs]


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
