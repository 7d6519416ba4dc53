"""The contract of a candidate, tried in its own dtype beside what rounding does there."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import Report, check_function, check_module
from torch_gradcheck.contract.entries import ENTRIES

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(x: Tensor, w: Tensor) -> Tensor:
    return x * w


class Product(Function):
    """x · w in float32, rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return (x.float() * w.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return (g.float() * w.float()).to(x.dtype), (g.float() * x.float()).to(w.dtype)


def raw(x: Tensor) -> Tensor:
    """What a kernel reads that takes x for contiguous."""
    memory = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())  # type: ignore[call-overload]
    return torch.cat([memory, memory.new_zeros(x.numel())])[: x.numel()].view(x.shape)


class RawInput(Product):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        return Product.forward(ctx, raw(x), w)


class RawGradient(Product):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return Product.backward(ctx, raw(g))


class Contiguous(Product):
    """Refuses any other layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        if not (x.is_contiguous() and w.is_contiguous()):
            raise ValueError("x and w must be contiguous")
        return Product.forward(ctx, x, w)


class WritesGradient(Product):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        found = Product.backward(ctx, g)
        g.data.zero_()
        return found


class WritesInput(Product):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = Product.forward(ctx, x.clone(), w)
        x.data.zero_()
        return y


class TakesTurns(Product):
    """Gives x its gradient only where w has one as well."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        dx, dw = Product.backward(ctx, g)
        return (dx if ctx.needs_input_grad[1] else 0 * dx), dw


class Narrow(Product):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return tuple([each.to(torch.bfloat16) for each in Product.backward(ctx, g)])


class Wide(Product):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return tuple([each.float() for each in Product.backward(ctx, g)])


class Keeps(Product):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = Product.forward(ctx, x, w)
        ctx.output = y
        return y


