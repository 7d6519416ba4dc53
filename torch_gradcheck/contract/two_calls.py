"""Two calls alive at the same time, as in a model that calls a function twice: whether they disturb each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torch_gradcheck.contract.comparison import difference
from torch_gradcheck.contract.kinks import beside
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.trial import Gradients, Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.precision.dtypes import epsilon

ELSEWHERE = 0.1
"""The other call has arguments that are moved by up to a twentieth of their size."""

UNITS = 100
"""In a low precision they are moved by up to so many half units in the last place, to tell them from rounding."""


class Disturbance(NamedTuple):
    """What one call changes of another, or a backward of the next one.

    Attributes:
        words: what is changed, and where; "" for nothing.
        refused: the error of a second backward through the same graph; "" for none.
    """

    words: str = ""
    refused: str = ""


def disturbance(trial: Trial) -> Disturbance:
    """What one call disturbs; nothing where the error of another step tells of it.

    What is kept on a class or in a workspace is overwritten like that.
    """
    found = attempted(lambda: _found(trial))
    return Disturbance() if isinstance(found, Raised) else found


def _found(trial: Trial) -> Disturbance:
    with torch.enable_grad(), trial.regime():
        calls = _TwoCalls(trial)
        in_forward = calls.changed_outputs()
        in_backward = "" if in_forward else calls.first_backward() or calls.changed_gradients()
        again = "" if in_forward or in_backward else attempted(calls.second_backward)
    if isinstance(again, Raised):
        return Disturbance(refused=f"a second backward through the same graph (retain_graph=True) raises {again}")
    if in_forward:
        return Disturbance(in_forward + trial.forwards)
    wrong = in_backward or again
    return Disturbance(wrong and wrong + trial.backwards)


class _TwoCalls:
    """The forward of one call, and then of another with other arguments. Steps to be taken in order; "" is right."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._leaves = trial.fresh()
        self._others = beside(self._leaves, seed=0, step=max(ELSEWHERE, UNITS * epsilon(trial.dtype)))
        self._outputs = trial.outputs(self._leaves)
        self._returned = [output.detach().clone() for output in self._outputs]
        self._other_outputs = trial.outputs(self._others)
        self._left: Gradients = ()
        self._kept: Gradients = ()

    def changed_outputs(self) -> str:
        """What the first call has returned, after the second."""
        pairs = zip(self._trial.first.names, self._outputs, self._returned, strict=True)
        changed = [(name, difference(y.detach(), was, 0.0)) for name, y, was in pairs if y.requires_grad]
        words = [f"{name} {found}" for name, found in changed if found]
        return f"a second call, with other arguments, changes what the first has returned: {words[0]}" if words else ""

    def first_backward(self) -> str:
        """The gradients of the first call, after the second."""
        self._left = self._backward(self._outputs, self._leaves, keep_graph=True)
        self._kept = [None if each is None else each.clone() for each in self._left]
        wrong = self._trial.gradient_difference(self._kept, self._trial.first.gradients)
        return wrong and f"after another call, with other arguments, the backward of the first one: {wrong}"

    def changed_gradients(self) -> str:
        """The gradients of the first call, after the backward of the second."""
        self._backward(self._other_outputs, self._others)
        pairs = zip(self._trial.all_names, self._left, self._kept, strict=True)
        words = [f"the gradient of {name} {found}" for name, now, was in pairs if (found := difference(now, was, 0.0))]
        return f"the backward of another call changes what that of the first has left: {words[0]}" if words else ""

    def second_backward(self) -> str:
        """The gradients of the first call once more."""
        again = self._backward(self._outputs, self._leaves)
        wrong = self._trial.gradient_difference(again, self._trial.first.gradients)
        return wrong and f"in a second backward through the same graph (retain_graph=True), {wrong}, as in the first"

    def _backward(
        self, outputs: Sequence[torch.Tensor], leaves: Sequence[torch.Tensor], *, keep_graph: bool = False
    ) -> Gradients:
        every_leaf = [*leaves, *objects_of(self._trial.parameters)]
        return gradients_under(outputs, self._trial.cotangents(outputs), every_leaf, keep_graph=keep_graph)
