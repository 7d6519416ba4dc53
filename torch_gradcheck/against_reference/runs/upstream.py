"""The gradients that outputs are given: signed, of sizes between ½ and 1½, rounded to the candidate's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.against_reference.runs.alike import check_alike
from torch_gradcheck.objective.function_outputs import drawn
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.reporting.words import listed

Outputs = Sequence[tuple[str, torch.Tensor]]
"""What a function returned: every tensor with its name."""


class OtherGraphError(Exception):
    """The reference gives fewer outputs a graph than the candidate: both have to be run again without these."""


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
    def notes(self) -> list[str]:
        """The note on outputs of floating point or complex numbers that have none, where there are such."""
        left = {
            "the candidate": [k for k, (_, y) in enumerate(self._first) if is_inexact(y) and k not in self._rounded],
            "the reference": sorted(self._left_out),
        }
        return [
            f"{listed([self._first[k][0] for k in positions])} {'has' if len(positions) == 1 else 'have'} no graph in "
            f"{side} (marked non-differentiable, or detached): compared, and given no gradient on either side"
            for side, positions in left.items()
            if positions
        ]

    def of(self, outputs: Outputs) -> list[torch.Tensor | None]:
        """v of each of these outputs, in new memory, in the shape, dtype and place of the output; None for none.

        Raises:
            InvalidRequestError: there were others before, of other names or shapes.
            OtherGraphError: some have no graph that had one before; they have no v from now on.
        """
        if not self._rounded:
            self._draw(outputs)
        check_alike(dict(self._first), dict(outputs))
        self._check_graphs(outputs)
        return [self._like(position, output) for position, (_, output) in enumerate(outputs)]

    def _check_graphs(self, outputs: Outputs) -> None:
        given = self.given
        with_graph = set(given) & set(differentiable(outputs))
        if with_graph and with_graph != set(given):
            self._left_out |= set(given) - with_graph
            raise OtherGraphError

    def _draw(self, outputs: Outputs) -> None:
        self._first = [(name, torch.empty_like(output, device="meta")) for name, output in outputs]
        for position in differentiable(outputs):
            output = outputs[position][1].detach()
            v = drawn((self._seed + position) % 2**63, output)
            infinite = torch.isinf(output.to("cpu").to(v.dtype))  # there every dtype can be asked, float8 as well
            self._rounded[position] = torch.where(infinite, 0, v).to(output.dtype)

    def _like(self, position: int, output: torch.Tensor) -> torch.Tensor | None:
        if position not in self._rounded or position in self._left_out:
            return None
        v = self._rounded[position].to("cpu").to(output.dtype)  # which has all of them
        return v.to(output.device, copy=True)


def differentiable(outputs: Outputs) -> list[int]:
    """The positions of the outputs with a graph or, where none has one, of all of floating point or complex numbers."""
    inexact = [position for position, (_, output) in enumerate(outputs) if is_inexact(output)]
    return [position for position in inexact if outputs[position][1].requires_grad] or inexact
