"""Several outputs, outputs without a graph, and outputs with infinities or NaN."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import Function

from torch_gradcheck import check_function


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def small_and_large(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return 2 * x, 1000 * x


class SmallIsWrong(Function):
    """The gradient through the small output is half too large: one part in a thousand of both together."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return small_and_large(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return 3 * g + 1000 * h


def test_a_mistake_behind_an_output_of_large_numbers_is_found_and_the_output_named() -> None:
    report = check_function(SmallIsWrong.apply, (numbers(9, 7),), reference=small_and_large)
    assert [row.status for row in report] == ["mismatch", "match", "match"]
    assert "under the gradient of output[0] alone" in report["x"].reason
    assert check_function(small_and_large, (numbers(9, 7),), reference=small_and_large).passed


@pytest.mark.slow
def test_up_to_four_outputs_are_run_alone() -> None:
    def runs(outputs: int) -> int:
        count = 0

        def candidate(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            nonlocal count
            count += 1
            return tuple([(k + 1) * x for k in range(outputs)])

        def reference(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple([(k + 1) * x for k in range(outputs)])

        assert check_function(candidate, (numbers(5, 3),), reference=reference).passed
        return count

    assert runs(2) > runs(1)
    assert runs(5) < runs(4)


WITHOUT_GRAPH: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "in the candidate": (
        lambda x: (x.softmax(-1), x.logsumexp(-1).detach()),
        lambda x: (x.softmax(-1), x.logsumexp(-1)),
        "output[1] has no graph in the candidate",
    ),
    "in the reference": (
        lambda x: (x.softmax(-1), x.logsumexp(-1)),
        lambda x: (x.softmax(-1), x.logsumexp(-1).detach()),
        "output[1] has no graph in the reference",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_GRAPH)
def test_outputs_that_one_side_cannot_differentiate_are_compared_and_get_no_gradient(case: str) -> None:
    candidate, reference, note = WITHOUT_GRAPH[case]
    report = check_function(candidate, (numbers(6, 9),), reference=reference)
    assert report.passed, report
    assert [row.status for row in report] == ["match", "match", "match"]
    assert note in " ".join(report.notes)


def test_a_candidate_without_any_graph_misses_its_gradient() -> None:
    report = check_function(lambda x: x.softmax(-1).detach(), (numbers(6, 9),), reference=lambda x: x.softmax(-1))
    assert [row.status for row in report] == ["mismatch", "match"]


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    scores = (q @ k.T).masked_fill(mask, -math.inf)
    return scores.softmax(-1) @ v, scores


def test_equal_infinities_of_a_mask_match() -> None:
    q, k, v = numbers(3, 9, 5).unbind()
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    report = check_function(masked_attention, (q, k, v, mask), reference=masked_attention)
    assert report.passed, report
    assert report["output[1]"].status == "match"


def test_a_mask_in_another_place_is_a_mismatch() -> None:
    q, k, v = numbers(3, 9, 5).unbind()
    mask = torch.ones(9, 9, dtype=torch.bool).triu(1)
    report = check_function(
        lambda q, k, v, mask: masked_attention(q, k, v, mask.T), (q, k, v, mask), reference=masked_attention
    )
    assert report["output[1]"].status == "mismatch"
    assert report["output[1]"].mismatched >= 72  # both triangles


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_one_number_that_is_none_is_a_mismatch_of_that_entry(bad: float, dtype: torch.dtype) -> None:
    class Bad(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            gradient = g * ctx.saved_tensors[0].cos()
            gradient[1, 2] = bad
            return gradient

    report = check_function(Bad.apply, (numbers(5, 7, dtype=dtype),), reference=torch.sin)
    assert report["x"].status == "mismatch"
    assert report["x"].mismatched == 1
    assert report["x"].worst[0].index == (1, 2)
    assert f"[1, 2] is {bad}, where" in report["x"].reason
    assert report["output"].status == "match"


def test_an_overflow_of_float16_is_a_mismatch() -> None:
    x = torch.full((3, 5), 300.0, dtype=torch.float16)
    x[0, 0] = 2
    report = check_function(lambda x: x * x, (x,), reference=lambda x: x * x)
    assert report["output"].status == "mismatch"
    assert report["output"].mismatched == 14
    assert "is inf, where 9e+04 is right: float16 overflows at 65504" in report["output"].reason


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_tensors_of_one_entry_are_compared(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, 1.3).to(torch.bfloat16)
    assert check_function(lambda x: x.exp(), (x,), reference=torch.exp).passed
    assert not check_function(lambda x: 1.5 * x.exp() - 0.5 * x.exp().detach(), (x,), reference=torch.exp).passed


def test_empty_tensors_prove_nothing() -> None:
    report = check_function(torch.sin, (numbers(0, 3),), reference=torch.sin)
    assert [row.status for row in report] == ["flat", "flat"]
    assert not report.passed
