"""Subsets of the tensors on trial that require a gradient: the same gradients, and none for the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry
from tests.contract.test_layouts import Product, W, X
from torch_gradcheck.contract.needs_input_grad import MOST, subsets


class AllOrNothing(Product):
    """Gives up where one argument needs no gradient."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Product.backward(ctx, grad) if all(ctx.needs_input_grad) else (None, None)


class FirstPlace(Product):
    """Returns the gradients that are needed at the first places."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = [
            each for each, needed in zip(Product.backward(ctx, grad), ctx.needs_input_grad, strict=True) if needed
        ]
        return (*wanted, None)[:2]


class SavesTooLittle(Product):
    """Saves what the gradient of x needs, where x needs one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(*[x, w][: 2 * ctx.needs_input_grad[0]])
        return x * w


class Careful(Product):
    """Computes what is needed."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad * w if ctx.needs_input_grad[0] else None, grad * x if ctx.needs_input_grad[1] else None


class WritesGrad(Product):
    """Accumulates by hand, wanted or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.w = w
        return Product.forward(ctx, x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        ctx.w.grad = grad * x
        return grad * w, None


class Layer(nn.Module):
    """A Function of its input and a weight."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight, self.function = nn.Parameter(W.clone()), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x, self.weight)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (AllOrNothing, "where only x requires a gradient, the gradient of x is None, should be "),
        (FirstPlace, "where only w requires a gradient, the gradient of w is None, should be "),
        (
            SavesTooLittle,
            "where only w requires a gradient, the backward raises ValueError: not enough values to unpack",
        ),
        (WritesGrad, "where only x requires a gradient, the backward leaves a gradient for w, should leave None"),
    ],
)
def test_a_subset_that_is_treated_otherwise_fails(function: Any, said: str) -> None:
    found = entry("needs_input_grad", function.apply, (X, W))
    assert found.status == "failed"
    assert found.message.startswith(said)
    assert f"({function.__name__}.backward at tests/contract/test_" in found.message


def test_parameters_of_a_module_are_frozen_as_well_and_thawed_again() -> None:
    layer = Layer(AllOrNothing)
    found = entry("needs_input_grad", layer, (X,))
    assert found.status == "failed"
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (Product.apply, (X, W)),
        (Careful.apply, (X, W)),
        (Layer(Careful), (X,)),
        (lambda x, w: nn.functional.dropout(x) * w, (X, W)),
        (lambda x, w: x.mul_(w), (X, W)),
        (nn.MultiheadAttention(4, 2), (X, X, X)),
    ],
    ids=["all", "needed ones", "module", "dropout", "in place", "attention"],
)
def test_right_ones_pass(function: Any, inputs: Any) -> None:
    assert entry("needs_input_grad", function, inputs).status == "passed"


class Force(nn.Module):
    """Minus the gradient of an energy by the positions, which have to require one."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


class ThawingForce(Force):
    """Has the positions require a gradient itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.requires_grad_())


class CarelessForce(Force):
    """Another force where a weight is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        force = super().forward(x)
        return force if self.energy[0].weight.requires_grad else force * 1.5


def test_a_forward_that_raises_for_a_subset_refuses_it() -> None:
    found = entry("needs_input_grad", Force(), (X,))
    assert found.status == "passed"
    assert found.message.startswith(
        "not tried where only energy.0.weight requires a gradient, the function raises RuntimeError: One of the differ"
    )
    assert found.message.endswith(", nor for 6 more subsets of the tensors on trial")


def test_a_forward_may_have_its_input_require_a_gradient() -> None:
    found = entry("needs_input_grad", ThawingForce(), (X,))
    assert (found.status, found.message) == ("passed", "")


def test_the_other_subsets_are_tried() -> None:
    found = entry("needs_input_grad", CarelessForce(), (X,))
    assert found.status == "failed"
    assert found.message.startswith("where only x requires a gradient, the gradient of x is ")


def test_where_every_subset_is_refused_there_is_nothing_to_try() -> None:
    def run(x: Tensor, w: Tensor) -> Tensor:
        if not (x.requires_grad and w.requires_grad):
            raise ValueError("both of them")
        return x * w

    found = entry("needs_input_grad", run, (X, W))
    assert found.status == "not_applicable"
    assert "where only x requires a gradient, the function raises ValueError: both of them" in found.message


def test_a_single_tensor_has_no_subsets() -> None:
    found = entry("needs_input_grad", torch.sin, {"input": X})
    assert (found.status, found.message) == ("not_applicable", "input is the only tensor on trial")


@pytest.mark.parametrize("count", [2, 3, 5, 6, 40])
def test_subsets_are_distinct_and_not_many(count: int) -> None:
    found = subsets(count)
    assert len(set(found)) == len(found) <= MOST
    assert count > 5 or len(found) == 2**count - 2
    assert {len(each) for each in found} >= {1, count - 1}
