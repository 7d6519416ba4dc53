"""The mistake in a kernel is named through its rounding: by which factor, in which block, along what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_gradcheck import Report, check_function
from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.judge import judged
from torch_gradcheck.against_reference.kind.diagnose import diagnosed
from torch_gradcheck.against_reference.kind.rescaled import SCALE, Rescaled
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import Role

Gradients = tuple[Tensor, ...]


def kernel(forward: Callable[..., Tensor], backward: Callable[..., Tensor | Gradients]) -> Callable[..., Any]:
    """A function that computes in float32, forward and backward, and rounds what it returns."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return forward(a.float(), b.float()).to(a.dtype)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            inputs = ctx.saved_tensors
            found = backward(grad.float(), *[each.float() for each in inputs])
            return tuple(each.to(like.dtype) for each, like in zip(found, inputs, strict=True))

    return Kernel.apply  # type: ignore[no-any-return]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


A, B = numbers(19, 44), numbers(19, 44, seed=1)
Q = numbers(16, 16), numbers(16, 16, seed=1)
LEFT, RIGHT = numbers(24, 128), numbers(128, 20, seed=1)
TAIL, BLOCK = torch.arange(44) >= 32, torch.arange(44) // 16 == 1


def gated(a: Tensor, b: Tensor) -> Tensor:
    return a.tanh() * b


def of_gated(grad: Tensor, a: Tensor, b: Tensor) -> Gradients:
    return grad * b * (1 - a.tanh() ** 2), grad * a.tanh()


def of_product(grad: Tensor, a: Tensor, b: Tensor) -> Gradients:
    return grad @ b.T, a.T @ grad


def added_up_in_bfloat16(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros(len(a), b.shape[1], dtype=torch.bfloat16)
    for k in range(a.shape[1]):
        total = (total.float() + a[:, k : k + 1] * b[k : k + 1]).bfloat16()
    return total.float()


def spoiled(by: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Gradients]:
    """The backward of `gated` with the gradient of a spoiled by `by(gradient, a, b)`."""

    def backward(grad: Tensor, a: Tensor, b: Tensor) -> Gradients:
        for_a, for_b = of_gated(grad, a, b)
        return by(for_a, a, b), for_b

    return backward


def with_entry(gradient: Tensor, value: float) -> Tensor:
    gradient = gradient.clone()
    gradient[3, 17] = value
    return gradient


SPOILED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str, str]] = {
    "one percent": (lambda da, a, b: 1.01 * da, "scaled", "dθ = 1.01"),
    "twice": (lambda da, a, b: 2 * da, "scaled", "a factor 2 too many"),
    "exp2 for exp": (lambda da, a, b: 0.693147 * da, "scaled", "ln(2), as of exp2 in place of exp"),
    "mean of rows": (lambda da, a, b: da / 19, "scaled", "1 / the number of entries along axis 0"),
    "flipped": (lambda da, a, b: -da, "sign_flipped", "a sign is flipped"),
    "nothing": (lambda da, a, b: 0 * da, "missing", "zero everywhere"),
    "tail is 0": (
        lambda da, a, b: da.masked_fill(TAIL, 0),
        "partial",
        "columns 32-43 of 44 (the tail after the last full block of 32), where it is 0",
    ),
    "tail is NaN": (
        lambda da, a, b: da.masked_fill(TAIL, torch.nan),
        "partial",
        "columns 32-43 of 44 (the tail after the last full block of 32), where 228 are not finite",
    ),
    "tail is 5 % off": (
        lambda da, a, b: da * (1 + 0.05 * TAIL),
        "partial",
        "columns 32-43 of 44 (the tail after the last full block of 32), where it is 1.05 × the right one",
    ),
    "block is halved": (
        lambda da, a, b: da * (1 - 0.5 * BLOCK.float()),
        "partial",
        "columns 16-31 of 44 (a block of 16), where it is 0.5 × the right one",
    ),
    "one tile only": (
        lambda da, a, b: da * (torch.arange(44) < 8),
        "partial",
        "right in columns 0-7 of 44 (a block of 8) only; elsewhere it is 0",
    ),
    "one entry": (lambda da, a, b: with_entry(da, 1.0), "partial", "except in entry [3, 17]"),
    "a term of its own": (lambda da, a, b: da + 0.02 * a, "weight_decay", "off by 0.02"),
    "a term of another": (lambda da, a, b: da - 0.02 * b, "missing_term", "· b: a term too few or too many"),
    "a constant": (lambda da, a, b: da + 0.03, "missing_term", "· 1: a term"),
    "rows of other factors": (
        lambda da, a, b: da * torch.linspace(0.8, 1.3, 19)[:, None],
        "slicewise",
        "times another factor in each slice along axis 1, from 0.8",
    ),
    "rows reversed": (lambda da, a, b: da.flip(0), "permuted", "with rows reversed"),
    "another function's": (lambda da, a, b: b * a.sigmoid(), "unknown", "no simple relation"),
}


