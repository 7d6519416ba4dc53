"""J once more, with what one of its calls puts out or is given changed: to see what hangs on it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch

from torch_gradcheck.diagnosis.culprit.argument_copies import replaced
from torch_gradcheck.diagnosis.culprit.call_recording import NO_TAPS, Recording
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.objective.objective import Objective

Change = Callable[[int, torch.Tensor], torch.Tensor]
"""What takes the place of a tensor, by its position."""


def unchanged(_: int, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself."""
    return tensor


class ChangedCall(Recording):
    """A recording in which one call is changed, and nothing else.

    Args:
        objective: J.
        number: of the call, as in the recorded run.
        of_outputs: what its caller is given in place of each output.
        of_inputs: what it is given in place of each tensor in its arguments.
    """

    def __init__(
        self, objective: Objective, number: int, *, of_outputs: Change = unchanged, of_inputs: Change = unchanged
    ) -> None:
        super().__init__(lambda: objective.random_state, NO_TAPS)
        self._number, self._of_outputs, self._of_inputs = number, of_outputs, of_inputs

    def _inputs_tapped(self, call: RecordedCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if call.number != self._number or self._of_inputs is unchanged:
            return args, kwargs
        positions = count()
        arguments: tuple[Any, Any] = replaced((args, kwargs), lambda tensor: self._of_inputs(next(positions), tensor))
        return arguments

    def _finished(self, call: RecordedCall, result: Any) -> Any:
        if call.number != self._number:
            return result
        positions = count()
        return rebuilt(result, lambda tensor: self._of_outputs(next(positions), tensor), functions=True)
