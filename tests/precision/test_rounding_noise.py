from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.precision.rounding_noise import (
    MOVED,
    KernelsInMode,
    RoundingMode,
    move_at_random,
    moved_by_rounding,
    rounds,
)

aten = torch.ops.aten


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_entry_moves_by_about_as_much_as_rounding_does(dtype: torch.dtype) -> None:
    values = (torch.rand(20_000, generator=generator()) + 1).to(dtype)
    moved = values.clone()
    move_at_random(moved, dtype, generator(1))
    places = (moved.double() - values.double()) / torch.finfo(dtype).eps
    assert float(places.abs().max()) <= 2.0, "two places at the most, where a power of two is crossed"
    rounding = 1 / 12  # the variance of what rounding to nearest does, in places
    assert rounding < float(places.square().mean()) < 6 * rounding
    assert abs(float(places.mean())) < 0.02


def test_a_coarser_rounding_moves_a_finer_number_by_its_own_epsilon() -> None:
    values = torch.ones(1000, dtype=torch.float64)
    move_at_random(values, torch.bfloat16, generator())
    off = (values - 1).abs()
    assert 0.5 * MOVED * 2.0**-7 < float(off.max()) <= MOVED * 2.0**-7
    assert len(off.unique()) > 900


def test_zeros_and_infinities_stay() -> None:
    values = torch.tensor([0.0, -0.0, float("inf"), float("-inf")])
    before = values.clone()
    move_at_random(values, torch.float32, generator())
    assert torch.equal(values, before)


def test_small_numbers_move_by_the_smallest_of_the_precision() -> None:
    values = torch.full((1000,), 1e-9, dtype=torch.float64)
    move_at_random(values, torch.float16, generator())
    assert 1e-8 < float((values - 1e-9).abs().max()) < 6e-8, "float16 holds nothing between 0 and 6e-8"


@pytest.mark.parametrize(
    ("func", "args", "expected"),
    [
        pytest.param(aten.add.Tensor, (torch.ones(1), torch.ones(1)), True, id="add"),
        pytest.param(aten.mm.default, (torch.ones(1, 1), torch.ones(1, 1)), True, id="mm"),
        pytest.param(aten.relu.default, (torch.ones(1),), False, id="relu chooses"),
        pytest.param(aten.index.Tensor, (torch.ones(1), []), False, id="index moves"),
        pytest.param(aten.view.default, (torch.ones(1), [1]), False, id="view"),
        pytest.param(aten.rand_like.default, (torch.ones(1),), False, id="a draw"),
        pytest.param(aten._to_copy.default, (torch.ones(1),), True, id="a cast of a float"),
        pytest.param(aten._to_copy.default, (torch.ones(1, dtype=torch.int64),), False, id="a cast of an integer"),
    ],
)
def test_operations_that_round(func: object, args: tuple[object, ...], expected: bool) -> None:
    assert rounds(func, args) is expected


def spread(compute: Callable[[], Tensor], runs: int = 8) -> float:
    """How far runs with rounding as noise come apart."""
    draws = generator()
    with RoundingMode(draws):
        values = torch.stack([compute().double() for _ in range(runs)])
    return float((values - values[0]).abs().max())


def test_cancellation_shows() -> None:
    x = torch.rand(100, generator=generator()) + 1
    assert spread(lambda: (x + 1e4) - 1e4) > 1e-4
    assert spread(lambda: x * 2) < 1e-6


def test_cancellation_inside_an_operation_shows() -> None:
    """Products of 1e4 that add up to 1: the kernel rounds each, so the result is off by more than its last digits."""
    x, w, bias = torch.ones(1, 3), torch.tensor([[1e4], [-1e4], [1.0]]), torch.zeros(1)
    for product in (lambda: x @ w, lambda: torch.addmm(bias, x, w), lambda: nn.functional.linear(x, w.T)):
        assert 1e-4 < spread(product) < 1e-2
    coarse, factors = x.bfloat16(), w.bfloat16()
    assert spread(lambda: coarse @ factors) < 1, "kernels of a coarse precision add up in float32"


