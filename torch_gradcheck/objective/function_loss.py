"""J of a function: Σ ⟨v, y⟩ over its differentiable outputs y, with random v that are signed and not uniform."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from torch_gradcheck.objective.function_call import FunctionCall, outputs_of
from torch_gradcheck.objective.loss import Compute
from torch_gradcheck.objective.variables import Variable, objects_of


class FunctionModule(nn.Module):
    """Stands for a plain function where a check asks for a model: it has no parameters, buffers or modules."""


@dataclass(frozen=True)
class FunctionLoss:
    """Σ ⟨v, y⟩ of a function called with its arguments.

    Attributes:
        call: the function and its arguments.
        seed: of v.
        is_bent: y is bent, see `bent`, so that what a backward is given depends on θ, and a double backward
            has to go through it.
    """

    call: FunctionCall
    seed: int
    is_bent: bool = False

    @property
    def holders(self) -> list[Any]:
        """The function and its arguments."""
        return [self.call.function, self.call.args, dict(self.call.kwargs), *objects_of(self.variables)]

    @cached_property
    def variables(self) -> list[Variable]:
        """The arguments on trial."""
        return self.call.variables

    def at(self, dtype: torch.dtype | None) -> Compute:  # noqa: ARG002
        """See `Loss.at`; the arguments are lent in `dtype`."""
        return self._value

    def _value(self) -> torch.Tensor:
        outputs = [tensor for _, tensor in outputs_of(self.call.called(objects_of(self.variables)))]
        differentiable = [tensor for tensor in outputs if tensor.is_floating_point() or tensor.is_complex()]
        values = [self._bent(k, y) if self.is_bent else y for k, y in enumerate(differentiable)]
        return torch.stack([inner(self.cotangent(k, y), y) for k, y in enumerate(values)]).sum()

    def _bent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """The output bent by its size in the first evaluation, at θ."""
        if position not in self._sizes:
            self._sizes[position] = root_mean_square(output.detach())
        return bent(output, self._sizes[position])

    @cached_property
    def _sizes(self) -> dict[int, torch.Tensor]:
        return {}

    def cotangent(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """v of the output at this position: signed, its entries of sizes between ½ and 1½, divided by their number."""
        key = (position, output.shape, output.dtype, output.device)
        if key not in self._cotangents:
            self._cotangents[key] = drawn_cotangent(output, (self.seed + position) % 2**63)
        return self._cotangents[key]

    @cached_property
    def _cotangents(self) -> dict[tuple[Any, ...], torch.Tensor]:
        """Those that were drawn so far: to draw one takes longer than a small function."""
        return {}


def drawn_cotangent(output: torch.Tensor, seed: int) -> torch.Tensor:
    """Like the output, with entries of either sign and of sizes between ½ and 1½, divided by their number."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (*output.shape, 2) if output.is_complex() else tuple(output.shape)
    draws = torch.rand((2, *shape), generator=generator, dtype=torch.float64, device="cpu")
    real = (0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0) / max(output.numel(), 1)
    v = torch.view_as_complex(real) if output.is_complex() else real
    return v.to(device=output.device, dtype=output.dtype)


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    """The root of the mean of |x|², 0-dim; 1 where all entries are 0, or there are none."""
    size = tensor.abs().square().mean().sqrt() if tensor.numel() else tensor.real.new_zeros(())
    return torch.where(size > 0, size, torch.ones_like(size))


def bent(y: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """y − ½ size cos(y / size), with the derivative 1 + ½ sin(y / size); of both parts of a complex y."""
    if y.is_complex():
        real = torch.view_as_real(y.resolve_conj())
        return torch.view_as_complex(real - 0.5 * size * torch.cos(real / size))
    return y - 0.5 * size * torch.cos(y / size)


def inner(v: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """⟨v, y⟩ = Re Σ conj(v) y."""
    product = (v.conj() * y).sum()
    return product.real if product.is_complex() else product
