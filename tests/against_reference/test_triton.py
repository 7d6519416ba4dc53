"""Kernels in Triton beside plain references, by Triton's interpreter: right, and wrong in the rows of the mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_function, check_module
from torch_gradcheck.against_reference.pair import Pair

pytest.importorskip("triton", reason="there is no wheel of triton for this platform")

from triton.runtime.errors import InterpreterError

from tests.zoo import triton_kernels as kernels

Kernel = Callable[..., Tensor]

FLOAT16, BFLOAT16 = torch.float16, torch.bfloat16

WRONG_SILU_MUL = {"output 1 % too large": ["output"], "1 % too large": ["a"], "tail not written": ["a", "b"]}

WRONG_ATTENTION = {
    "tail not masked": ["q", "k", "v", "output"],
    "scale missing": ["q", "k"],
    "last block skipped": ["q", "k", "v"],
    "1 % too large": ["v"],
}


@pytest.fixture(autouse=True)
def twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates run twice: these give the same in all runs, and the interpreter takes a tenth of a second for each."""
    runs = Pair.candidate_runs
    monkeypatch.setattr(Pair, "candidate_runs", lambda self, count=2: runs(self, count))


def drawn(*shapes: Sequence[int], dtype: torch.dtype = BFLOAT16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


class Calling(nn.Module):
    """A module that calls a function: of those no contract is tried, which runs a kernel forty times."""

    def __init__(self, function: Kernel) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def compared(kernel: Kernel, inputs: Sequence[Tensor], reference: Kernel) -> Report:
    v = drawn(inputs[0].shape, dtype=torch.float32, seed=1)[0].detach()

    def loss(y: Tensor, v: Tensor) -> Tensor:
        return (y.float() * v).sum()

    return check_module(Calling(kernel), loss, (tuple(inputs), v), reference=Calling(reference))


def wrong_rows(report: Report, names: str = "") -> list[str]:
    """The names of the wrong rows; `names` those of the inputs, one letter each."""
    places = {f"batch[0][{k}]": name for k, name in enumerate(names)}
    wrong = {places.get(row.name, row.name) for row in report if row.status == "mismatch"}
    return [name for name in [*places.values(), *[row.name for row in report]] if name in wrong]


def silu_mul_compared(dtype: torch.dtype, mistake: str = "", in_place: bool = False) -> Report:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return kernels.SiluMul.apply(a, b, mistake, in_place)  # type: ignore[no-any-return, no-untyped-call]

    return compared(kernel, drawn((60, 33), (60, 33), dtype=dtype), kernels.silu_mul)


def attention_compared(dtype: torch.dtype, mistake: str = "", causal: bool = False, queries: int = 19) -> Report:
    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.Attention.apply(q, k, v, causal, mistake)  # type: ignore[no-any-return, no-untyped-call]

    inputs = drawn((1, queries, 5), (1, 21, 5), (1, 21, 5), dtype=dtype)
    return compared(kernel, inputs, partial(kernels.attention, causal=causal))


RIGHT: dict[str, Callable[[], Report]] = {
    "silu_mul, float32": partial(silu_mul_compared, torch.float32),
    "silu_mul, bfloat16": partial(silu_mul_compared, BFLOAT16),
    "attention, bfloat16": partial(attention_compared, BFLOAT16),
    "causal attention, float16": partial(attention_compared, FLOAT16, causal=True),
}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT.keys())
def test_a_right_kernel_passes(right: Callable[[], Report]) -> None:
    report = right()
    assert report.passed, str(report)
    assert {row.status for row in report} == {"match"}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("mistake", WRONG_SILU_MUL)
def test_a_wrong_gated_unit_is_wrong_where_the_mistake_is(mistake: str) -> None:
    assert wrong_rows(silu_mul_compared(BFLOAT16, mistake), "ab") == WRONG_SILU_MUL[mistake]


@pytest.mark.slow
@pytest.mark.parametrize("mistake", WRONG_ATTENTION)
def test_a_wrong_attention_is_wrong_where_the_mistake_is(mistake: str) -> None:
    assert wrong_rows(attention_compared(FLOAT16, mistake), "qkv") == WRONG_ATTENTION[mistake]


@pytest.mark.slow
def test_sums_in_bfloat16_are_found_where_there_are_many_terms() -> None:
    assert wrong_rows(attention_compared(BFLOAT16, "sums in bfloat16", queries=99), "qkv") == ["v"]


def test_a_kernel_that_writes_over_its_inputs_through_pointers_is_seen_by_nobody() -> None:
    """No version counter moves: the memory is written to behind torch's back, in every run and in the caller's none."""
    assert wrong_rows(silu_mul_compared(BFLOAT16, "1 % too large", in_place=True), "ab") == ["a"]
    inputs = drawn((11, 13), (11, 13))
    before = [each.detach().clone() for each in inputs]
    overwriting = Calling(lambda a, b: kernels.SiluMul.apply(a, b, "", True))  # type: ignore[no-untyped-call]
    assert check_module(overwriting, torch.sum, (tuple(inputs),), reference=Calling(kernels.silu_mul)).passed
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))
    assert all(each.grad is None for each in inputs)


@pytest.mark.slow
def test_the_contract_of_a_kernel_is_kept() -> None:
    """The interpreter keeps arguments in circles, which are none of the kernel's."""
    report = check_function(kernels.SiluMul.apply, drawn((3, 7), (3, 7)), reference=kernels.silu_mul)
    assert report.passed, str(report)
    assert {each.name: each.status for each in report.contract}["released"] == "passed"


class KeepingItsOutput(kernels.SiluMul):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.y = kernels.SiluMul.forward(ctx, a, b)
        return ctx.y  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_circle_of_the_kernels_own_is_told_from_those_of_the_interpreter() -> None:
    report = check_function(KeepingItsOutput.apply, drawn((3, 7), (3, 7)), reference=kernels.silu_mul)
    assert {each.name: each.status for each in report.contract}["released"] == "failed"


@pytest.mark.slow_but_for(1)
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
        blocks = (kernels.triton.cdiv(a.numel(), kernels.ENTRIES),)
        run = torch.library.wrap_triton(kernels._silu_mul) if make is torch.library.triton_op else kernels._silu_mul
        run[blocks](a, b, y, a.numel(), SCALE=1.0, BLOCK=kernels.ENTRIES)
        return y

    made: Any = make(f"torch_gradcheck_tests::{name}", forward, mutates_args=())

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        ctx.mistake, ctx.in_place = mistake, False
        return kernels.SiluMul.backward(ctx, dy)[:2]

    made.register_autograd(backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))
    return made  # type: ignore[no-any-return]


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("make", "mistake"),
    [(torch.library.triton_op, "1 % too large"), (torch.library.custom_op, "")],
    ids=["triton_op, wrong", "custom_op, right"],
)
def test_operators_made_of_a_kernel_are_compared(make: Any, mistake: str) -> None:
    kernel = operator(f"silu_mul_{make.__name__}", make, mistake)
    report = compared(kernel, drawn((60, 33), (60, 33)), kernels.silu_mul)
    assert wrong_rows(report, "ab") == (["a"] if mistake else []), str(report)


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
