"""The gradients that outputs are given: signed, of sizes between ½ and 1½, rounded to the candidate's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.against_reference.alike import check_alike
from torch_gradcheck.objective.function_outputs import drawn
from torch_gradcheck.precision.dtypes import is_inexact

Outputs = Sequence[tuple[str, torch.Tensor]]
"""What a function returned: every tensor with its name."""


class Upstream:
    """v of every output, drawn once, for the first outputs that it is asked about: the candidate's.

    The reference gets the same rounded numbers, in whatever precision it computes. v is 0 where the candidate returns
    an infinity, as of a mask: what a loss computes of that does not depend on it.

    Outputs have a v that have a graph or, where none has one, all of floating point or complex numbers.

    Args:
        seed: same seed, same v, on every device.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._first: Outputs = ()
        self._rounded: dict[int, torch.Tensor] = {}
        self._left_out: set[int] = set()

    @property
    def given(self) -> dict[int, str]:
        """The outputs that have a v: their position and name."""
        return {position: self._first[position][0] for position in self._rounded if position not in self._left_out}

    @property
    def not_given(self) -> list[str]:
        """The names of the outputs of floating point or complex numbers that have none."""
        given = self.given
        return [name for k, (name, each) in enumerate(self._first) if is_inexact(each) and k not in given]

    def of(self, outputs: Outputs) -> list[torch.Tensor | None]:
        """v of each of these outputs, in new memory, in the shape, dtype and place of the output; None for none.

        Raises:
            InvalidRequestError: there were others before, of other names or shapes.
        """
        if not self._rounded:
            self._draw(outputs)
        check_alike(dict(self._first), dict(outputs))
        return [self._like(position, output) for position, (_, output) in enumerate(outputs)]

    def leave_out(self, positions: Sequence[int]) -> None:
        """Gives outputs at these positions no v from now on."""
        self._left_out.update(positions)

    def _draw(self, outputs: Outputs) -> None:
        self._first = [(name, torch.empty_like(output, device="meta")) for name, output in outputs]
        for position in differentiable(outputs):
            output = outputs[position][1].detach()
            v = drawn((self._seed + position) % 2**63, output).to(device=output.device, dtype=output.dtype)
            self._rounded[position] = torch.where(torch.isinf(output), 0, v)

    def _like(self, position: int, output: torch.Tensor) -> torch.Tensor | None:
        if position not in self._rounded or position in self._left_out:
            return None
        return self._rounded[position].to(device=output.device, dtype=output.dtype, copy=True)


def differentiable(outputs: Outputs) -> list[int]:
    """The positions of the outputs with a graph or, where none has one, of all of floating point or complex numbers."""
    inexact = [position for position, (_, output) in enumerate(outputs) if is_inexact(output)]
    return [position for position in inexact if outputs[position][1].requires_grad] or inexact
