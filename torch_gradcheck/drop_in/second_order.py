"""The gradient of a function as a function of its own: of its inputs, and of the gradients of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.drop_in.function import lent_function
from torch_gradcheck.drop_in.inputs import as_tuple, requires_gradient
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.signatures import argument_names


class GradientFunction:
    """(x, v) ↦ ∂⟨v, f(x)⟩/∂x for every x that requires a gradient and is reached.

    Args:
        func: f.
        arguments: of f, the caller's.
        cotangents: v, one for each differentiable output.
        spread: f's backward gets v with gaps between its entries: not contiguous.
    """

    def __init__(
        self, func: Callable[..., Any], arguments: Sequence[Any], cotangents: Sequence[Any], spread: bool = False
    ) -> None:
        self._func, self._count, self._spread = func, len(arguments), spread
        self._on_trial = [k for k, each in enumerate(arguments) if requires_gradient(each)]
        self._cotangents = [k for k, each in enumerate(cotangents) if requires_gradient(each)]
        known = enumerate(argument_names(func, len(arguments)))
        names = [name if name.isidentifier() else f"args_{position}" for position, name in known]
        order = 1 + max([name.count("grad_") for name in names], default=0)
        names += ["grad_" * order + f"output_{position}" for position in range(len(cotangents))]
        kind = inspect.Parameter.POSITIONAL_ONLY
        self.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The gradients; the arguments are those of f, then v."""
        arguments = _requiring(args[: self._count], self._on_trial)
        outputs = differentiable(self._func(*arguments))
        cotangents = _requiring(args[self._count :], self._cotangents)
        inputs = [arguments[k] for k in self._on_trial]
        if self._spread:
            cotangents = [torch.stack([v, v], dim=-1)[..., 0] for v in cotangents]
        gradients = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True)
        found: list[Tensor | None] = list(gradients)
        return tuple([gradient for gradient in found if gradient is not None])


def _requiring(values: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """The same, those at these positions requiring a gradient; under forward mode they come without."""
    return [value.requires_grad_() if k in positions else value for k, value in enumerate(values)]


def differentiable(result: Any) -> list[Tensor]:
    """The outputs that require a gradient."""
    return [output for _, output in tensors_in(result) if output.requires_grad]


def cotangents_of(func: Callable[..., Any], arguments: Sequence[Any], given: Any) -> tuple[Any, ...]:
    """The gradients of the outputs that were given, or random ones, which require a gradient.

    Random ones lie between −1 and 1. The function is run once, lent as it is, to know its outputs.

    Args:
        func: the function.
        arguments: its arguments.
        given: `grad_outputs` of `gradgradcheck`.
    """
    if given is not None:
        return as_tuple(given)
    generator = torch.Generator("cpu").manual_seed(0)
    with lent_function(func, arguments, masked=True, dtype=None) as function:
        function.start()
        return tuple([_random(output, generator) for output in function.chosen(function.outputs)])


def _random(output: Tensor, generator: torch.Generator) -> Tensor:
    parts = torch.rand((2, *output.shape), generator=generator, dtype=torch.float64, device="cpu") * 2 - 1
    v = torch.complex(*parts) if output.is_complex() else parts[0]
    return v.to(output.device, output.dtype).requires_grad_()
