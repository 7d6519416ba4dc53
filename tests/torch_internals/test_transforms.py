"""Tensors that transforms of torch.func work with: known as such, and the numbers inside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torch_gradcheck.torch_internals.dispatch import transforms_in_force
from torch_gradcheck.torch_internals.transforms import (
    batched_by_kernels,
    innermost,
    is_wrapped,
    numbers_in,
    outside_transforms,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
"""torch itself scripts functions where forward mode is used first."""

X = torch.arange(24.0).reshape(2, 3, 4)

TRANSFORMS: dict[str, tuple[Callable[[Callable[[Tensor], Tensor]], Any], tuple[int, ...]]] = {
    "vmap": (lambda f: torch.vmap(f)(X), (2, 3, 4)),
    "vmap in another dimension": (lambda f: torch.vmap(f, in_dims=2)(X), (4, 2, 3)),
    "vmap twice": (lambda f: torch.vmap(torch.vmap(f, in_dims=1), in_dims=1)(X), (3, 4, 2)),
    "grad": (lambda f: torch.func.grad(f)(X), (2, 3, 4)),
    "vmap of grad": (lambda f: torch.vmap(torch.func.grad(f), in_dims=1)(X), (3, 2, 4)),
    "jvp": (lambda f: torch.func.jvp(f, (X,), (X,)), (2, 3, 4)),
}


@pytest.mark.parametrize(("transform", "shape"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_numbers_inside_can_be_read_and_kept(transform: Callable[..., Any], shape: tuple[int, ...]) -> None:
    kept: list[Tensor] = []
    wrapped: list[Tensor] = []

    def function(x: Tensor) -> Tensor:
        before = transforms_in_force()
        assert is_wrapped(x)
        assert not is_wrapped(innermost(x))
        with outside_transforms():
            assert transforms_in_force() == 0
            kept.append(numbers_in(x).detach().clone())
        assert transforms_in_force() == before > 0
        wrapped.append(x)
        return (x * x).sum()

    transform(function)
    assert tuple(kept[0].shape) == shape
    assert sorted(kept[0].flatten().tolist()) == X.flatten().tolist()
    assert is_wrapped(wrapped[0])  # it is dead now, and still known


def test_ordinary_tensors_are_what_they_are() -> None:
    assert not is_wrapped(X)
    assert innermost(X) is X
    assert numbers_in(X) is X
    with outside_transforms():
        assert transforms_in_force() == 0


def test_forward_mode_runs_inside_of_the_vmap_of_kernels() -> None:
    """`gradcheck(check_batched_forward_grad=True)` asks for it; under `torch.func.vmap` `make_dual` raises."""

    def derivative(tangent: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(forward_ad.make_dual(torch.ones(2), tangent) ** 3)[1]

    tangents = torch.tensor([[1.0, 0.0], [2.0, 1.0]])
    assert torch.equal(batched_by_kernels(derivative)(tangents), 3 * tangents)
