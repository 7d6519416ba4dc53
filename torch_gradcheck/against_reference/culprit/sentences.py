"""What the notes say of the module, the function or the autograd.Function that is wrong beside a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn
from torch.autograd import Function

from torch_gradcheck.against_reference.culprit.single_modules import SingleModule
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.contract.upstream import gives_upstream
from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.sentences import at_backward_of, described, function_name, place_of_backward
from torch_gradcheck.differences.noise import root_mean_square
from torch_gradcheck.objective.function_loss import FunctionModule
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import listed, times
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import users_function
from torch_gradcheck.torch_internals.modules import forward_of_class

FUNCTIONS_NAMED = 3
"""Of more Functions than these in one module none is named: it would not say where to look."""


class CulpritWords:
    """The sentences on a culprit.

    Args:
        candidate: on trial.
    """

    def __init__(self, candidate: Computation) -> None:
        self._model, self._loss = candidate.model, candidate.loss

    def none(self, reason: str) -> str:
        """The sentence that says why no culprit can be named."""
        return f"no culprit can be named: {reason}"

    def not_judged(self, single: SingleModule, why: str) -> str:
        """The same, where a module could not be judged and all others are right."""
        named = f"{single.name} ({single.kind})"
        return self.none(f"{named} raises {why} when it is run alone; what else could be is right")

    def of_module(self, single: SingleModule, wrong: Sequence[Judged], others: Sequence[str]) -> tuple[str, ...]:
        """The sentences on a module that is wrong when it is run alone; `others` are, too."""
        where = described(single.name, single.kind, self._loss.words)
        said = f"the mistake is in {where}: run alone on what it was given, {_off(wrong)}"
        also = (f"wrong as well when run alone: {listed(others)}",) if others else ()
        return (said + _code_of(single.module, list(single.call.inside()), wrong), *also)

    def made_up_for(self, single: SingleModule, wrong: Sequence[Judged]) -> str:
        """The sentence on a module that is another one alone, in a model that is right as a whole."""
        return (
            f"{single.name} ({single.kind}) is not the reference's: run alone on what it was given, {_off(wrong)}. "
            "In the model as a whole this does not show beyond rounding: something else may make up for it"
        )

    def of_itself(
        self, calls: Sequence[RecordedCall], wrong: Sequence[Judged], right: int, unjudged: Sequence[str]
    ) -> Culprit:
        """The candidate as a whole as the culprit: none of the modules in it is wrong when it is run alone.

        Args:
            calls: all calls of the run.
            wrong: the tensors that are wrong as a whole.
            right: the number of modules that are right when they are run alone.
            unjudged: the names of those that cannot be judged, such as of masks that are true or false.
        """
        if isinstance(self._model, FunctionModule):
            function = self._loss.holders[0]
            said = f"the mistake is in the {_way(wrong)} of {self._loss.words.described}: {_off(wrong)}"
            place = place_of_code(function, calls, wrong)
            return Culprit(self._loss.words.culprit, (said + _code_of(function, calls, wrong),), place=place)
        own = [call for call in calls if call.parent is not None and call.parent.owner is self._model]
        where = described("", type(self._model).__name__, self._loss.words)
        others = f", or in {listed(unjudged)}, which cannot be judged alone" if unjudged else ""
        said = f"the mistake is in {where}{_all_right(right)}{others}: {_off(wrong)}"
        place = place_of_code(self._model, own, wrong)
        return Culprit("", (said + _code_of(self._model, own, wrong),), place=place)


def _all_right(modules: int) -> str:
    if modules < 2:
        return ", and the module in it is right when it is run alone" if modules else ""
    return f", and each of the {modules} modules in it is right when it is run alone"


def _code_of(owner: object, calls: Sequence[RecordedCall], wrong: Sequence[Judged]) -> str:
    """Words on where the code starts that ran: of the Functions among the calls, else of the forward."""
    functions = _functions(calls, wrong)
    if 0 < len(functions) <= FUNCTIONS_NAMED:
        return f"; {listed([function_name(each) + _at(each, wrong) for each in functions])}"
    at = _at_forward_of(owner)
    return at and f"; its code is{at}"


def place_of_code(owner: object, calls: Sequence[RecordedCall], wrong: Sequence[Judged]) -> str:
    """Where that code starts, as `Facts.place` has it: of the only Function, else of the forward."""
    functions = _functions(calls, wrong)
    if len(functions) == 1 and _way(wrong) == "backward":
        return place_of_backward(functions[0])
    at = _at_forward_of(owner)
    return at and f"in the code{at}"


def _functions(calls: Sequence[RecordedCall], wrong: Sequence[Judged]) -> list[type[Function]]:
    """The Functions that ran; none where no backward has run that could be wrong."""
    owners = [] if _is_unreached(wrong) else [call.owner for call in calls if isinstance(call.owner, type)]
    return [each for each in dict.fromkeys(owners) if not gives_upstream(each)]


def _at_forward_of(owner: object) -> str:
    return at_line_of(forward_of_class(owner) if isinstance(owner, nn.Module) else owner)


def _at(function: type[Function], wrong: Sequence[Judged]) -> str:
    if _way(wrong) == "backward":
        return at_backward_of(function)
    at = at_line_of((users_function(function) or function).forward)
    return at and f", in its forward{at}"


def _way(wrong: Sequence[Judged]) -> str:
    """Where the mistake is: in the forward, where an output is wrong, else in the backward."""
    return "forward" if any(each.compared.entry.role is Role.OUTPUT for each in wrong) else "backward"


def _worst(wrong: Sequence[Judged]) -> Judged:
    """What is told of: the furthest beyond its bar; an output where one is wrong, since gradients are wrong with it."""
    return max(wrong, key=lambda each: (each.compared.entry.role is Role.OUTPUT, each.excess))


def _is_unreached(wrong: Sequence[Judged]) -> bool:
    """Whether what is told of has no gradient at all."""
    return not _worst(wrong).compared.reached


def _off(wrong: Sequence[Judged]) -> str:
    """By how much a tensor is off, as "its gradient of x is off by 1 %, 5 times what rounding explains".

    The multiple is that of the tensor's row: of its worst entry or, where no single one is wrong, of the whole.
    """
    each = _worst(wrong)
    given, right = each.compared.candidate[0], each.compared.right
    entry = each.compared.entry
    what = f"its {entry.name}" if entry.role is Role.OUTPUT else f"its gradient of {entry.name}"
    if _is_unreached(wrong):
        return f"{what} is None"
    others = np.flatnonzero(np.isinf(right) & (given != right))
    if len(others):
        return f"{what} is {given[others[0]]:.4g} where {right[others[0]]} is right"
    if not np.isfinite(given).all():
        return f"{what} holds NaN or infinity"
    size = root_mean_square(right)
    if not size:
        return f"{what} is not 0, which is right"
    share = root_mean_square(given - right) / size
    beyond = f"{times(each.told)} times what rounding explains"
    one = "its worst entry by " if each.part is None and len(right) > 1 else ""
    return f"{what} is off by {100 * share:.3g} %, {one}{beyond}"