def compared(name: str, candidate: Tensor, right: Tensor, role: Role = Role.ARGUMENT) -> Compared:
    """A tensor as a candidate in bfloat16 gives it, beside the right one and seven runs that are off by rounding."""
    exact = right.double().numpy().ravel()
    generator = np.random.default_rng(len(name))
    rounded = [exact * (1 + 2.0**-8 * generator.uniform(-1, 1, len(exact))) for _ in range(7)]
    entry = ThetaEntry(name, (), A, True, False, np.empty(0, dtype=np.int64), torch.bfloat16, role)
    given = candidate.bfloat16().double().numpy().ravel()
    beside = {"a": A.double().numpy().ravel(), "b": B.double().numpy().ravel()}
    return Compared(entry, [given] * 3, exact, rounded, True, 2.0**-7, beside)


@pytest.mark.parametrize("case", SPOILED)
def test_the_mistake_in_one_gradient_is_named(case: str) -> None:
    by, kind, words = SPOILED[case]
    a, b, v = A.float(), B.float(), numbers(19, 44, seed=2).float()
    for_a, for_b = of_gated(v, a, b)
    each = [compared("a", by(for_a, a, b), for_a), compared("b", for_b, for_b)]
    found = diagnosed([judged(one, 0.0) for one in each], 0.0, lambda: [one.candidate[0] * SCALE for one in each])
    assert found[0] is not None
    assert found[1] is None
    assert (found[0].kind, words in found[0].message) == (kind, True), found[0]


def test_a_whole_check_names_the_mistake() -> None:
    report = check_function(kernel(gated, spoiled(lambda da, a, b: 1.01 * da)), (A, B), reference=gated)
    assert [row.name for row in report.mismatches] == ["a"]
    assert kind_and_message(report, "a")[0] == "scaled"


def checked(
    forward: Callable[..., Tensor],
    backward: Callable[..., Gradients],
    reference: Callable[..., Tensor],
    inputs: tuple[Tensor, Tensor],
) -> Report:
    return check_function(kernel(forward, backward), inputs, reference=reference)


def kind_and_message(report: Report, name: str) -> tuple[str, str]:
    diagnosis = report[name].diagnosis
    assert diagnosis is not None
    return str(diagnosis.kind), diagnosis.message


def test_swapped_gradients_are_told_of_both_arguments() -> None:
    report = checked(gated, lambda *given: of_gated(*given)[::-1], gated, (A, B))
    assert kind_and_message(report, "a") == (
        "permuted",
        "dθ is the right gradient of b: the gradients of a and b are swapped",
    )
    assert kind_and_message(report, "b")[0] == "permuted"


def test_a_gradient_that_is_that_of_another_argument_alone() -> None:
    report = checked(gated, lambda *given: (of_gated(*given)[1],) * 2, gated, (A, B))
    assert kind_and_message(report, "a") == ("permuted", "dθ is the right gradient of b")
    assert report["b"].status == "match"


def test_a_transposed_gradient_is_told_through_rounding() -> None:
    report = checked(gated, spoiled(lambda da, a, b: da.T), gated, Q)
    assert kind_and_message(report, "a")[0] == "transposed"


