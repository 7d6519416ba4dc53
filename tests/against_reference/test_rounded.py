"""What rounding does to a reference, where kernels round otherwise: terms that cancel, missing kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tests.against_reference.verdicts import verdicts_of
from tests.zoo.candidates.kernel import fused
from torch_gradcheck import check_function

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda each: str(each)[6:]
)


def wrong(function: Any, inputs: tuple[Tensor, ...], reference: Any, seed: int = 0) -> set[str]:
    return {each.compared.entry.name for each in verdicts_of(function, inputs, reference, seed) if each.is_wrong}


def drawn(dtype: torch.dtype, *shapes: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(seed)
    return tuple([(scale * torch.randn(shape, generator=draw)).to(dtype) for shape in shapes])


def softmax_kernel(factor: float) -> Any:
    """A softmax that saves its output, as torch's does; its gradient times `factor`."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.softmax(x.float(), -1).to(x.dtype)
        ctx.save_for_backward(y)
        return y

    def backward(ctx: Any, g: Tensor) -> Tensor:
        y = ctx.saved_tensors[0].float()
        return (factor * y * (g.float() - (g.float() * y).sum(-1, keepdim=True))).to(g.dtype)

    return fused(forward, backward)


def by_hand(x: Tensor) -> Tensor:
    """Lets the gradient through the maximum, where its roundings cancel."""
    exponentials = torch.exp(x - x.amax(-1, keepdim=True))
    return exponentials / exponentials.sum(-1, keepdim=True)


def with_positions(x: Tensor) -> Tensor:
    exponentials = torch.exp(x - x.max(-1, keepdim=True)[0])
    return exponentials / exponentials.sum(-1, keepdim=True)


@DTYPES
@pytest.mark.parametrize("reference", [by_hand, with_positions])
@pytest.mark.parametrize(("shape", "scale"), [((7,), 8.0), ((40, 33), 8.0), ((7, 7), 30.0)], ids=str)
def test_a_saturated_softmax_passes_beside_a_reference_that_differentiates_the_maximum(
    dtype: torch.dtype, reference: Any, shape: tuple[int, ...], scale: float
) -> None:
    assert not wrong(softmax_kernel(1.0), drawn(dtype, shape, scale=scale), reference)


def test_a_saturated_softmax_is_still_found_wrong() -> None:
    assert wrong(softmax_kernel(1.02), drawn(torch.float32, (40, 33), scale=8.0), by_hand) == {"x"}


def test_the_gradient_of_a_maximum_that_counts_is_due() -> None:
    kernel = fused(lambda _, x: x.amax(-1) * 2, lambda _, g: g.new_zeros(9, 20))
    assert wrong(kernel, drawn(torch.float32, (9, 20)), lambda x: x.amax(-1) * 2) == {"x"}


def scores(q: Tensor, k: Tensor) -> Tensor:
    products = q @ k.mT / math.sqrt(q.shape[-1])
    return products.masked_fill(torch.ones(products.shape[-2:], dtype=torch.bool).triu(1), -math.inf)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores(q, k), -1) @ v


def attention_kernel() -> Any:
    """With Σ g · output in place of Σ p · dp: where one key is seen, one cancels exactly, and the other does not."""

    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return attention(*[each.float() for each in tensors]).to(tensors[0].dtype)

    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        q, k, v = [each.float() for each in ctx.saved_tensors]
        p, g32 = torch.softmax(scores(q, k), -1), g.float()
        output = (p @ v).to(g.dtype).float()
        ds = p * (g32 @ v.mT - (g32 * output).sum(-1, keepdim=True)) / math.sqrt(q.shape[-1])
        return (ds @ k).to(g.dtype), (ds.mT @ q).to(g.dtype), (p.mT @ g32).to(g.dtype)

    return fused(forward, backward)


@DTYPES
@pytest.mark.parametrize(("shape", "seed"), [((1, 2, 64), 0), ((5, 1, 16), 2), ((1, 1, 64), 2)], ids=str)
def test_attention_to_one_key_passes_though_its_gradient_cancels_otherwise(
    dtype: torch.dtype, shape: tuple[int, ...], seed: int
) -> None:
    assert not wrong(attention_kernel(), drawn(dtype, shape, shape, shape, seed=seed), attention, seed)


class FinelyOnly(torch.autograd.Function):
    """A product that has a kernel in float32 and float64 only."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        if a.dtype.itemsize < 4:
            message = f'"product" not implemented for {a.dtype}\nsee the documentation'
            raise NotImplementedError(message)
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return g @ b.mT, a.mT @ g


def product_kernel(factor: float) -> Any:
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.tanh(a.float() @ b.float()).to(a.dtype)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        a, b = [each.float() for each in ctx.saved_tensors]
        g32 = g.float() * (1 - torch.tanh(a @ b).square())
        return (g32 @ b.mT).to(g.dtype), (factor * a.mT @ g32).to(g.dtype)

    return fused(forward, backward)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda each: str(each)[6:])
@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_rounding_is_simulated_where_the_reference_has_no_kernel_in_that_dtype(
    dtype: torch.dtype, factor: float
) -> None:
    inputs = drawn(dtype, (33, 17), (17, 21), scale=0.4)
    report = check_function(product_kernel(factor), inputs, reference=lambda a, b: torch.tanh(FinelyOnly.apply(a, b)))
    assert {row.name for row in report.mismatches} == ({"b"} if factor > 1 else set()), report
    name = str(dtype)[6:]
    assert [note for note in report.notes if note.startswith(f"the reference does not run in {name} (NotImpl")] == [
        f'the reference does not run in {name} (NotImplementedError: "product" not implemented for {dtype}): what '
        f"rounding does is measured in float64, with every result rounded to {name}"
    ]
    assert all(0.3 < row.rounding_ratio < 2 for row in report if row.name != "b")


def test_what_a_reference_raises_in_float64_comes_through() -> None:
    def raises(x: Tensor) -> Tensor:
        raise RuntimeError("of the user's")

    with pytest.raises(RuntimeError, match="of the user's"):
        check_function(lambda x: x * 2, drawn(torch.bfloat16, (3, 4)), reference=raises)