def test_the_logarithm_of_a_saturated_softmax_moves_as_the_sum_inside_does() -> None:
    logits = torch.tensor([[0.0, 20.0]])
    assert 1e-8 < spread(lambda: logits.log_softmax(1)[:, 1]) < 2e-7
    assert 1e-8 < spread(lambda: logits.logsumexp(1) - 20) < 1e-4


def test_the_callers_random_numbers_are_not_drawn_from() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    spread(lambda: torch.ones(3) / 3)
    assert torch.equal(torch.get_rng_state(), before)


def in_bfloat16_kernels(compute: Callable[[], Tensor]) -> Tensor:
    with KernelsInMode(torch.float64, torch.bfloat16, generator()):
        return compute()


def test_sums_that_stagnate_show_in_their_kernels() -> None:
    """index_add in bfloat16 stops growing at 256."""
    where, ones = torch.zeros(1000, dtype=torch.int64), torch.ones(1000, dtype=torch.float64)
    total = in_bfloat16_kernels(lambda: torch.zeros(1, dtype=torch.float64).index_add(0, where, ones))
    assert total.dtype == torch.float64
    assert 100 < float(total) < 600


def test_operations_in_place_write_to_what_they_are_given() -> None:
    x = torch.full((2,), 3.0, dtype=torch.float64)
    result = in_bfloat16_kernels(lambda: x.mul_(1 / 3))
    assert result is x
    assert x.dtype == torch.float64
    assert float((x - 1).abs().max()) < 0.02
    assert not torch.equal(x, torch.ones(2, dtype=torch.float64))


def test_code_that_asks_for_the_dtype_sees_that_of_the_check() -> None:
    seen = []
    in_bfloat16_kernels(lambda: seen.append((torch.ones(2, dtype=torch.float64) / 3).dtype) or torch.ones(1))
    assert seen == [torch.float64]


def test_kernels_that_the_dtype_lacks_run_in_the_precision_of_the_check() -> None:
    matrix = torch.eye(2, dtype=torch.float64) * 2
    solved = in_bfloat16_kernels(lambda: torch.linalg.inv(matrix))
    assert torch.allclose(solved, torch.eye(2, dtype=torch.float64) / 2, atol=0.02)


@pytest.mark.parametrize(
    ("function", "moves"),
    [
        pytest.param(lambda x: 1 - x.tanh() ** 2, 1e-16, id="1 - y squared"),
        pytest.param(lambda x: torch.nn.functional.gelu(-x), 1e-15, id="gelu"),
        pytest.param(lambda x: (-x).exp(), 1e-33, id="a small exponential"),
    ],
)
def test_how_far_rounding_moves_what_has_cancelled(function: Callable[[Tensor], Tensor], moves: float) -> None:
    x = torch.tensor([40.0], dtype=torch.float64)
    moved = moved_by_rounding(lambda: np.array(function(x).tolist()), seed=0)
    assert moves / 30 < float(moved[0]) < 30 * moves


def test_a_run_that_raises_shows_nothing() -> None:
    x = torch.ones(1, dtype=torch.float64)

    def probability() -> np.ndarray:  # type: ignore[type-arg]
        p = x * 1.0
        if float(p) != 1:
            raise ValueError
        return np.array(p.tolist())

    assert moved_by_rounding(probability, seed=0).max() < 1e-15


def test_the_weights_of_a_row_move_alike_as_the_logarithm_of_their_sum_is_rounded() -> None:
    logits = torch.randn(50, 9, generator=generator()) + 1000
    with RoundingMode(generator(1)):
        weights = logits.softmax(-1)
    off = weights.double() / logits.double().softmax(-1) - 1
    rows = off.mean(-1, keepdim=True)
    assert float(rows.abs().max()) > 2e-5, "the logarithm is 1000, rounded in float32"
    assert float((off - rows).abs().max()) < 5e-7
