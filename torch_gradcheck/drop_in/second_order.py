"""The gradient of a function as a function of its own: of its inputs, and of the gradients of its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_gradcheck.drop_in.inputs import as_tuple, requires_gradient
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.signatures import argument_names


class GradientFunction:
    """(x, v) ↦ ∂⟨v, f(x)⟩/∂x for every x that requires a gradient and is reached.

    Args:
        func: f.
        arguments: of f, the caller's.
        cotangents: v, one for each differentiable output.
    """

    def __init__(self, func: Callable[..., Any], arguments: Sequence[Any], cotangents: Sequence[Any]) -> None:
        self._func, self._count = func, len(arguments)
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
        gradients = torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, allow_unused=True)
        found: list[Tensor | None] = list(gradients)
        return tuple([gradient for gradient in found if gradient is not None])


def _requiring(values: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    """The same, those at these positions requiring a gradient; under forward mode they come without."""
    return [value.requires_grad_() if k in positions else value for k, value in enumerate(values)]


def differentiable(result: Any) -> list[Tensor]:
    """The outputs that require a gradient."""
    return [output for _, output in tensors_in(result) if output.requires_grad]


def random_cotangents(outputs: Sequence[Tensor], seed: int, noncontiguous: bool) -> tuple[Tensor, ...]:
    """A gradient for each output that requires a gradient itself: uniform between −1 and 1.

    Args:
        outputs: the differentiable outputs.
        seed: of the numbers; the caller's random state stays as it is.
        noncontiguous: every other entry of a tensor twice as large.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return tuple([_random(output, generator, noncontiguous) for output in outputs])


def _random(output: Tensor, generator: torch.Generator, noncontiguous: bool) -> Tensor:
    shape = (*output.shape, 2) if noncontiguous else tuple(output.shape)
    real = torch.float64 if output.dtype in (torch.float64, torch.complex128) else torch.float32
    parts = [torch.rand(shape, generator=generator, dtype=real, device="cpu") * 2 - 1 for _ in range(2)]
    v = (torch.complex(*parts) if output.is_complex() else parts[0]).to(output.device, output.dtype)
    return (v[..., 0] if noncontiguous else v).requires_grad_()


def cotangents_of(
    func: Callable[..., Any], arguments: Sequence[Any], given: Any, noncontiguous: bool
) -> tuple[Any, ...]:
    """The gradients of the outputs that were given, or random ones.

    Args:
        func: the function.
        arguments: its arguments.
        given: `grad_outputs` of `gradgradcheck`.
        noncontiguous: see `random_cotangents`.
    """
    if given is not None:
        return as_tuple(given)
    return random_cotangents(differentiable(func(*arguments)), 0, noncontiguous)