def test_the_sum_that_a_softmax_backward_lacks_is_a_multiple_of_its_output() -> None:
    plain = torch.softmax
    report = check_function(
        kernel(lambda a, b: a.softmax(-1) * b, lambda g, a, b: (g * b * a.softmax(-1), g * a.softmax(-1))),
        (A, torch.ones(19, 1).bfloat16()),
        reference=lambda a, b: plain(a, -1) * b,
    )
    assert kind_and_message(report, "a") == (
        "projection",
        "dθ is off by a multiple of output along axis 1, another one in each slice",
    )


def test_sums_in_bfloat16_are_told_from_a_wrong_formula() -> None:
    def backward(grad: Tensor, a: Tensor, b: Tensor) -> Gradients:
        return added_up_in_bfloat16(grad, b.T.contiguous()), added_up_in_bfloat16(a.T.contiguous(), grad)

    right, left = numbers(128, 20, seed=1), numbers(24, 128)
    report = checked(torch.matmul, backward, torch.matmul, (right.T.contiguous(), left.T.contiguous()))
    for row in report.mismatches:
        kind, message = kind_and_message(report, row.name)
        assert kind == "low_precision"
        assert "sums are accumulated in bfloat16" in message


def test_numbers_of_a_coarser_precision_are_told_in_float32() -> None:
    def backward(grad: Tensor, a: Tensor, b: Tensor) -> Gradients:
        return grad.bfloat16().float() @ b.T.bfloat16().float(), a.T @ grad

    left, right = [torch.randn(shape, generator=torch.Generator().manual_seed(2)) for shape in ((9, 30), (30, 12))]
    report = checked(torch.matmul, backward, torch.matmul, (left, right))
    assert [row.name for row in report.mismatches] == ["a"]
    kind, message = kind_and_message(report, "a")
    assert kind == "low_precision"
    assert "numbers went through bfloat16" in message


def test_a_wrong_output_is_no_gradient_in_words() -> None:
    report = checked(lambda a, b: 1.01 * (a @ b), of_product, torch.matmul, (LEFT, RIGHT))
    assert [row.name for row in report.mismatches] == ["output"]
    kind, message = kind_and_message(report, "output")
    assert kind == "scaled"
    assert message.startswith("it is 1.01")
    assert "the right output" in message
    assert not [note for note in report.notes if "forward first" in note]


def test_gradients_beside_a_wrong_output_are_told_to_follow_from_it() -> None:
    report = checked(lambda a, b: a.tanh() * b * 1.5, spoiled(lambda da, a, b: 1.5 * da), gated, (A, B))
    assert {row.name for row in report.mismatches} == {"a", "output"}
    assert [note for note in report.notes if note.startswith("output is wrong as well")]


@pytest.mark.slow
def test_the_run_under_a_larger_gradient_leaves_no_hook() -> None:
    held: list[Tensor] = []

    def function(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        held.append(kernel(gated, spoiled(lambda da, a, b: b * a.sigmoid()))(a, b))
        return a, held[-1]

    a = A.clone().requires_grad_()
    report = check_function(function, (a, B), reference=lambda a, b: (a, gated(a, b)))
    assert kind_and_message(report, "a")[0] == "unknown"
    hooks = [hook for each in (a, *held) for hook in (each._backward_hooks or {}).values()]
    assert not [hook for hook in hooks if hook.__module__ == Rescaled.__module__]


def test_infinities_beyond_the_largest_number_of_float16_are_an_overflow() -> None:
    x = torch.full((4, 5), 300.0, dtype=torch.float16)
    x[1, 2] = 2
    report = check_function(lambda x: x * x, (x,), reference=lambda x: x * x)
    if report["output"].diagnosis is not None:  # else it is the same in that dtype
        assert kind_and_message(report, "output") == (
            "low_precision",
            "it is infinite in 19 of 20 entries: they are up to 9e+04, and float16 ends at 65504",
        )
