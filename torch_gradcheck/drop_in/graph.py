"""The graph of one run of the function: everything that is asked of its backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Floats
from torch_gradcheck.contract.upstream import losses_giving
from torch_gradcheck.drop_in.columns import Columns
from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.function import LentFunction
from torch_gradcheck.drop_in.inputs import Input
from torch_gradcheck.drop_in.rows import Rows

Gradients = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Graph:
    """One run with a graph; made and used inside of `LentFunction.run`.

    Attributes:
        inputs: the arguments on trial.
        leaves: what the function was given in their places.
        outputs: the differentiable outputs.
    """

    inputs: Sequence[Input]
    leaves: Sequence[Tensor]
    outputs: Sequence[Tensor]

    @classmethod
    def of(cls, function: LentFunction) -> Graph:
        """Runs the function."""
        leaves = [each.leaf() for each in function.inputs]
        return cls(function.inputs, leaves, function.chosen(function.called(leaves)))

    def gradients(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> Gradients:
        """The gradients of the leaves, None for one that is not reached.

        Args:
            outputs: of this graph.
            cotangents: their gradients; None for none.
        """
        loss = losses_giving(outputs, cotangents)
        return torch.autograd.grad(loss, list(self.leaves), retain_graph=True, allow_unused=True)

    def batched_gradients(self, output: Tensor, cotangents: Tensor) -> Gradients:
        """The same for several gradients of one output, stacked along a dimension in front, by one run under vmap."""
        return torch.autograd.grad(
            output, list(self.leaves), cotangents, retain_graph=True, allow_unused=True, is_grads_batched=True
        )

    def jacobian(self, rows: Rows, columns: Columns) -> Floats:
        """The Jacobian by the backward, shape (M, N)."""
        found = [columns.slopes(self._slopes(rows, row)) for row in range(len(rows.owners))]
        return np.array(found).reshape(len(found), len(columns.owners))

    def _slopes(self, rows: Rows, row: int) -> list[Floats]:
        output = self.outputs[rows.owners[row]]
        gradients = self.gradients([output], [rows.cotangent(row, output)])
        return [each.slopes(gradient) for each, gradient in zip(self.inputs, gradients, strict=True)]


def check_repeatable(first: Floats, second: Floats, nondet_tol: float) -> None:
    """Raises where two backward runs of one graph differ by more than the tolerance."""
    if first.size and not np.array_equal(first, second, equal_nan=True):
        apart = float(np.max(np.abs(first - second)))
        if not apart <= nondet_tol:
            raise GradcheckFailedError(
                "Backward is not reentrant, i.e., running backward with same input and grad_output multiple times "
                f"gives different values: they lie up to {apart:.3g} apart. "
                f"The tolerance for nondeterminism was {nondet_tol}; nondet_tol=<tol> allows more."
            )


def check_zero_gives_zero(graph: Graph, masked: bool) -> None:
    """Raises where the gradients of outputs are zero and those of the inputs are not, or are other tensors."""
    zeros = [torch.zeros_like(output, memory_format=torch.contiguous_format) for output in graph.outputs]
    for gradient, leaf in zip(graph.gradients(graph.outputs, zeros), graph.leaves, strict=True):
        if gradient is None:
            continue
        _check_layout(gradient, leaf)
        dense = gradient if gradient.layout is torch.strided else gradient.to_dense()
        if not (torch.allclose(dense, torch.zeros_like(dense)) if masked else bool(dense.eq(0).all())):
            raise GradcheckFailedError(
                "backward not multiplied by grad_output: the gradients of the outputs are zero, and that of an input "
                f"goes up to {float(dense.abs().max()):.3g}. It must be linear in the gradients that it is given."
            )
        for what, found, expected in (
            ("type", gradient.dtype, leaf.dtype),
            ("device", gradient.device, leaf.device),
            ("size", gradient.shape, leaf.shape),
        ):
            if found != expected:
                raise GradcheckFailedError(f"grad is incorrect {what}: {found}, and the input has {expected}.")


def _check_layout(gradient: Tensor, leaf: Tensor) -> None:
    if gradient.layout is torch.strided:
        return
    if gradient.layout is not leaf.layout:
        raise GradcheckFailedError(f"grad is incorrect layout ({gradient.layout} is not {leaf.layout})")
    if gradient.is_mkldnn:
        return
    kind = str(gradient.layout).removeprefix("torch.").replace("sparse_coo", "sparse")
    for what in ("sparse_dim", "dense_dim"):
        found, expected = getattr(gradient, what)(), getattr(leaf, what)()
        if found != expected:
            raise GradcheckFailedError(f"grad is {kind} tensor, but has incorrect {what} {found}, expected {expected}")


def check_undefined(graph: Graph) -> None:
    """Raises where outputs whose gradient is None or zero give the inputs another one."""
    count = len(graph.outputs)
    _check_undefined(graph, [None] * count)
    zeros = [torch.zeros_like(output, memory_format=torch.contiguous_format) for output in graph.outputs]
    for position in range(count if count > 1 else 0):
        _check_undefined(graph, [None if k == position else v for k, v in enumerate(zeros)])


def _check_undefined(graph: Graph, cotangents: Sequence[Tensor | None]) -> None:
    try:
        gradients = graph.gradients(graph.outputs, cotangents)
    except RuntimeError as error:
        raise GradcheckFailedError(
            "Expected backward function to handle undefined output grads: where an output is not used, its gradient "
            f"is None or zero, and the backward raised {type(error).__name__}: {error}"
        ) from error
    for gradient in gradients:
        if gradient is not None and not bool(_dense(gradient).eq(0).all()):
            raise GradcheckFailedError(
                "Expected all input grads to be undefined or zero when all output grads are undefined or zero: one "
                f"goes up to {float(_dense(gradient).abs().max()):.3g}."
            )


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()
