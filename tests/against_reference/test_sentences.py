"""Sentences on a candidate beside a reference: one number for one thing, and no code accused that did not run."""

from __future__ import annotations

import math
import re
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck import Report, check_function
from torch_gradcheck.reporting.render.beside_reference import tightness


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


class Product(Function):
    """x · w in float32, with a factor on the gradient of w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.factor = factor
        return (x.float() * w.float()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = ctx.saved_tensors
        dw = ctx.factor * (g.float() * x.float()).sum_to_size(w.shape)
        return (g.float() * w.float()).to(x.dtype), dw.to(w.dtype), None


def product(x: Tensor, w: Tensor) -> Tensor:
    return x * w


def scaled(x: Tensor, w: Tensor) -> Tensor:
    return Product.apply(x, w, 1.2)  # type: ignore[no-any-return, no-untyped-call]


def multiples(report: Report, name: str) -> set[str]:
    """The multiples of what rounding explains that the row and the first note tell."""
    said = f"{report[name].reason} {report.notes[0]}"
    return set(re.findall(r"([\d.e+]+) times what r", said))


def test_a_factor_on_a_single_number_is_told_with_its_uncertainty() -> None:
    report = check_function(scaled, (normal(7, 9), torch.tensor(0.7).bfloat16()), reference=product)

    diagnosis = report["w"].diagnosis
    assert diagnosis is not None
    assert re.search(r"dθ = 1\.2\d* ± 0\.\d+ × the right gradient; of one number, a factor", diagnosis.message)
    assert "root mean square" not in report["w"].reason
    assert len(multiples(report, "w")) == 1


def test_the_note_on_the_culprit_says_the_multiple_of_the_row() -> None:
    report = check_function(scaled, (normal(37, 9), normal(9)), reference=product)

    assert len(multiples(report, "w")) == 1
    assert "its worst entry by" in report.notes[0]


def test_another_infinity_than_the_right_one_is_told_by_its_value() -> None:
    x, mask = normal(6, 9), torch.arange(54).reshape(6, 9) % 3 == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = [
            check_function(
                lambda x: x.masked_fill(mask, value),  # noqa: B023 - called at once
                (x,),
                reference=lambda x: x.masked_fill(mask, -math.inf),
            )
            for value in (-1e4, math.inf)
        ]

    assert "its output is -9984 where -inf is right" in low.notes[0]
    assert "its output is inf where -inf is right" in high.notes[0]
    assert "ends at" not in high["output"].diagnosis.message  # type: ignore[union-attr]


def test_no_function_is_accused_whose_backward_was_not_reached() -> None:
    def detached(x: Tensor, w: Tensor) -> Tensor:
        return scaled(x, w).detach()

    report = check_function(detached, (normal(6, 9), normal(9)), reference=product)

    assert report.culprit == "detached"
    assert "its gradient of x is None; its code is at" in report.notes[0]
    assert "Product" not in report.notes[0]


def test_a_race_in_the_forward_accuses_no_backward() -> None:
    calls = []

    def racing(x: Tensor, w: Tensor) -> Tensor:
        calls.append(1)
        y: Tensor = Product.apply(x, w, 1.0)  # type: ignore[no-untyped-call]
        return y * 1.25 if len(calls) % 4 == 3 else y

    report = check_function(racing, (normal(6, 9), normal(9)), reference=product)

    (broken,) = [each.message for each in report.contract if each.name == "repeatable"]
    assert "racing at" in broken
    assert "backward" not in broken


def test_a_wrong_tensor_that_the_reference_loses_nothing_in_has_no_multiple_in_the_headline() -> None:
    class Twice(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * 2 + 0.25

    report = check_function(Twice.apply, (normal(6, 9),), reference=lambda x: x * 2)

    assert tightness(report).endswith("where the reference loses nothing in bfloat16 (x)")


def test_float32_inside_of_float64_is_told_as_rounding() -> None:
    x = normal(6, 9, dtype=torch.float64)
    report = check_function(lambda x: x.float().exp().double(), (x,), reference=torch.exp)

    gradient, output = [report[name].diagnosis.message for name in ("x", "output")]  # type: ignore[union-attr]
    assert "by rounding and no formula. As if numbers went through float32" in gradient
    assert "No entry is off by more than float32 rounds it" in output


def test_outputs_and_gradients_of_two_precisions_lose_in_the_plural() -> None:
    report = check_function(lambda x, w: product(x, w).half(), (normal(6, 9), normal(9)), reference=product)

    assert report.passed
    assert "bfloat16 and float16 lose (" in tightness(report)
