"""Kernels in Triton beside plain references, by Triton's interpreter: right, and wrong in the rows of the mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_gradcheck import Report, check_function, check_module

pytest.importorskip("triton", reason="there is no wheel of triton for this platform")

from triton.runtime.errors import InterpreterError

from tests.zoo import triton_kernels as kernels

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

WRONG_SILU_MUL = {"output 1 % too large": ["output"], "1 % too large": ["a"], "tail not written": ["a", "b"]}

WRONG_ATTENTION = {
    "tail not masked": ["q", "k", "v", "output"],
    "scale missing": ["q", "k"],
    "last block skipped": ["q", "k", "v"],
    "1 % too large": ["v"],
}


def drawn(*shapes: Sequence[int], dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def wrong_rows(report: Report) -> list[str]:
    return [row.name for row in report if row.status == "mismatch"]


def silu_mul_checked(dtype: torch.dtype, mistake: str = "", in_place: bool = False, seed: int = 0) -> Report:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return kernels.SiluMul.apply(a, b, mistake, in_place)  # type: ignore[no-any-return, no-untyped-call]

    return check_function(kernel, drawn((11, 13), (11, 13), dtype=dtype, seed=seed), reference=kernels.silu_mul)


def attention_checked(dtype: torch.dtype, mistake: str = "", causal: bool = False, queries: int = 19) -> Report:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.Attention.apply(q, k, v, causal, mistake)  # type: ignore[no-any-return, no-untyped-call]

    inputs = drawn((1, queries, 5), (1, 21, 5), (1, 21, 5), dtype=dtype)
    return check_function(kernel, inputs, reference=partial(kernels.attention, causal=causal))


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("checked", [silu_mul_checked, attention_checked, partial(attention_checked, causal=True)])
def test_a_right_kernel_passes(dtype: torch.dtype, checked: Callable[..., Report]) -> None:
    report = checked(dtype)
    assert report.passed, str(report)
    assert {row.status for row in report} == {"match"}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mistake", WRONG_SILU_MUL)
def test_a_wrong_gated_unit_is_wrong_where_the_mistake_is(dtype: torch.dtype, mistake: str) -> None:
    assert wrong_rows(silu_mul_checked(dtype, mistake)) == WRONG_SILU_MUL[mistake]


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize(
    ("mistake", "dtype"),
    [(mistake, dtype) for mistake in WRONG_ATTENTION for dtype in DTYPES[1 : 2 if "%" in mistake else 3]],
)
def test_a_wrong_attention_is_wrong_where_the_mistake_is(mistake: str, dtype: torch.dtype) -> None:
    assert wrong_rows(attention_checked(dtype, mistake)) == WRONG_ATTENTION[mistake]


@pytest.mark.slow
def test_sums_in_bfloat16_are_found_where_there_are_many_terms() -> None:
    assert wrong_rows(attention_checked(torch.bfloat16, "sums in bfloat16", queries=203)) == ["v"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_kernel_that_writes_over_its_inputs_through_pointers_is_not_seen_by_the_next_run(dtype: torch.dtype) -> None:
    """No version counter moves: the memory is written to behind torch's back."""
    assert silu_mul_checked(dtype, in_place=True).passed
    assert wrong_rows(silu_mul_checked(dtype, "1 % too large", in_place=True)) == ["a"]


def test_nothing_of_the_callers_is_written_over() -> None:
    inputs = drawn((11, 13), (11, 13))
    before = [each.detach().clone() for each in inputs]
    assert check_function(
        lambda a, b: kernels.SiluMul.apply(a, b, "", True),  # type: ignore[no-untyped-call]
        inputs,
        reference=kernels.silu_mul,
    ).passed
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
    assert all(each.grad is None for each in inputs)


@pytest.mark.parametrize("mistake", ["", "tail not written"])
def test_a_module_with_a_kernel_is_compared_by_the_names_of_its_parameters(mistake: str) -> None:
    fused, plain = kernels.FusedSiluMul(6, 7).bfloat16(), kernels.PlainSiluMul(6, 7)
    fused.mistake = mistake
    batch = drawn((5, 6), (5, 6))
    report = check_module(fused, torch.nn.functional.mse_loss, (batch[0].detach(), batch[1].detach()), reference=plain)
    assert wrong_rows(report) == (["gate.weight", "up.weight"] if mistake else []), str(report)


def operator(name: str, make: Any, mistake: str) -> Callable[..., Tensor]:
    """The kernel as an operator of torch.library, with its backward registered."""

    def forward(a: Tensor, b: Tensor) -> Tensor:
        y = torch.empty_like(a)
        blocks = (kernels.triton.cdiv(a.numel(), kernels.BLOCK),)
        run = torch.library.wrap_triton(kernels._silu_mul) if make is torch.library.triton_op else kernels._silu_mul
        run[blocks](a, b, y, a.numel(), SCALE=1.0, BLOCK=kernels.BLOCK)
        return y

    made: Any = make(f"torch_gradcheck_tests::{name}", forward, mutates_args=())

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.mistake, ctx.in_place = mistake, False
        return kernels.SiluMul.backward(ctx, dy)[:2]

    made.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("mistake", ["", "1 % too large"])
@pytest.mark.parametrize("make", [torch.library.custom_op, torch.library.triton_op])
def test_operators_made_of_a_kernel_are_compared(make: Any, mistake: str) -> None:
    kernel = operator(f"silu_mul_{make.__name__}_{len(mistake)}", make, mistake)
    report = check_function(kernel, drawn((11, 13), (11, 13)), reference=kernels.silu_mul)
    assert wrong_rows(report) == (["a"] if mistake else []), str(report)


def ill_sized(a: Tensor, b: Tensor) -> Tensor:
    kernels._silu_mul[(1,)](a, b, torch.empty_like(a), a.numel(), SCALE=1.0, BLOCK=12)  # no power of two
    return a * b


def interrupt() -> None:
    raise KeyboardInterrupt


@kernels.triton.jit
def _interrupted(a_ptr) -> None:
    kernels.tl.store(a_ptr, 0.0)
    interrupt()


def interrupted(a: Tensor, b: Tensor) -> Tensor:
    _interrupted[(1,)](a)
    return a * b


@pytest.mark.parametrize(
    ("kernel", "error"), [(ill_sized, InterpreterError), (interrupted, KeyboardInterrupt)], ids=["error", "Ctrl-C"]
)
def test_what_the_interpreter_raises_comes_through_and_all_is_as_it_was(kernel: Any, error: type) -> None:
    inputs = drawn((11, 13), (11, 13))
    before = [each.detach().clone() for each in inputs]
    with pytest.raises(error):
        check_function(kernel, inputs, reference=kernels.silu_mul)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
