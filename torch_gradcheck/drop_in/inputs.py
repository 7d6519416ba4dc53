"""The inputs on trial: their real numbers, which are moved, and the tensors that the function is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.overrides import is_tensor_like

from torch_gradcheck.arrays import Floats
from torch_gradcheck.drop_in.failure import OverlappingMemoryError
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.sparse_arguments import densified, is_sparse, places_of, values_of, with_values
from torch_gradcheck.precision.dtypes import in_precision
from torch_gradcheck.torch_internals.tensors import is_efficient_zero


class Input(Protocol):
    """An input on trial."""

    @property
    def given(self) -> Tensor:
        """The tensor object of the caller's."""
        ...

    @property
    def memory(self) -> Tensor:
        """The strided tensor whose real numbers are the coordinates."""
        ...

    def leaf(self) -> Tensor:
        """What the function is given where the backward is on trial: it requires a gradient."""
        ...

    def moved(self) -> Tensor:
        """What the function is given at what `memory` holds now."""
        ...

    def slopes(self, gradient: Tensor | None) -> Floats:
        """The gradient of the leaf along each coordinate; zeros for None."""
        ...


@dataclass(frozen=True)
class StridedInput:
    """An ordinary tensor, lent: the caller's own object, which the function may also have captured."""

    given: Tensor

    @property
    def memory(self) -> Tensor:
        """The lent numbers, unseen by autograd."""
        return self.given.data

    def leaf(self) -> Tensor:
        """See `Input.leaf`."""
        return self.given

    def moved(self) -> Tensor:
        """See `Input.moved`."""
        return self.given

    def slopes(self, gradient: Tensor | None) -> Floats:
        """See `Input.slopes`."""
        return real_numbers(gradient if gradient is not None else torch.zeros_like(self.given))


class SparseInput:
    """A sparse tensor: its specified entries move or, unless it is masked, all entries of the dense one.

    Args:
        given: the caller's.
        masked: whether the gradient at unspecified entries is left out of account.
        dtype: the precision of the check; None leaves the tensor in its own.
    """

    def __init__(self, given: Tensor, masked: bool, dtype: torch.dtype | None) -> None:
        self.given = given
        self._leaf = given.detach().to(in_precision(given.dtype, dtype))
        self._pattern = self._leaf if masked else densified(self._leaf)
        self._memory = values_of(self._pattern).clone()
        self._places = places_of(self._pattern)

    @property
    def memory(self) -> Tensor:
        """See `Input.memory`."""
        return self._memory

    def leaf(self) -> Tensor:
        """See `Input.leaf`."""
        return self._leaf.clone().requires_grad_()

    def moved(self) -> Tensor:
        """See `Input.moved`."""
        return with_values(self._pattern, self.memory.clone()).requires_grad_()

    def slopes(self, gradient: Tensor | None) -> Floats:
        """See `Input.slopes`."""
        dense = torch.zeros_like(self._leaf.to_dense()) if gradient is None else _dense(gradient)
        return real_numbers(dense.reshape(-1)[self._places])


class MkldnnInput:
    """A tensor in oneDNN's layout; its numbers move in an ordinary one."""

    def __init__(self, given: Tensor) -> None:
        self.given = given
        self._memory = given.detach().to_dense()

    @property
    def memory(self) -> Tensor:
        """See `Input.memory`."""
        return self._memory

    def leaf(self) -> Tensor:
        """See `Input.leaf`."""
        return self.memory.clone().to_mkldnn().requires_grad_()

    def moved(self) -> Tensor:
        """See `Input.moved`."""
        return self.leaf()

    def slopes(self, gradient: Tensor | None) -> Floats:
        """See `Input.slopes`."""
        return real_numbers(torch.zeros_like(self.memory) if gradient is None else _dense(gradient))


def real_numbers(tensor: Tensor) -> Floats:
    """The real numbers of a tensor in C order, a complex entry as two, shape (numbers,), in float64."""
    bare = tensor.detach()
    if is_efficient_zero(bare):
        bare = torch.zeros(bare.shape, dtype=bare.dtype)
    dense = _dense(bare).resolve_conj().resolve_neg()
    return np.asarray(real_view(dense).reshape(-1).to("cpu", torch.float64).numpy())


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def as_tuple(value: Any) -> tuple[Any, ...]:
    """A tuple or list as a tuple, anything else as a tuple of it alone."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def on_trial(arguments: Sequence[Any], masked: bool, dtype: torch.dtype | None) -> list[Input]:
    """The distinct inputs that require a gradient.

    Args:
        arguments: of the function.
        masked: see `SparseInput`.
        dtype: the precision of the check; None leaves the tensor in its own.
    """
    given = {id(each): each for each in arguments if requires_gradient(each)}.values()
    return [_input(each, masked, dtype) for each in given]


def _input(given: Tensor, masked: bool, dtype: torch.dtype | None) -> Input:
    if is_sparse(given):
        return SparseInput(given, masked, dtype)
    return StridedInput(given) if given.layout is torch.strided else MkldnnInput(given)


def requires_gradient(value: object) -> bool:
    """Whether an argument is on trial."""
    return is_tensor_like(value) and bool(value.requires_grad)  # type: ignore[attr-defined]


def check_inputs(arguments: Sequence[Any]) -> None:
    """Raises where nothing is on trial, or the entries of an input cannot be moved one at a time."""
    if not any(requires_gradient(each) for each in arguments):
        raise InvalidRequestError(
            "gradcheck expects at least one input tensor to require gradient, but none of them have "
            "requires_grad=True: call requires_grad_() on those whose gradient is to be checked."
        )
    for position, each in enumerate(arguments):
        if requires_gradient(each) and _overlaps(each):
            raise OverlappingMemoryError(
                f"The {position}th input has a dimension with stride 0: several of its entries lie in one place of "
                "memory, and cannot be moved one at a time. Call .contiguous() on it first."
            )


def _overlaps(tensor: Tensor) -> bool:
    content = values_of(tensor) if is_sparse(tensor) else tensor
    if content.layout is not torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(content.stride(), content.shape, strict=True))
