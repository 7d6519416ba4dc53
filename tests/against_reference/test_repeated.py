"""Equal runs of a candidate that differ: by rounding, or by more, and then it is not one function."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function

from torch_gradcheck import Report, check_function, check_module


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Noted(Function):
    """3x; what a run gives is a function of how many ran before: forward(y, k) and backward(g, k)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, made: Any, given: Any, k: int) -> Tensor:
        ctx.given, ctx.k = given, k
        return made(3 * x, k)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.given(3 * g, ctx.k), None, None, None


Change = Callable[[Tensor, int], Tensor]


def same(tensor: Tensor, _: int) -> Tensor:
    return tensor


def candidate(made: Change = same, given: Change = same) -> Callable[[Tensor], Tensor]:
    count = itertools.count()

    def triple(x: Tensor) -> Tensor:
        return Noted.apply(x, made, given, next(count))

    return triple


def checked(function: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.bfloat16) -> Report:
    return check_function(function, (normal(5, 7, dtype=dtype),), reference=lambda x: 3 * x)


def twice_where(wrong: Callable[[int], bool]) -> Change:
    return lambda tensor, k: tensor * 2 if wrong(k) else tensor


def with_nan(wrong: Callable[[int], bool]) -> Change:
    return lambda tensor, k: tensor.index_fill(0, torch.tensor([2]), float("nan")) if wrong(k) else tensor


ONE_IN_THREE = {f"run {start} and every third after it": (lambda k, start=start: k % 3 == start) for start in range(3)}

BEYOND_ROUNDING: dict[str, tuple[Change, str]] = {
    **{name: (twice_where(wrong), "of 5 runs") for name, wrong in ONE_IN_THREE.items()},
    "the first run": (
        twice_where(lambda k: k == 0),
        "The first run differs from the 4 that follow: what it gives is 2 times theirs",
    ),
    "a workspace that is not cleared": (
        lambda tensor, k: tensor * (k + 1),
        "The second is 2 times the first, the third 3 times: something adds up",
    ),
    "NaN in the second run": (with_nan(lambda k: k == 1), "an entry is a finite number in one and not in another"),
    "one entry": (
        lambda tensor, k: tensor + torch.eye(5, 7).to(tensor.dtype) if k % 2 else tensor,
        "Of 5 runs, 3 are alike",
    ),
    "a few per cent of all": (lambda tensor, k: tensor * 1.05 if k == 3 else tensor, "Of 5 runs, 4 are alike"),
}


@pytest.mark.parametrize("name", BEYOND_ROUNDING)
def test_a_backward_that_differs_by_more_than_rounding_is_undecided(name: str) -> None:
    given, words = BEYOND_ROUNDING[name]
    report = checked(candidate(given=given))
    assert [(row.name, row.status) for row in report] == [("x", "undecided"), ("output", "match")]
    assert not report.passed
    assert report.backward_spread > 0
    assert report.notes[0].startswith("the candidate is not one function: equal runs from the same random state differ")
    assert words.lower() in report.notes[0].lower()
    assert [each.name for each in report.contract if each.status == "failed"] == ["repeatable"]
    assert "the gradient of x" in report["x"].reason


@pytest.mark.parametrize("change", [twice_where(lambda k: k % 3 == 1), with_nan(lambda k: k % 2)], ids=["2y", "NaN"])
def test_a_forward_that_differs_by_more_than_rounding_is_undecided(change: Change) -> None:
    report = checked(candidate(made=change))
    assert report["output"].status == "undecided"
    assert not report.passed
    assert report.culprit == "triple"
    assert "It starts in the forward of the function" in report.notes[0]


def test_the_function_at_which_it_starts_is_named() -> None:
    report = checked(candidate(given=twice_where(lambda k: bool(k % 2))))
    assert report.culprit == "triple"
    assert "It starts in the backward of autograd.Function Noted (" in report.notes[0]
    assert "test_repeated.py:" in report.notes[0]


WITHIN_ROUNDING: dict[str, tuple[torch.dtype, Change]] = {
    "in bfloat16": (torch.bfloat16, lambda tensor, k: (tensor.float() * (1 + 0.004 * (k % 3))).to(tensor.dtype)),
    "in float32": (torch.float32, lambda tensor, k: tensor * (1 + 1e-7 * (k % 3))),
}


@pytest.mark.parametrize("name", WITHIN_ROUNDING)
def test_a_backward_that_differs_by_rounding_passes_and_is_told_of(name: str) -> None:
    dtype, given = WITHIN_ROUNDING[name]
    report = checked(candidate(given=given), dtype)
    assert report.passed, report
    assert report.backward_spread == 0
    assert report.notes[-1].startswith("equal runs of the candidate differ by ")
    assert report.notes[-1].endswith("of the gradient of x, as rounding: it is part of the error bars")


def test_long_sums_in_float32_in_an_order_of_chance_pass() -> None:
    """Added one after the other, as atomics do, 20,000 numbers lose more than a sum in pairs."""
    orders = itertools.count()

    class Scaled(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x * w

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            x, w = ctx.saved_tensors
            order = np.random.default_rng(next(orders)).permutation(len(x))
            return g * w, torch.from_numpy(np.cumsum((g * x).numpy()[order], axis=0, dtype=np.float32)[-1])

    inputs = (normal(20_000, 2, dtype=torch.float32), normal(2, dtype=torch.float32, seed=1))
    report = check_function(Scaled.apply, inputs, reference=lambda x, w: x * w)
    assert report.passed, report
    assert report.notes[-1].startswith("equal runs of the candidate differ by ")


def test_random_draws_from_one_state_are_equal_runs() -> None:
    def dropped(x: Tensor) -> Tensor:
        return x * (torch.rand_like(x.float()) > 0.5)

    report = check_function(dropped, (normal(5, 7),), reference=dropped)
    assert not [note for note in report.notes if "equal runs" in note]
    assert not report.mismatches


class Layers(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(7, 7), inner, nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


class Counted(nn.Module):
    """3x, and what its calls make of it; it counts them where no loan of a model looks."""

    def __init__(self, made: Change = same, given: Change = same) -> None:
        super().__init__()
        self.triple = [candidate(made, given)].__getitem__

    def forward(self, x: Tensor) -> Tensor:
        return self.triple(0)(x)


MODULES = {
    "forward": (Counted(made=twice_where(lambda k: bool(k % 2))), "It starts in the forward of inner (Counted)"),
    "backward": (Counted(given=twice_where(lambda k: bool(k % 2))), "in the backward of autograd.Function Noted"),
}


@pytest.mark.parametrize("name", MODULES)
def test_the_module_at_which_it_starts_is_the_culprit(name: str) -> None:
    inner, words = MODULES[name]
    torch.manual_seed(0)
    model, plain = Layers(inner).to(torch.bfloat16), Layers(Triple()).to(torch.bfloat16)
    report = check_module(model, lambda y: y.float().square().mean(), normal(5, 7), reference=plain)
    assert not report.passed
    assert report.culprit == "inner"
    assert words in report.notes[0]
    undecided = [row.name for row in report if row.status == "undecided"]
    assert "first.weight" in undecided
    assert ("last.weight" in undecided) == (name == "forward")
