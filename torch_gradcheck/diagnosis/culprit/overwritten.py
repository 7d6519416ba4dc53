"""Finds who writes to a tensor that is kept for the backward so that autograd does not notice, as through `.data`.

Proven by a run in which the backward is given what was kept: the gradient is right then.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from torch_gradcheck.diagnosis.culprit.call_recording import MEMORY_LIMIT, Recording
from torch_gradcheck.diagnosis.culprit.followed import SAME_MISTAKE
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import ERROR_BARS_OFF, OWN_MISTAKE
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.torch_internals.autograd import in_backward

MOST_WRITERS = 8
"""How many of those that overwrite something are looked at, one evaluation each."""


@dataclass(eq=False)
class Kept:
    """A tensor that is kept for the backward.

    Attributes:
        tensor: another object for its memory.
        before: a copy, made when it was kept; None where copies take too much memory.
        by: the call that keeps it; None is the loss function or closure itself.
        overwritten: whether it holds something else now.
        writer: the call that has written to it; None is the loss function or closure, where one was `seen`.
        seen: whether it was seen when that was.
        backward: whether it was in the backward of `writer`, a Function.
    """

    tensor: torch.Tensor
    before: torch.Tensor | None
    by: RecordedCall | None
    overwritten: bool = False
    writer: RecordedCall | None = None
    seen: bool = False
    backward: bool = False

    def look(self) -> bool:
        """Whether it has been overwritten since the last look."""
        if self.before is None or self.overwritten:
            return False
        self.overwritten = not _equal(self.tensor, self.before)
        return self.overwritten


@dataclass(frozen=True)
class Overwriting:
    """What goes wrong because a kept tensor is overwritten.

    Attributes:
        kept: the tensor.
        wrong: a coordinate whose gradient comes out otherwise where the backward is given what was kept.
        mends: whether all of those that are followed come out right then.
    """

    kept: Kept
    wrong: WrongCoordinate
    mends: bool


def find_overwriting(objective: Objective, wrong: Sequence[WrongCoordinate]) -> Overwriting | None:
    """The overwritten tensor that makes gradients wrong; None where none does. Takes an evaluation of J, or three.

    Args:
        objective: J; its backward must not be run by J itself.
        wrong: the coordinates whose gradients are wrong.
    """
    first = _Keeping(objective)
    first.gradients(wrong)
    overwritten = [k for k, kept in enumerate(first.kept) if kept.overwritten]
    if not overwritten:
        return None
    watched = _Keeping(objective, overwritten)
    watched.gradients(wrong)
    found = [_effect(objective, wrong, watched, group) for group in _by_writer(watched, overwritten)[:MOST_WRITERS]]
    effects = [each for each in found if each is not None]
    return max(effects, key=lambda each: each.mends, default=None)


def _by_writer(watched: _Keeping, overwritten: Sequence[int]) -> list[list[int]]:
    """The overwritten tensors, together where one call wrote to them, and one keeps them."""
    groups: dict[tuple[RecordedCall | None, RecordedCall | None], list[int]] = {}
    for k in overwritten:
        groups.setdefault((watched.kept[k].writer, watched.kept[k].by), []).append(k)
    return list(groups.values())


def _effect(
    objective: Objective, wrong: Sequence[WrongCoordinate], watched: _Keeping, group: Sequence[int]
) -> Overwriting | None:
    """What changes where the backward is given these as they were; None where it is less than a tenth of the error."""
    values = _Keeping(objective, restored=group).gradients(wrong)
    moved = [(abs(value - each.analytic), each) for value, each in zip(values, wrong, strict=True)]
    changed = next((each for by, each in moved if by > OWN_MISTAKE * abs(each.error)), None)
    if changed is None:
        return None
    pairs = zip(values, wrong, strict=True)
    mends = all(
        abs(value - each.numeric) <= max(SAME_MISTAKE * abs(each.error), ERROR_BARS_OFF * each.error_bar)
        for value, each in pairs
    )
    return Overwriting(watched.kept[group[0]], changed, mends)


class _Keeping(Recording):
    """A recording without taps that looks at what is kept for the backward: saved tensors, attributes of contexts.

    Args:
        objective: J.
        watched: numbers of kept tensors that are looked at after each call, to see which one writes to them.
        restored: of those that the backward is given as they were.

    Attributes:
        kept: in the order in which they were kept, the same in every run.
    """

    def __init__(self, objective: Objective, watched: Collection[int] = (), restored: Collection[int] = ()) -> None:
        super().__init__(lambda: objective.random_state, watch=self._look)
        self._objective, self._watched, self._restored = objective, watched, restored
        self.kept: list[Kept] = []
        self._attributes: dict[Any, list[tuple[str, int]]] = {}
        self._bytes = 0

    def gradients(self, wrong: Sequence[WrongCoordinate]) -> list[float]:
        """The gradients of these coordinates, of one evaluation of J."""
        objective = self._objective
        with (
            torch.enable_grad(),
            objective.evaluation(at_theta=True),
            self,
            saved_tensors_hooks(self._keep, self._given),
        ):
            loss = objective.compute()
            self._look(None)
            theta = objective.leaves
            found = dict(zip(theta, gradients_of([loss], theta), strict=True))
        self._attributes.clear()  # nodes hold on to what was saved
        gradients = [(each, found.get(each.entry.parameter)) for each in wrong]
        return [0.0 if gradient is None else each.of(gradient) for each, gradient in gradients]

    def _keep(self, tensor: torch.Tensor) -> int:
        alias = tensor.detach()
        self._bytes += alias.numel() * alias.element_size()
        before = alias.clone() if self._bytes <= MEMORY_LIMIT else None
        self.kept.append(Kept(alias, before, self.running()))
        return len(self.kept) - 1

    def _given(self, number: int) -> torch.Tensor:
        kept = self.kept[number]
        kept.look()
        return kept.before if number in self._restored and kept.before is not None else kept.tensor

    def _note_node(self, call: RecordedCall, result: Any) -> None:
        known = set(self.nodes)
        super()._note_node(call, result)
        for node in self.nodes.keys() - known:
            held = [(name, value) for name, value in vars(node).items() if isinstance(value, torch.Tensor)]
            self._attributes[node] = [(name, self._keep_for(call, value)) for name, value in held]

    def _keep_for(self, call: RecordedCall, tensor: torch.Tensor) -> int:
        number = self._keep(tensor)
        self.kept[number].by = call
        return number

    def _in_backward(self, node: Any, run: Any, gradients: tuple[Any, ...]) -> Any:
        for name, number in self._attributes.get(node, []):
            given = self._given(number)
            if number in self._restored:
                setattr(node, name, given)
        return super()._in_backward(node, run, gradients)

    def _look(self, call: RecordedCall | None) -> None:
        for number in self._watched:
            if number < len(self.kept) and self.kept[number].look():
                kept = self.kept[number]
                kept.writer, kept.seen, kept.backward = call, True, in_backward()


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())
