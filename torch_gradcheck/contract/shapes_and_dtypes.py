"""`shapes_and_dtypes`: each gradient has its input's shape, dtype and device, in every precision that is tried.

Autograd sums a gradient that is larger than its input over the dimensions that broadcasting has added, casts it, and
says nothing. So what the backward of a Function returns is looked at before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torch_gradcheck.contract.outcome import Raised, attempted, failed, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.gradients.function_backwards import FunctionBackwards
from torch_gradcheck.objective.function_outputs import inner
from torch_gradcheck.objective.signatures import argument_names
from torch_gradcheck.precision.dtypes import is_lower, name_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import InputForm, backward_of, input_forms
from torch_gradcheck.torch_internals.code_lines import at_line_of
from torch_gradcheck.torch_internals.custom_ops import custom_op_of

NAME = "shapes_and_dtypes"


def shapes_and_dtypes(trial: Trial) -> ContractEntry:
    """A run forward and backward in each precision, as the function is: what the backwards in it return."""
    notes: list[str] = []
    for dtype in trial.precisions:
        seen = _Returned(may_return_wider=trial.is_candidate)
        run = attempted(lambda: trial.as_it_is(dtype, lambda: _look(trial, seen)))  # noqa: B023  # called at once
        if seen.wrong:
            return failed(NAME, f"in {name_of(dtype)}, {listed(seen.wrong)}")
        if isinstance(run, Raised):
            if seen.in_backward:
                return failed(NAME, f"in {name_of(dtype)} the forward runs, and the backward raises {run}")
            notes.append(f"not tried in {name_of(dtype)}, where the function raises {run}")
        elif not seen.count:
            notes.append("only operations of torch have returned gradients")
        notes += [f"{each}: autograd rounds it once" for each in seen.wider]
    return passed(NAME, "; ".join(dict.fromkeys(notes)))


def _look(trial: Trial, seen: _Returned) -> None:
    with torch.enable_grad():
        outputs = [y for y in trial.outputs(trial.arguments) if y.requires_grad]
        terms = [inner(v, y) for y, v in zip(outputs, trial.cotangents(outputs), strict=True)]
        with seen:
            gradients_of(terms, trial.tensors)


class _Returned:
    """Looks, inside the block, at the gradients that the backwards of the user's Functions return.

    Args:
        may_return_wider: a gradient in a finer precision than its input's is right, as of a kernel that adds up in
            float32: autograd rounds it once, and nothing more is lost.

    Attributes:
        count: how many backwards have returned.
        in_backward: whether the block was entered.
    """

    def __init__(self, *, may_return_wider: bool) -> None:
        self.count, self.in_backward = 0, False
        self._may_return_wider = may_return_wider
        self._others: list[_Other] = []
        self._backwards = FunctionBackwards(self._looked_at)

    def __enter__(self) -> None:
        self.in_backward = True
        self._backwards.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._backwards.__exit__(*exception)

    def _looked_at(
        self, node: Any, function: type[torch.autograd.Function], _: tuple[Any, ...], run: Callable[[], Any]
    ) -> Any:
        returned = run()
        self.count += 1
        self._look(node, function, returned if isinstance(returned, tuple) else (returned,))
        return returned

    def _look(self, node: Any, function: type[torch.autograd.Function], returned: Sequence[Any]) -> None:
        for position, expected in input_forms(node).items():
            gradient = returned[position] if position < len(returned) else None
            if isinstance(gradient, torch.Tensor):
                found = InputForm(tuple(gradient.shape), gradient.dtype, gradient.device)
                if found != expected:
                    self._others.append(_Other(function, position, found, expected))

    @property
    def wrong(self) -> list[str]:
        """What is wrong with gradients, each told once."""
        return self._told([each for each in self._others if not self._is_right(each)])

    @property
    def wider(self) -> list[str]:
        """The gradients in a finer precision than their inputs', where that is right; each told once."""
        return self._told([each for each in self._others if self._is_right(each)])

    def _is_right(self, other: _Other) -> bool:
        return self._may_return_wider and other.is_only_wider

    def _told(self, others: Sequence[_Other]) -> list[str]:
        return list(dict.fromkeys([_in_words(*each) for each in others]))


class _Other(NamedTuple):
    """A gradient that is not of the form of its input: the Function, the position of the argument, and both forms."""

    function: type[torch.autograd.Function]
    position: int
    found: InputForm
    expected: InputForm

    @property
    def is_only_wider(self) -> bool:
        """Whether all that is other is a finer precision."""
        same = self.found._replace(dtype=self.expected.dtype) == self.expected
        inexact = self.found.dtype.is_floating_point or self.found.dtype.is_complex
        alike = self.found.dtype.is_complex == self.expected.dtype.is_complex
        return same and inexact and alike and is_lower(self.expected.dtype, self.found.dtype)


def _in_words(function: type[torch.autograd.Function], position: int, found: InputForm, expected: InputForm) -> str:
    operator = custom_op_of(function)
    names = list(operator.arguments) if operator is not None else argument_names(function.apply, position + 1)
    argument = names[position] if position < len(names) else f"argument {position}"
    called = f"the backward of {operator.name}" if operator is not None else f"{function.__name__}.backward"
    kinds = [kind for kind in ("shape", "dtype", "device") if getattr(found, kind) != getattr(expected, kind)]
    has, should = (", ".join([_words(form, kind) for kind in kinds]) for form in (found, expected))
    return f"{called}{at_line_of(backward_of(function))} returns for {argument} a gradient of {has}, should be {should}"


def _words(form: InputForm, kind: str) -> str:
    value = getattr(form, kind)
    return f"{kind} {name_of(value) if kind == 'dtype' else value}"
