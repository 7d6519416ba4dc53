"""What is evaluated by how far values moved is what a plain evaluation gives, to the last digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torch_gradcheck.engines.traced.chunks import REUSED, SMALLEST, ChunkSize, Footprint
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.rules.taylor import SMALL, difference_quotient, largest

aten = torch.ops.aten

EXACT: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "tanh": (aten.tanh.default, np.tanh),
    "sigmoid": (aten.sigmoid.default, lambda x: 1 / (1 + np.exp(-x))),
    "exp": (aten.exp.default, np.exp),
}


@pytest.mark.parametrize("name", EXACT)
@given(x=st.floats(-30, 30), d=st.floats(-SMALL, SMALL))
def test_a_function_close_by_is_exact_to_the_last_digits(name: str, x: float, d: float) -> None:
    function, exactly = EXACT[name]
    y = function(torch.tensor([x], dtype=torch.float64))
    quotient = difference_quotient(function, y, torch.tensor([d], dtype=torch.float64))
    found = float(y + d * quotient)
    expected = float(exactly(np.longdouble(x) + np.longdouble(d)))
    assert abs(found - expected) <= 4 * np.finfo(np.float64).eps * max(abs(expected), 1e-16 if name == "exp" else 1.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0.0), ([1.0, -3.0], 3.0), ([-1.0, 2.0], 2.0)],
    ids=["nothing", "negative", "positive"],
)
def test_the_largest_move_is_found(values: list[float], expected: float) -> None:
    assert largest(torch.tensor(values)) == expected


def test_a_move_that_is_not_a_number_is_not_small() -> None:
    assert not largest(torch.tensor([0.0, float("nan"), 1e-9])) <= SMALL


class Functions(nn.Module):
    """tanh, sigmoid, exp, both kinds of softmax and sums of all, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 7), nn.Linear(7, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.sigmoid(self.second(h) - 0.5) + 3 * h.mean(1, keepdim=True)
        h = h * torch.softmax(h, 1) - torch.exp(-h / 4)
        return self.last(h)


class Masked(nn.Module):
    """Attention weights of which some are −∞ before the softmax, and activations that saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.first(x).masked_fill(torch.arange(8) % 3 == 1, -torch.inf)
        return self.last(torch.softmax(scores, 1) + torch.sigmoid(800 * scores.clamp(-2, 2)))


@pytest.mark.parametrize("step", [1e-7, 1e-5, 1e-2], ids=lambda step: f"{step:g}")
@pytest.mark.parametrize("model", [Functions, Masked], ids=lambda model: model.__name__)
def test_moves_give_the_value_of_J(  # noqa: N802
    model: type[nn.Module], step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch_gradcheck.engines.traced.rules.pointwise._WORTH_LOOKING_AT", 1)
    torch.manual_seed(0)
    network, x, targets = model().double(), torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 1])

    def objective() -> Tensor:
        return F.cross_entropy(network(x), targets)

    assert_samples_are_values_of(objective, list(network.parameters()), step)


def assert_samples_are_values_of(objective: Callable[[], Tensor], parameters: list[Tensor], step: float) -> None:
    """Every coordinate moved by ±step: the traced engine against J itself."""
    engine = TracedEngine(objective, parameters)
    for i, theta in enumerate(parameters):
        coordinates = np.repeat(np.arange(theta.numel()), 2)
        steps = np.where(np.arange(len(coordinates)) % 2 == 0, step, -step)
        samples = engine.sample(i, coordinates, steps)
        for k in range(len(coordinates)):
            with torch.no_grad():
                entry = theta.view(-1)[coordinates[k]]
                before = entry.clone()
                entry.fill_(float(before) + steps[k])
                expected = float(objective())
                entry.copy_(before)
            assert abs(samples.values[k] - expected) <= 1e-14 * max(1.0, abs(expected))


@pytest.mark.parametrize("with_bias", [False, True], ids=["product", "and sum"])
@pytest.mark.parametrize("columns", [1, 4, 6, 10, 12, 13, 32, 47, 48, 50])
def test_products_are_right_with_any_number_of_columns(columns: int, with_bias: bool) -> None:
    """A product of whole rows: the normalisation before it spreads a perturbation over all columns."""
    torch.manual_seed(0)
    gain = torch.randn(7, dtype=torch.float64)
    last, x = nn.Linear(7, columns, with_bias).double(), torch.randn(5, 7, dtype=torch.float64)

    def objective() -> Tensor:
        return last(torch.softmax(x * gain, 1)).square().mean()

    assert_samples_are_values_of(objective, [gain], 0.1)


def test_the_first_chunk_fits_into_the_cache_and_later_ones_into_memory_that_is_reused() -> None:
    size = ChunkSize(2**30, Footprint(peak_bytes=10_000, written_bytes=2**17 * 10, operations=10))
    assert size.size == SMALLEST  # 2²¹ / 2¹⁷
    size.measured(size.size, 1.0, 100 * SMALLEST)
    assert size.size == 2 * SMALLEST
    size.measured(size.size, 1.0, size.size * REUSED // SMALLEST)
    assert size.size == SMALLEST
