"""Functions whose differences by one step of 1e-6 drown in noise, or miss the slope: right ones pass all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.gradcheck import gradcheck as torch_gradcheck

from torch_gradcheck import GradcheckFailedError, gradcheck

X = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)

HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "a large constant": lambda x: 1e8 + x.sin(),
    "steep": lambda x: (1e5 * x).sin(),
    "a cast to float32": lambda x: x.float().sin().double(),
}


@pytest.mark.parametrize("function", HARD.values(), ids=HARD.keys())
def test_what_torch_fails_for_its_step_passes(function: Callable[[Tensor], Tensor]) -> None:
    assert not torch_gradcheck(function, X, raise_exception=False)
    assert gradcheck(function, X)


def wrong_by_a_hundredth(y: Tensor) -> Tensor:
    y.register_hook(lambda gradient: gradient * 1.01)
    return y


@pytest.mark.parametrize("function", HARD.values(), ids=HARD.keys())
def test_the_same_wrong_by_a_hundredth_fails(function: Callable[[Tensor], Tensor]) -> None:
    assert not gradcheck(lambda x: function(wrong_by_a_hundredth(x * 1)), X, raise_exception=False)


def test_a_small_output_beside_a_large_one_is_judged_by_its_own_noise() -> None:
    assert gradcheck(lambda x: torch.stack([1e9 * x.sum(), 1e-3 * x[0].sin()]), X)
    assert not gradcheck(
        lambda x: torch.stack([1e9 * x.sum(), 1e-3 * wrong_by_a_hundredth(x[0].sin())]),
        X,
        atol=1e-8,
        raise_exception=False,
    )


def test_a_function_that_raises_where_it_is_not_defined_is_checked_inside() -> None:
    def entropy(p: Tensor) -> Tensor:
        if bool((p < 0).any()):
            raise ValueError("p must be positive")
        return -p * p.log()

    p = torch.tensor([0.3, 1e-4], dtype=torch.float64, requires_grad=True)
    assert gradcheck(entropy, p)
    assert not gradcheck(lambda p: wrong_by_a_hundredth(entropy(p)), p, raise_exception=False)


def test_an_infinite_entry_that_no_step_moves_is_judged_by_what_is_known_of_it() -> None:
    x = torch.tensor([0.5, float("-inf")], dtype=torch.float64, requires_grad=True)
    for fast_mode in (False, True):
        assert gradcheck(lambda x: x.softmax(0) * x[0], x, fast_mode=fast_mode)
        assert not gradcheck(
            lambda x: wrong_by_a_hundredth(x.softmax(0) * x[0]), x, fast_mode=fast_mode, raise_exception=False
        )


def test_what_nothing_decides_fails_and_says_so() -> None:
    with pytest.raises(GradcheckFailedError, match="cannot be excluded: differences decide nothing at 2 of 4 entries"):
        gradcheck(lambda x: 1e14 + x.sin(), X)
