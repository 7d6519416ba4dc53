"""The benchmark of torch's operators plants its mistake, counts who finds it, and runs on torch's own table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

import functions
import operators
from explanations import EXPLANATIONS, is_explained


class Wrong(Function):
    """The sine, its gradient too large by a half."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 1.5 * g * x.cos()


def inputs(count: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(3, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count))


def test_a_right_operator_alarms_nobody_and_the_mistake_is_found() -> None:
    case = operators.Case("first unused", lambda x, y: (0 * x + y).sin(), inputs(2))
    row = functions.checked(case, turns=1)
    assert (row.entries, row.place) == (12, 1)
    for name in functions.CONTESTANTS:
        summary = functions.summary_of([row], name)
        assert (summary["alarms"], summary["planted"], summary["found"]) == (0, 1, 1), name
        assert summary["median_seconds"] > 0
    assert row.contestants[functions.OURS].planted.wrong == (1,)  # type: ignore[union-attr]


def test_a_wrong_operator_is_an_alarm_of_everybody() -> None:
    row = functions.checked(operators.Case("wrong sine", Wrong.apply, inputs(1)), turns=1)
    for name in functions.CONTESTANTS:
        assert functions.summary_of([row], name)["false"] == ["wrong sine"]


def test_an_alarm_is_explained_by_a_reason_of_its_own_kind() -> None:
    assert is_explained("select_scatter", "vmap: the gradient of args[1] is 5")
    assert not is_explained("select_scatter", "mismatch: args[1]")
    assert not is_explained("sin", "vmap: the gradient of args[0] is 5")
    assert is_explained("normal", "Jacobian mismatch for output 0 with respect to input 0, numerical: 1")
    assert all(reason for reasons in EXPLANATIONS.values() for reason in reasons.values())


def test_an_exception_is_no_verdict() -> None:
    def refuses(x: Tensor) -> Tensor:
        raise RuntimeError("no")

    assert functions.said(functions.OURS, operators.Case("refuses", refuses, inputs(1))).error == "RuntimeError: no"


def test_the_largest_of_the_small_samples_is_taken() -> None:
    assert operators.case_of(operator(4, 30, 200), small=100).inputs[0].shape == (30,)  # type: ignore[union-attr]
    assert operators.case_of(operator(200, 400), small=100).inputs[0].shape == (200,)  # type: ignore[union-attr]
    assert operators.case_of(operator(9000)) == "the smallest sample has 9,000 numbers"


def operator(*lengths: int) -> Any:
    """A row as those of torch's table, with samples of these lengths."""

    def samples(*_: Any, **__: Any) -> list[Any]:
        vectors = [torch.ones(length, dtype=torch.float64, requires_grad=True) for length in lengths]
        return [SimpleNamespace(input=x, args=(), kwargs={}, output_process_fn_grad=None) for x in vectors]

    return SimpleNamespace(
        name="made up",
        variant_test_name="",
        sample_inputs=samples,
        get_op=lambda: torch.sin,
        gradcheck_wrapper=lambda function, *args: function(*args),
    )


@pytest.mark.slow
def test_three_operators_of_torchs_own_table() -> None:
    pytest.importorskip("expecttest", reason="torch's table of operators is part of its tests, which need expecttest")
    console = functions.Console(quiet=True)
    rows, left_out = functions.rows_of(("mm", "normal", "sin"), 1, operators.SMALL, console)
    assert not left_out
    assert {row.operator for row in rows} == {"mm", "normal", "sin"}
    assert set(functions.alarms_of(rows, functions.OURS)) == {"normal"}
    assert functions.summary_of(rows, functions.OURS)["false"] == []
