"""The eager engine moves one coordinate in place, evaluates J once, and puts the coordinate back to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.engines.eager import EagerEngine


def engine_for(parameters: list[Tensor], J: Callable[[], Tensor]) -> EagerEngine:
    return EagerEngine(lambda: float(J().detach()), parameters)


def test_values_are_those_of_the_moved_parameter() -> None:
    w = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    weights = torch.tensor([[1.0, 10, 100], [1000, 1e4, 1e5]], dtype=torch.float64)
    engine = engine_for([w], lambda: torch.sum(w * weights))
    samples = engine.sample(0, np.array([0, 4, 5, 4]), np.array([0.5, 1.0, -2.0, 0.0]))
    base = float((w * weights).sum())
    assert samples.steps.tolist() == [0.5, 1.0, -2.0, 0.0]
    assert (samples.values - base).tolist() == [0.5, 1e4, -2e5, 0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 3, dtype=torch.float64),
        lambda: torch.randn(3, 2, dtype=torch.float64).T,
        lambda: torch.randn(4, 6, dtype=torch.float64)[::2, ::2],
        lambda: torch.randn(1, 3, dtype=torch.float64).expand(2, 3).clone(memory_format=torch.contiguous_format),
        lambda: torch.randn(2, 3, dtype=torch.float64).contiguous(memory_format=torch.preserve_format),
    ],
    ids=["contiguous", "transposed", "strided", "expanded and cloned", "preserved"],
)
def test_coordinates_are_in_the_order_of_the_index(make: Callable[[], Tensor]) -> None:
    w = make()
    before = w.clone()
    seen: list[Tensor] = []
    engine = engine_for([w], lambda: (seen.append(w.clone()), w.sum())[1])
    engine.sample(0, np.arange(6), np.ones(6))
    for k, moved in enumerate(seen):
        changed = (moved != before).nonzero().tolist()
        assert changed == [list(np.unravel_index(k, (2, 3)))]
    assert torch.equal(w, before)


def test_complex_parameters_move_in_both_parts() -> None:
    z = torch.tensor([1 + 2j, 3 + 4j], dtype=torch.complex128)
    seen: list[list[complex]] = []
    engine = engine_for([z], lambda: (seen.append(z.tolist()), z.real.sum())[1])
    engine.sample(0, np.arange(4), np.full(4, 0.5))
    assert seen == [[1.5 + 2j, 3 + 4j], [1 + 2.5j, 3 + 4j], [1 + 2j, 3.5 + 4j], [1 + 2j, 3 + 4.5j]]
    assert z.tolist() == [1 + 2j, 3 + 4j]


def test_a_scalar_parameter() -> None:
    w = torch.tensor(2.0, dtype=torch.float64)
    samples = engine_for([w], lambda: w**2).sample(0, np.zeros(2, dtype=np.int64), np.array([1.0, -1.0]))
    assert samples.values.tolist() == [9.0, 1.0]


def test_the_parameter_is_chosen_by_its_position() -> None:
    a, b = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    engine = engine_for([a, b], lambda: a.sum() + 100 * b.sum())
    assert engine.sample(1, np.array([0]), np.array([1.0])).values.tolist() == [302]


def test_the_step_is_the_one_taken() -> None:
    w = torch.tensor([1.0, 1e6], dtype=torch.float32)
    samples = engine_for([w], lambda: torch.sum(w)).sample(0, np.array([0, 1]), np.array([1e-9, 0.1]))
    assert samples.steps.tolist() == [0.0, 0.125]


def test_theta_is_put_back_to_the_bit_and_its_version_stays() -> None:
    w = nn.Parameter(torch.tensor([0.1, 1e-300, -0.0, 3e15], dtype=torch.float64))
    before, version = w.detach().clone(), w._version
    engine_for([w], lambda: torch.sum(w)).sample(0, np.arange(4), np.array([1e-7, 1e5, -1.0, 0.3]))
    assert w.detach().view(torch.int64).tolist() == before.view(torch.int64).tolist()
    assert w._version == version


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), StopIteration()], ids=lambda e: type(e).__name__
)
def test_theta_is_put_back_when_the_loss_raises(error: BaseException) -> None:
    w = torch.tensor([0.1, 0.2], dtype=torch.float64)

    def fails() -> Tensor:
        raise error

    with pytest.raises(type(error)):
        engine_for([w], fails).sample(0, np.array([1]), np.array([0.3]))
    assert w.tolist() == [0.1, 0.2]


def test_values_that_are_not_finite_come_through() -> None:
    w = torch.tensor([0.0], dtype=torch.float64)
    samples = engine_for([w], lambda: 1 / (w - 1).log().sum()).sample(0, np.array([0, 0]), np.array([0.5, 2.0]))
    assert np.isnan(samples.values[0])
    assert engine_for([w], lambda: torch.sum(1 / w)).sample(0, np.array([0]), np.array([0.0])).values[0] == np.inf


def test_nothing_to_sample() -> None:
    w = torch.empty(0, 2, dtype=torch.float64)
    samples = engine_for([w], lambda: torch.sum(w)).sample(0, np.empty(0, dtype=np.int64), np.empty(0))
    assert len(samples.steps) == len(samples.values) == 0
