"""What a function returns: its tensors by name, and random v to take the gradients of each under."""

from __future__ import annotations

import math
from typing import Any

import torch

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.precision.dtypes import in_precision, is_inexact
from torch_gradcheck.torch_internals.autograd import node_of


def outputs_of(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors in what a function returned, with names: `output`, or `output[1]`, `output['loss']` in a nest.

    Sparse ones are made dense.

    Raises:
        InvalidRequestError: one of them is nested, or on the meta device.
    """
    return [(f"output{path}", _dense(f"output{path}", tensor)) for path, tensor in tensors_in(result)]


def _dense(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_nested or tensor.is_meta:
        what = "a nested tensor" if tensor.is_nested else "on the meta device"
        raise InvalidRequestError(f"{name} is {what}: give a function that returns ordinary tensors made of it.")
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


class Cotangents:
    """v of every output: signed, of sizes between ½ and 1½, divided by the size n · rms(y) of an output of n entries.

    Undivided, an output of large numbers would hide what is wrong with the gradient of one of small numbers.

    Args:
        seed: same seed, same v, on every device.
        dtype: the precision of v; None: that of each output.
    """

    def __init__(self, seed: int, dtype: torch.dtype | None = None) -> None:
        self._seed, self._dtype = seed, dtype
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def of(self, position: int, output: torch.Tensor) -> torch.Tensor:
        """v of the output at this position, in its shape; drawn once, by the size of the output at θ, and kept."""
        key = (position, output.shape, output.dtype, output.device)
        if key not in self._kept:
            v = drawn((self._seed + position) % 2**63, output) / size_of(output.detach())
            self._kept[key] = v.to(device=output.device, dtype=in_precision(output.dtype, self._dtype))
        return self._kept[key]


def drawn(seed: int, output: torch.Tensor) -> torch.Tensor:
    """v for one output in double precision; the modulus of a complex entry is between ½ and 1½, too."""
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = (2, *output.shape) if output.is_complex() else (1, *output.shape)
    draws = torch.rand((2, *parts), generator=generator, dtype=torch.float64, device="cpu")
    signed = (0.5 + draws[0]) * torch.where(draws[1] < 0.5, -1.0, 1.0)
    return torch.complex(*(signed / 2**0.5)) if output.is_complex() else signed[0]


def inner(v: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """⟨v, y⟩ = Re Σ conj(v) y."""
    product = (v.conj() * y).sum()
    return product.real if product.is_complex() else product


def size_of(y: torch.Tensor) -> float:
    """n · rms(y) = √n ‖y‖₂ of n entries; n where all are 0 or one is not finite, and of integers."""
    n = max(y.numel(), 1)
    length = float(torch.linalg.vector_norm(y.to(in_precision(y.dtype, torch.float64)))) if is_inexact(y) else 0.0
    return math.sqrt(n) * length if 0 < length < math.inf else float(n)


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    """The root of the mean of |x|², 0-dim; 1 where all entries are 0, or there are none."""
    size = tensor.abs().square().mean().sqrt() if tensor.numel() else tensor.real.new_zeros(())
    return torch.where(size > 0, size, torch.ones_like(size))


def bent(y: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """y − ½ size cos(y / size), with the derivative 1 + ½ sin(y / size); of both parts of a complex y.

    Its nodes are told from those of the function by `is_of_bend`.
    """
    real = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
    result = real - 0.5 * size * torch.cos(real / size)
    result = torch.view_as_complex(result) if y.is_complex() else result
    if result.requires_grad:
        _mark(result, y)
    return result


def is_of_bend(node: Any) -> bool:
    """Whether a node of a graph was made by `bent`."""
    return BEND in node.metadata


def _mark(result: torch.Tensor, y: torch.Tensor) -> None:
    """Marks the nodes between y and what was made of it."""
    end, waiting = node_of(y), [node_of(result)]
    while waiting:
        node = waiting.pop()
        if node is not None and node is not end and not is_of_bend(node):
            node.metadata[BEND] = True
            waiting += [following for following, _ in node.next_functions]


BEND = "torch_gradcheck.bend"
"""The key under which the metadata of a node says that `bent` has made it."""
