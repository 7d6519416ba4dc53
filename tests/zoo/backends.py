"""Backends of torch.compile that make mistakes in the backward, in the forward, or cannot compile at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Spoil = Callable[[list[Any]], list[Any]]
"""Takes what a backward graph gives, one gradient an input of the forward, None where there is none."""


def backend(spoil: Spoil = list, forward: Callable[[Any], Any] | None = None) -> Callable[..., Any]:
    """A backend that runs the graphs of AOT autograd as they are, but for what the backward gives.

    Args:
        spoil: applied to the gradients.
        forward: applied to the first output of the forward graph.
    """
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def forwards(graph: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            first, *others = graph.forward(*args)
            return (first if forward is None else forward(first), *others)

        return make_boxed_func(run)

    def backwards(graph: Any, _: Any) -> Any:
        return make_boxed_func(lambda *args: tuple(spoil(list(graph.forward(*args)))))

    made: Callable[..., Any] = aot_autograd(fw_compiler=forwards, bw_compiler=backwards)
    return made


def spoiled(which: int, change: Callable[[Tensor], Tensor]) -> Spoil:
    """Changes the `which`-th of the gradients that there are."""

    def spoil(gradients: list[Any]) -> list[Any]:
        places = [k for k, each in enumerate(gradients) if isinstance(each, Tensor)]
        gradients[places[which]] = change(gradients[places[which]])
        return gradients

    return spoil


def _without_first_row(gradient: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(gradient[:1]), gradient[1:]])


SPOILS: dict[str, Spoil] = {
    "scaled": spoiled(0, lambda gradient: 1.5 * gradient),
    "sign flipped": spoiled(0, lambda gradient: -gradient),
    "zero for one parameter": spoiled(0, torch.zeros_like),
    "a term is missing": spoiled(0, _without_first_row),
    "slightly scaled": spoiled(-1, lambda gradient: 1.001 * gradient),
}


def refusing(graph: Any, example_inputs: Sequence[Tensor]) -> Any:
    """A backend that compiles float32 and nothing else."""
    if any(each.dtype is torch.float64 for each in example_inputs if isinstance(each, Tensor)):
        raise NotImplementedError("no kernels for float64")
    return graph.forward


def in_float32(graph: Any, _: Any) -> Any:
    """A backend that computes in float32, whatever it is given."""

    def run(*args: Any) -> Any:
        outputs = graph.forward(*(each.float() if isinstance(each, Tensor) else each for each in args))
        return [each.double() if isinstance(each, Tensor) else each for each in outputs]

    return run
