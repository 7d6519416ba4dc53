"""Values that the traced engine finds are those of an eager evaluation, to the last digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed
from torch_gradcheck.engines.traced.rules.pointwise import tanh
from torch_gradcheck.engines.traced.rules.registry import OperationCall


@given(x=st.floats(-30, 30))
def test_tanh_is_as_exact_as_that_of_torch(x: float) -> None:
    base = torch.zeros((), dtype=torch.float64)
    perturbed = Perturbed(base, torch.tensor([x], dtype=torch.float64), ())
    [result] = tanh(OperationCall(torch.ops.aten.tanh.default, (perturbed,), {}, [base], 1))
    assert result is not None
    expected = np.tanh(np.longdouble(x))
    assert abs(float(result.values) - expected) <= np.finfo(np.float64).eps * abs(expected)


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


@pytest.mark.slow_but_for(2)
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

    parameters = list(network.parameters())
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
