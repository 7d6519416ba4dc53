"""A test suite over one's own layers: every layer, in both modes, against centered differences.

pytest examples/test_layers.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.pytest_plugin import GradcheckFixture

pytestmark = pytest.mark.gradcheck(perturb=0.1)  # weights that are not exactly the 1 and 0 of a fresh layer


class RMSNorm(nn.Module):
    """x / rms(x) · g over the last axis."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised x."""
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.gain


class GatedUnit(nn.Module):
    """silu(W x) · V x, with dropout."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(features, hidden)
        self.value = nn.Linear(features, hidden)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """The gated hidden units."""
        hidden: Tensor = self.dropout(nn.functional.silu(self.gate(x)) * self.value(x))
        return hidden


class ClampedScale(nn.Module):
    """x · s, s kept above 0.1."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The scaled x."""
        return x * self.scale.clamp(min=0.1)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "RMSNorm": lambda: RMSNorm(6),
    "GatedUnit": lambda: GatedUnit(6, 4),
    "ClampedScale": ClampedScale,
    "a block": lambda: nn.Sequential(RMSNorm(6), GatedUnit(6, 6), ClampedScale(), nn.Linear(6, 2)),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_gradients(gradcheck: GradcheckFixture, layer: Callable[[], nn.Module], mode: str) -> None:
    """Autograd agrees with the layer's own forward, for its parameters and its input."""
    torch.manual_seed(0)
    gradcheck(layer(), lambda y: y.square().mean(), torch.randn(5, 6, requires_grad=True), mode=mode)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_as_a_function(gradcheck: GradcheckFixture, layer: Callable[[], nn.Module]) -> None:
    """The gradient of the input is right too, in every memory layout, alone and together with the others."""
    torch.manual_seed(0)
    gradcheck.function(layer().eval(), (torch.randn(5, 6),))
