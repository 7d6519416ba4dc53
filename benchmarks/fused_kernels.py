"""Fused kernels for the benchmark: operations by formula, run as a kernel runs them, rightly or with a mistake.

An `Operation` has a plain form in torch's operations, the reference, and a forward and a backward by formula. A
`Kernel` runs these formulas as kernels of Triton or CUDA do: inputs are raised to the precision it computes in, rows
are taken in tiles, gradients of arguments that all rows share are summed over the tiles, and results are rounded
once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

TILE = 16
"""Rows or columns of a tile where the end of the input is not masked."""

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Argument:
    """One argument of an operation.

    Attributes:
        shape: of the tensor; (rows,) of labels.
        mean, scale: of its normal distribution.
        is_shared: whether all rows share it, so that its gradient is a sum over rows.
        classes: of labels that are drawn instead; 0 where it is a tensor of numbers.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    scale: float = 1.0
    is_shared: bool = False
    classes: int = 0

    def drawn(self, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        """A tensor of this kind, drawn in float64 and rounded."""
        if self.classes:
            return torch.randint(0, self.classes, self.shape, generator=generator)
        return (self.mean + self.scale * torch.randn(self.shape, dtype=torch.float64, generator=generator)).to(dtype)


@dataclass(frozen=True)
class Operation:
    """What a kernel computes.

    Attributes:
        plain: the reference, in torch's operations, of the named arguments.
        forward: the output by formula, of the arguments in the precision of the kernel.
        backward: the gradients by formula, of the gradient of the output and the arguments; None of labels.
        arguments: by name, in order.
        is_reduced: whether an output depends on all columns of its row, so that columns past the end matter.
    """

    plain: Callable[..., Tensor]
    forward: Callable[..., Tensor]
    backward: Callable[..., Sequence[Tensor | None]]
    arguments: dict[str, Argument]
    is_reduced: bool = False

    @property
    def name(self) -> str:
        """Of the operation."""
        return self.plain.__name__

    @property
    def on_trial(self) -> list[str]:
        """The arguments that have a gradient."""
        return [name for name, argument in self.arguments.items() if not argument.classes]

    @property
    def shared(self) -> list[str]:
        """The arguments whose gradient is a sum over rows."""
        return [name for name, argument in self.arguments.items() if argument.is_shared]

    def inputs(self, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
        """Arguments in this dtype; floating ones require a gradient."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [argument.drawn(dtype, generator) for argument in self.arguments.values()]
        return tuple(each.requires_grad_(each.is_floating_point()) for each in drawn)


def unchanged(tensor: Tensor) -> Tensor:
    """No mistake."""
    return tensor


@dataclass(frozen=True)
class Mistake:
    """What is wrong with a kernel; by default nothing.

    Attributes:
        argument: whose gradient is changed.
        change: of that gradient, before it is rounded.
        output: a change of the output, before it is rounded.
        upstream: a change of the gradient of the output, before it is used.
        sums_low: whether sums over rows are taken row by row in the dtype of the arguments.
        reads_rows: whether the last tile of the backward goes on with the first rows where the rows end.
        reads_columns: whether rows go on with zeros where the columns end.
    """

    argument: str = ""
    change: Change = unchanged
    output: Change = unchanged
    upstream: Change = unchanged
    sums_low: bool = False
    reads_rows: bool = False
    reads_columns: bool = False


@dataclass(frozen=True)
class Kernel:
    """An operation as a kernel computes it.

    Attributes:
        operation: what it computes.
        tile: rows in a tile; 0: all in one.
        precision: that it computes in; None: that of its arguments.
        mistake: what is wrong with it.
    """

    operation: Operation
    tile: int = 0
    precision: torch.dtype | None = torch.float32
    mistake: Mistake = Mistake()

    def function(self) -> Callable[..., Tensor]:
        """The kernel as a function of the operation's arguments, by the names that they have there."""

        @functools.wraps(self.operation.plain)
        def fused(*arguments: Tensor) -> Tensor:
            return apply(self, *arguments)

        return fused

    def output(self, arguments: Sequence[Tensor]) -> Tensor:
        """The output in the dtype of the arguments."""
        tiles = self._tiles(self._raised(arguments))
        whole = torch.cat([self.operation.forward(*map(self._as_read, tile)) for tile in tiles])
        if self.mistake.reads_columns:
            whole = _cut(whole, arguments[0])
        return self.mistake.output(whole).to(arguments[0].dtype)

    def gradients(self, g: Tensor, arguments: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients in the dtype of the arguments; None of labels."""
        raised, dtype = self._raised(arguments), arguments[0].dtype
        upstream = self.mistake.upstream(g.to(raised[0].dtype))
        found = [self.operation.backward(*map(self._as_read, tile)) for tile in self._tiles(raised, upstream)]
        return [
            None if parts[0] is None else self._changed(name, _cut(self._whole(name, parts, dtype), given)).to(dtype)
            for name, given, *parts in zip(self.operation.arguments, arguments, *found, strict=True)
        ]

    def _raised(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        return [each.to(self.precision) if each.is_floating_point() and self.precision else each for each in arguments]

    def _as_read(self, tensor: Tensor) -> Tensor:
        padding = -tensor.shape[-1] % TILE if self.mistake.reads_columns and tensor.dim() > 1 else 0
        return functional.pad(tensor, (0, padding))

    def _changed(self, name: str, gradient: Tensor) -> Tensor:
        return self.mistake.change(gradient) if name == self.mistake.argument else gradient

    def _whole(self, name: str, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        if not self.operation.arguments[name].is_shared:
            return torch.cat(list(parts))
        parts = [part.to(dtype) for part in parts] if self.mistake.sums_low else parts
        return functools.reduce(torch.add, parts)

    def _tiles(self, arguments: Sequence[Tensor], upstream: Tensor | None = None) -> list[list[Tensor]]:
        """Rows of the arguments, those of `upstream` before them, tile by tile; shared ones are in every tile."""
        rows, kinds = len(arguments[0]), self.operation.arguments.values()
        size = 1 if self.mistake.sums_low else TILE if self.mistake.reads_rows else self.tile or rows
        last = rows + size if self.mistake.reads_rows and upstream is not None else rows
        tiles = [torch.arange(k, min(k + size, last)) % rows for k in range(0, rows, size)]
        return [
            [
                *([] if upstream is None else [upstream[tile]]),
                *[each if kind.is_shared else each[tile] for each, kind in zip(arguments, kinds, strict=True)],
            ]
            for tile in tiles
        ]


def _cut(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor without what lies behind the end of another one, dimension by dimension."""
    return tensor[tuple(slice(length) for length in like.shape[: tensor.dim()])]


class Fused(Function):
    """The kernel as a node of autograd."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, *arguments: Tensor) -> Tensor:
        """The output; the arguments are saved."""
        ctx.kernel = kernel
        ctx.save_for_backward(*arguments)
        return kernel.output(arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """The gradients, from the saved arguments."""
        return (None, *ctx.kernel.gradients(gradients[0], ctx.saved_tensors))


apply: Callable[..., Tensor] = Fused.apply