class OnClass(Product):
    """Keeps its inputs where the next call finds room for its own."""

    kept: tuple[Tensor, Tensor]

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        OnClass.kept = (x.detach(), w.detach())
        return Product.forward(ctx, x, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = OnClass.kept
        return g * w, g * x


class Both(Function):
    """(x · w, x + w); forgets that an output may be of no use to the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Any:
        ctx.save_for_backward(x, w)
        ctx.set_materialize_grads(False)
        return x * w, x + w

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None) -> Any:
        x, w = ctx.saved_tensors
        if g is None:
            return None, None
        h = torch.zeros_like(g) if h is None else h
        return g * w + h, g * x + h


class ByVmap(Function):
    """x · w, with a rule of vmap that takes the first w for all."""

    @staticmethod
    def forward(x: Tensor, w: Tensor) -> Tensor:
        return x * w

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return g * w, g * x

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, w: Tensor) -> Any:
        x, w = (t if d is None else t.movedim(d, 0) for t, d in zip((x, w), in_dims, strict=True))
        return ByVmap.apply(x, w[:1].expand_as(w)), 0


Case = tuple[Callable[..., Any], Callable[..., Any], str, str]

BROKEN: dict[str, Case] = {
    "an input taken for contiguous": (RawInput.apply, product, "layouts", "with x transposed (shape (5, 7)"),
    "a gradient taken for contiguous": (RawGradient.apply, product, "layouts", "as .sum().backward() sends it"),
    "writes to the gradient": (
        WritesGradient.apply,
        product,
        "grad_output_kept",
        "the backward writes to the gradient",
    ),
    "writes to the input": (WritesInput.apply, product, "inputs_kept", "the forward writes to x"),
    "needs both gradients": (TakesTurns.apply, product, "needs_input_grad", "where only x requires a gradient"),
    "an output in ctx": (Keeps.apply, product, "released", "ctx.output of Keeps holds the graph"),
    "inputs on the class": (OnClass.apply, product, "repeatable", "after another call"),
}
"""What is wrong → candidate, reference, the entry, and words of its message; the gradients are right."""

ALSO = {("inputs on the class", "released")}
"""What else is broken by the same mistake."""


def failed(report: Report) -> dict[str, str]:
    return {each.name: each.message for each in report.contract if each.status == "failed"}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("name", BROKEN)
def test_what_rows_do_not_show_is_a_broken_entry(name: str) -> None:
    candidate, reference, entry, words = BROKEN[name]
    report = check_function(candidate, (normal(5, 7), normal(5, 7, seed=1)), reference=reference)
    assert not report.mismatches
    assert not report.passed
    found = failed(report)
    assert [each for each in found if (name, each) not in ALSO] == [entry]
    assert words in found[entry]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_kernel_keeps_the_contract_in_its_own_dtype(dtype: str) -> None:
    inputs = (normal(5, 7, dtype=DTYPES[dtype]), normal(5, 7, dtype=DTYPES[dtype], seed=1))
    seen = set()

    def candidate(x: Tensor, w: Tensor) -> Tensor:
        seen.add((x.dtype, w.dtype))
        return Product.apply(x, w)

    report = check_function(candidate, inputs, reference=product)
    assert report.passed
    assert [each.name for each in report.contract] == list(ENTRIES)
    assert seen == {(DTYPES[dtype], DTYPES[dtype])}
    status = {each.name: each.status for each in report.contract}
    assert [name for name in ENTRIES if status[name] == "not_applicable"] == [
        "undefined_grads",
        "second_order",
        "forward_ad",
        "vmap",
    ]


def test_entries_that_need_float64_say_so() -> None:
    report = check_function(Product.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    messages = {each.name: each.message for each in report.contract}
    for name in ("second_order", "forward_ad"):
        assert messages[name] == "it needs differences, and these float64: it is tried without reference="


RIGHT: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "matrix product": (lambda a, b: a @ b, ((5, 33), (33, 7))),
    "softmax, whose gradient cancels under equal ones": (lambda x: x.softmax(-1), ((5, 9),)),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (17,), w, b), ((6, 17), (17,), (17,))),
    "largest of a row, with ties": (lambda x: (x * 2).round().max(-1).values, ((6, 17),)),
    "sorted": (lambda x: x.sort(-1).values, ((5, 9),)),
    "attention": (F.scaled_dot_product_attention, ((1, 2, 9, 8),) * 3),
    "sum of a column": (lambda x: x.sum(0), ((129, 3),)),
}


@pytest.mark.slow_but_for(7)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_rounding_in_another_order_breaks_nothing(name: str, dtype: str) -> None:
    function, shapes = RIGHT[name]
    inputs = tuple(normal(*shape, dtype=DTYPES[dtype], seed=k) for k, shape in enumerate(shapes))
    report = check_function(function, inputs, reference=function)
    assert failed(report) == {}
    assert not [each for each in report.contract if "could not be tried" in each.message]


def test_a_layout_that_is_refused_is_no_mistake() -> None:
    report = check_function(Contiguous.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    assert report.passed
    layouts = next(each for each in report.contract if each.name == "layouts")
    assert layouts.status == "not_applicable"
    assert "refuses x transposed" in layouts.message


def test_a_gradient_in_a_coarser_dtype_than_its_input_is_wrong() -> None:
    inputs = (normal(5, 7), normal(5, 7, dtype=torch.float32, seed=1))
    report = check_function(Narrow.apply, inputs, reference=lambda x, w: (x * w).to(x.dtype))
    assert "returns for w a gradient of dtype bfloat16, should be dtype float32" in failed(report)["shapes_and_dtypes"]


def test_a_gradient_in_a_finer_dtype_than_its_input_is_right() -> None:
    report = check_function(Wide.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    assert report.passed
    entry = next(each for each in report.contract if each.name == "shapes_and_dtypes")
    assert "a gradient of dtype float32, should be dtype bfloat16: autograd rounds it once" in entry.message


def test_a_race_that_is_lost_now_and_then_is_told_as_one() -> None:
    """Every fourth backward is wrong, from the fifteenth on: none of those that rows and `repeatable` are made of."""
    count = itertools.count()

    class Race(Product):
        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            return Product.backward(ctx, 2 * g if (k := next(count)) >= 14 and k % 4 == 2 else g)

    report = check_function(Race.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    assert list(failed(report)) == ["repeatable"]
    assert "of 5 more equal calls, one gives another result than the first" in failed(report)["repeatable"]


def test_a_backward_that_forgets_an_output_without_gradient_is_told_of() -> None:
    report = check_function(Both.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=lambda x, w: (x * w, x + w))
    assert "with no gradient (None) for output[0]" in failed(report)["undefined_grads"]


def test_a_rule_of_vmap_is_tried() -> None:
    report = check_function(ByVmap.apply, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    assert list(failed(report)) == ["vmap"]


def test_a_module_under_a_loss_has_no_contract() -> None:
    report = check_module(nn.Linear(3, 2), lambda y: y.square().sum(), normal(4, 3).float(), reference=nn.Linear(3, 2))
    assert report.contract == []


@pytest.mark.slow
def test_a_run_of_the_candidate_is_taken_a_few_times_an_entry() -> None:
    calls = []

    def candidate(x: Tensor, w: Tensor) -> Tensor:
        calls.append(x)
        return Product.apply(x, w)

    check_function(candidate, (normal(5, 7), normal(5, 7, seed=1)), reference=product)
    assert len(calls) <= 5 * len(ENTRIES)


def test_of_many_arguments_not_every_subset_is_tried() -> None:
    subsets = set()

    def candidate(*xs: Tensor) -> Tensor:
        subsets.add(tuple([x.requires_grad for x in xs]))
        return torch.stack(xs).sum(0)

    inputs = tuple(normal(5, seed=k) for k in range(6))
    report = check_function(candidate, inputs, reference=lambda *xs: torch.stack(xs).sum(0))
    assert report.passed
    assert {tuple(k == single for k in range(6)) for single in range(6)} <= subsets
    assert len([each for each in subsets if any(each) and not all(each)]) <= 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_rounding_breaks_no_contract_where_the_reference_has_no_gradient(dtype: torch.dtype) -> None:
    inputs = (normal(37, 20, dtype=dtype), normal(20, dtype=dtype, seed=1))
    report = check_function(product, inputs, reference=lambda x, w: (x * w).detach())

    assert not report.passed
    assert not failed(report)


def test_a_layout_that_is_not_read_breaks_the_contract_where_the_reference_has_no_gradient() -> None:
    inputs = (normal(9, 20), normal(9, 20, seed=1))
    report = check_function(RawGradient.apply, inputs, reference=lambda x, w: (x * w).detach())

    assert [*failed(report)] == ["layouts"]


def test_a_gradient_that_sums_up_to_nothing_over_an_expanded_input_breaks_no_layout() -> None:
    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    for seed in range(3):
        x = normal(9, 17, dtype=torch.float32, seed=seed)
        report = check_function(unit, (x,), reference=lambda x: unit(x.double()).float(), seed=seed)
        assert not failed(report)
