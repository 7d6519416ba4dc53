"""Says which operation makes NaN or infinity of finite gradients, where it was called, and how it does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from torch_gradcheck.diagnosis.culprit.sentences import at_backward_of, function_name, place_of_backward
from torch_gradcheck.diagnosis.non_finite.operations import Gradients, Operation, OperationRecording, Origin
from torch_gradcheck.diagnosis.non_finite.reasons import operation_name
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.reporting.words import LossWords, listed
from torch_gradcheck.torch_internals.autograd import function_of
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.modules import named_modules

MOST_NAMES = 3
"""How many parameters one sentence names, at most."""

MASKS = {
    "where": "the branch that where{at} did not take",
    "masked_fill": "what masked_fill{at} replaces",
    "masked_scatter": "what masked_scatter{at} replaces",
    "masked_select": "what masked_select{at} leaves out",
    "index": "what the index{at} leaves out",
    "select": "what the index{at} leaves out",
    "slice": "what the slice{at} leaves out",
    "gather": "what gather{at} leaves out",
    "index_put": "what an assignment{at} writes over",
    "copy_slices": "what an assignment{at} writes over",
    "mul": "a multiplication by 0{at}",
    "clamp": "the part where clamp{at} is constant",
    "clamp_min": "the part where clamp{at} is constant",
    "clamp_max": "the part where clamp{at} is constant",
    "relu": "the part that relu{at} cuts off",
    "maximum": "what maximum{at} did not choose",
    "minimum": "what minimum{at} did not choose",
}
"""What an operation that gives its input a gradient of 0 hides there, by its name."""

SHAPES = frozenset({"expand", "view", "unsafe_view", "unsqueeze", "squeeze", "alias", "clone", "to_copy"})
"""Operations that give the same numbers in another shape, by their names."""


class Sentences:
    """Writes sentences on the origins of a recording, which it names after the modules of `model`.

    `words` say what is outside of all modules.
    """

    def __init__(self, model: nn.Module, recording: OperationRecording, words: LossWords) -> None:
        self._words = words
        self._kinds = {name: type(module).__name__ for name, module in named_modules(model)}
        self._recording = recording
        self._first, *self._others = recording.origins

    @property
    def culprit(self) -> str:
        """The name of the module that the first origin is in."""
        module = self._first.operation.module
        return self._words.culprit if module is None else module

    @property
    def place(self) -> str:
        """Where in the code the first origin is; "" where no line is known."""
        operation, hooks = self._first.operation, self._first.hooks
        if hooks:
            return f"in a hook{at_line_of(hooks[0].hook) or f' registered at {hooks[0].line}'}"
        function = function_of(operation.node)
        if function is not None:
            return place_of_backward(function)
        return "" if operation.line is None else f"in {_called(operation)}"

    def all(self) -> Iterator[str]:
        """A sentence on each origin, after the first the advice."""
        first = self._on(self._first)
        yield f"the first gradient that is not finite is made by {first}"
        reason = self._first.reason
        if reason is not None and reason.advice and self._hidden_by(self._first):
            yield reason.advice.replace("{op}", operation_name(self._first.operation.node))
        for other in dict.fromkeys(map(self._on, self._others)):
            if other != first:
                yield f"besides, others are made by {other}"

    def on_parameters(self, theta: Theta, spoilt: Mapping[int, AnalyticGradient]) -> str:
        """Which gradients are not finite, and in how many entries."""
        names = [f"{theta[k].name} ({_entries(theta[k].shape, each)})" for k, each in spoilt.items()]
        return f"not finite are the gradients of {listed(names, MOST_NAMES)}"

    def _on(self, origin: Origin) -> str:
        place = self._in(origin.operation.module)
        if origin.hooks:
            hook = origin.hooks[0]
            at = at_line_of(hook.hook) or f" registered at {hook.line}"
            return f"a hook on a tensor{at}, {place}: it returns {_kind(origin.given)} for a finite gradient"
        function = function_of(origin.operation.node)
        if function is not None:
            made = _count(~torch.isfinite(_spoilt(origin.made)))
            return (
                f"{function_name(function)}{at_backward_of(function)}, {place}: "
                f"it returns {_kind(origin.made)}{made} for finite gradients"
            )
        return f"{_called(origin.operation)}, {place}: {self._how(origin)}"

    def _in(self, module: str | None) -> str:
        if module is None:
            return f"in {self._words.described}"
        return f"in {module or 'the model itself'} ({self._kinds.get(module, 'a module')})"

    def _how(self, origin: Origin) -> str:
        reason, kind = origin.reason, _kind(origin.made)
        if reason is None:
            return f"it gives {kind}{_count(~torch.isfinite(_spoilt(origin.made)))}, of finite numbers alone"
        derivative = f", where its derivative {reason.derivative} is not finite" if reason.derivative else ""
        what = f"{reason.what}{self._divisor(origin)}"
        said = f"{what}{_count(reason.where)}{derivative}{self._overflow(reason.stored)}"
        hidden = self._hidden_by(origin)
        if not hidden:
            return said
        return f"{said}; the gradient that arrives there is 0, behind {hidden}: 0 × {reason.factor} = NaN"

    def _divisor(self, origin: Origin) -> str:
        """Words on the operation that a division has its divisor from, such as a norm; "" for others."""
        node = origin.operation.node
        made_by = node.next_functions[1][0] if operation_name(node) == "div" and len(node.next_functions) > 1 else None
        while made_by is not None and operation_name(made_by) in SHAPES:
            made_by = made_by.next_functions[0][0]
        operation = self._recording.operations.get(made_by)
        return "" if operation is None or operation.line is None else f" (the divisor is of {_called(operation)})"

    def _overflow(self, stored: bool) -> str:
        """Words on the call that made the NaN or infinity that an operation has stored; "" for none."""
        first = self._recording.overflow
        if not stored or first is None or first.line is None:
            return ""
        return f" (made by {first})"

    def _hidden_by(self, origin: Origin) -> str:
        """Words on the operation that made 0 of the gradient which arrives where an operation is singular; "" for none.

        The nearest one of those that the gradient came through.
        """
        if origin.reason is None or not _arrives_as_zero(origin):
            return ""
        waiting, seen = deque([origin.operation]), {origin.operation}
        while waiting:
            given_by = waiting.popleft()
            for operation in self._recording.users[given_by.node]:
                if operation.passes_zeros and operation.hides(given_by.node):
                    return _hides(operation)
                if operation.passes_zeros and operation not in seen:
                    seen.add(operation)
                    waiting.append(operation)
        return "what J does not depend on"


def _hides(operation: Operation) -> str:
    at = "" if operation.line is None else f" at {operation.line}"
    name = operation_name(operation.node)
    return MASKS.get(name, f"{name}{{at}}, which gives it none").replace("{at}", at)


def _arrives_as_zero(origin: Origin) -> bool:
    """Whether the gradient is exactly 0 wherever the operation is singular; anywhere, where shapes tell no places."""
    given = next((each for each in origin.given if each is not None), None)
    if given is None or origin.reason is None:
        return False
    if given.shape == origin.reason.where.shape:
        given = given[origin.reason.where]
        return bool((given == 0).all())
    return bool((given == 0).any())


def _called(operation: Operation) -> str:
    at = "" if operation.line is None else f" at {operation.line}"
    return f"{operation_name(operation.node)}{at}"


def _spoilt(gradients: Gradients) -> torch.Tensor:
    return next(each for each in gradients if each is not None and not bool(torch.isfinite(each).all()))


def _kind(gradients: Gradients) -> str:
    return "NaN" if bool(torch.isnan(_spoilt(gradients)).any()) else "infinity"


def _count(where: torch.Tensor) -> str:
    """The words " in 3 of 12 entries, first at [0, 2]"; "" for the only entry."""
    if where.numel() == 1:
        return ""
    return f" in {int(where.sum())} of {where.numel()} entries, first at {where.nonzero()[0].tolist()}"


def _entries(shape: tuple[int, ...], gradient: AnalyticGradient) -> str:
    wrong = ~np.isfinite(gradient.values)
    parts = 2 if gradient.values.size > np.prod(shape, dtype=np.int64) else 1
    there = np.flatnonzero(wrong.reshape(-1, parts).any(axis=1))
    first = [int(k) for k in np.unravel_index(int(there[0]), shape)] if shape else []
    return f"{len(there)} of {wrong.size // parts} entries{f', first at {first}' if first else ''}"
