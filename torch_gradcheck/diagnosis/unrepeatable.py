"""A backward that is not one function, as the report tells it: undecided rows, the Function or module, the pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.culprit.sentences import described, place_of_backward
from torch_gradcheck.gradients.repeated import Difference
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.methods.choice import Trials
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.words import LossWords, noun
from torch_gradcheck.torch_internals.autograd import backward_of, is_of_backward_hooks, tensor_hooks
from torch_gradcheck.torch_internals.code_lines import users_line_of
from torch_gradcheck.torch_internals.modules import module_at
from torch_gradcheck.verdicts.rows import made_undecided

SAME_FACTOR = 1e-6
"""Two gradients are multiples of each other where they are off it by at most a millionth of their size."""


SAME_STEP = 1e-2
"""From run to run a gradient grows by the same amount where the two amounts differ by at most 1 %."""


@dataclass(frozen=True)
class Unrepeatable:
    """What the runs of one backward do not agree on.

    Attributes:
        spreads: position in θ → the largest difference relative to the largest entry of the gradient; of the parameters
            for which it is more than rounding.
        culprit: the module in which it starts, the name of a parameter whose hook starts it, or None.
        notes: the sentence on that, or on a difference that is rounding; none where the runs agree to the bit.
        place: where in the code it starts, see `Facts.place`.
    """

    spreads: Mapping[int, float] = field(default_factory=dict)
    culprit: str | None = None
    notes: tuple[str, ...] = ()
    place: str = ""

    @classmethod
    def of(cls, problem: Problem) -> Unrepeatable:
        """What there is to tell of the backward of a problem; to be taken while the model is lent."""
        repeated = problem.repeated
        found = repeated.difference
        if found is None:
            return cls(notes=(_on_rounding(repeated.rounding),) if repeated.rounding else ())
        entry = problem.theta[found.worst]
        culprit, where = start_in_words(found.place, found.on_the_way, entry, problem.model, problem.objective.words)
        name = entry.name
        sentence = (
            f"the backward is not one function: two runs at the same θ differ by {found.spread:.1e} "
            f"of the gradient of {name}, of which {found.allowed:.0e} could be rounding. {where}. {_pattern(found)}"
        )
        function = None if found.on_the_way or found.place is None else found.place.function
        place = "" if function is None or is_of_backward_hooks(function) else place_of_backward(function)
        return cls(found.spreads, culprit, (sentence,), place)

    @property
    def spread(self) -> float:
        """The largest of the spreads; 0 where no difference is more than rounding."""
        return max(self.spreads.values(), default=0.0)

    def among(self, notes: Sequence[str]) -> list[str]:
        """The notes of a report with these among them: first a finding, last what is rounding."""
        return [*self.notes, *notes] if self.spreads else [*notes, *self.notes]

    def decided(self, trials: Trials) -> Trials:
        """The trials of the parameters whose gradient is the same in every run."""
        return {position: trial for position, trial in trials.items() if position not in self.spreads}

    def marked(self, rows: Sequence[ParameterReport]) -> list[ParameterReport]:
        """The rows, one a parameter, those undecided whose gradient is not the same in every run."""
        return [
            made_undecided(row, _reason(self.spreads[k])) if k in self.spreads else row for k, row in enumerate(rows)
        ]


def _reason(spread: float) -> str:
    return f"two backward runs from one state differ by {spread:.1e} of the gradient, by more than rounding"


def _on_rounding(spread: float) -> str:
    return f"two backward runs differ by {spread:.0e} of a gradient, which may be rounding: it is part of the error bar"


def start_in_words(
    place: Place | None, on_the_way: bool, entry: ThetaEntry, model: nn.Module, words: LossWords
) -> tuple[str | None, str]:
    """The culprit's name and a sentence on where a difference of two backwards starts.

    Args:
        place: see `Difference`.
        on_the_way: see there.
        entry: the tensor whose gradients lie furthest apart.
        model: the lent one.
        words: what the report calls the code that computes J.
    """
    if place is None:
        hooks = list((tensor_hooks(entry.parameter) or {}).values())
        if hooks:
            lines = " and ".join(_line(hook) for hook in hooks)
            return (
                entry.name,
                f"It starts in a hook on the {noun([entry.role])} {entry.name}{lines}: up to there, both are the same",
            )
        return None, "Each operation gives the same in both, as far as can be seen: where it starts cannot be told"
    name = words.culprit if place.module is None else place.module
    kind = None if place.module is None else type(module_at(model, place.module)).__name__
    where = described(name, kind, words)
    if on_the_way:
        on_hook = f"It starts in a hook on a tensor, which changes the gradient on its way into {where}"
        return name if kind is None else _of_the_user(model, name), on_hook
    if is_of_backward_hooks(place.function):
        return name, f"It starts in a backward hook of {where}"
    if place.function is None:
        return name, f"It starts in {place.node}, an operation of torch, or in a hook on it, in {where}"
    of_torch = place.function.__module__.startswith("torch.")  # made by torch.library, for an operator of the user's
    line = "" if of_torch else _line(backward_of(place.function))
    return name, f"It starts in the backward of autograd.Function {place.function.__name__}{line}, in {where}"


def _of_the_user(model: nn.Module, name: str) -> str:
    """The innermost module around `name`, or itself, that torch has not written; itself where there is none.

    Torch's own modules put no hooks on tensors.
    """
    around = name
    while type(module_at(model, around)).__module__.startswith("torch."):
        if not around:
            return name
        around = around.rpartition(".")[0]
    return around


def _line(function: object) -> str:
    line = users_line_of(function)
    return "" if line is None else f" ({line})"


def _pattern(found: Difference) -> str:
    """A sentence on which of the runs are alike."""
    runs, alike = found.runs, found.alike
    if len(runs) == 3 and alike[1, 2]:
        return f"The first run differs from the two that follow{_times(runs[0], runs[1])}"
    if len(runs) == 4 and alike[1, 3]:
        return f"Every second run differs from the others{_times(runs[1], runs[0])}"
    if len(runs) == 4:
        return "Of four runs, the second differs from the first and the third"
    second, third = (factor_of(run, runs[0]) for run in runs[1:])
    if second is not None and third is not None:
        why = ": something adds up" if adds_up(second, third) else ""
        return f"The second is {second:.4g} times the first, the third {third:.4g} times{why}"
    return "No two of three runs are alike"


def _times(one: Floats, other: Floats) -> str:
    factor = factor_of(one, other)
    return "" if factor is None else f": its gradient is {factor:.4g} times theirs"


def factor_of(one: Floats, other: Floats, within: float = SAME_FACTOR) -> float | None:
    """The number that one gradient is the other one times, up to `within` of its size; None where it is no multiple."""
    square = float(other @ other)
    if not (np.isfinite(one).all() and np.isfinite(square) and square):
        return None
    factor = float(one @ other) / square
    off = float(np.linalg.norm(one - factor * other))
    return factor if off <= within * float(np.linalg.norm(one)) else None


def adds_up(second: float, third: float) -> bool:
    """Whether a gradient grows by the same amount from run to run: the second and third are 2 and 3 times the first."""
    return second > 1 and abs(third - 2 * second + 1) <= SAME_STEP * (second - 1)
