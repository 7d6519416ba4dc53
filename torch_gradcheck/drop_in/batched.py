"""Gradients under vmap, of the backward and of the forward mode: they must be what a loop gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.function import LentFunction
from torch_gradcheck.drop_in.graph import Graph
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.torch_internals.transforms import batched_by_kernels

BATCH = 2
"""How many gradients are taken together."""

BACKWARD = "gradcheck or gradgradcheck failed while testing batched gradient computation (check_batched_grad=True)"
FORWARD = (
    "gradcheck failed while testing batched gradient computation with forward-mode AD (check_batched_forward_grad=True)"
)

Transformed = Callable[[], Sequence[Tensor | None]]


def check_batched_backward(graph: Graph) -> None:
    """Raises where the backward under vmap fails, or gives other gradients than one run after the other."""
    generator = torch.Generator("cpu").manual_seed(0)
    for position, output in enumerate(graph.outputs):
        v = [_normal(output, generator) for _ in range(BATCH)]
        expected = _stacked([graph.gradients([output], [each]) for each in v])
        run = partial(graph.batched_gradients, output, torch.stack(v))
        _check_same(expected, _by_vmap(run, BACKWARD), f"output {position}")


def check_batched_forward(function: LentFunction) -> None:
    """The same for the forward mode; one input moves at a time."""
    generator = torch.Generator("cpu").manual_seed(0)
    for position, each in enumerate(function.inputs):
        tangents = [_normal(each.leaf(), generator) for _ in range(BATCH)]
        derivative = partial(_tangents, function, position)
        with function.run():
            expected = _stacked([derivative(tangent) for tangent in tangents])
        with function.run():
            together = _by_vmap(partial(batched_by_kernels(derivative), torch.stack(tangents)), FORWARD)
        _check_same(expected, together, f"input {position}")


def _tangents(function: LentFunction, position: int, tangent: Tensor) -> tuple[Tensor, ...]:
    """The tangents of the differentiable outputs, zeros where there is none."""
    with forward_ad.dual_level():
        tensors = [each.leaf().detach() for each in function.inputs]
        tensors[position] = forward_ad.make_dual(tensors[position], tangent)
        outputs = [output for output in function.called(tensors) if is_inexact(output)]
        pairs = [forward_ad.unpack_dual(output) for output in outputs]
        return tuple([torch.zeros_like(primal) if found is None else found for primal, found in pairs])


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _by_vmap(run: Transformed, what: str) -> Sequence[Tensor | None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        warnings.filterwarnings("ignore", message="Please use `torch.vmap`")
        try:
            return run()
        except RuntimeError as error:
            raise GradcheckFailedError(f"{what}. While computing batched gradients, got: {error}") from error


def _stacked(runs: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    return [
        torch.stack([x for x in each if x is not None]) if all(x is not None for x in each) else None
        for each in zip(*runs, strict=True)
    ]


def _check_same(expected: Sequence[Tensor | None], found: Sequence[Tensor | None], where: str) -> None:
    for one, other in zip(expected, found, strict=True):
        if one is None or other is None:
            same = all(x is None or not bool(x.any()) for x in (one, other))
        else:
            same = torch.allclose(one, other)
        if not same:
            raise GradcheckFailedError(
                "gradcheck or gradgradcheck failed while testing batched gradient computation: for "
                f"{where} vmap gives another gradient than a loop.\n\nGot:\n{other}\n\nExpected:\n{one}"
            )
