"""Right models with parts that round or jump where nobody sees it are not accused, and do not count as zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module


class HalfTanh(torch.autograd.Function):
    """tanh by a kernel that rounds to float16, out of torch's sight; the gradient is `off` times the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, off: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.off = off
        return torch.from_numpy(np.tanh(x.detach().numpy()).astype(np.float16).astype(np.float64))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.off * grad * (1 - x.tanh() ** 2), None


class InHalf(nn.Module):
    def __init__(self, off: float) -> None:
        super().__init__()
        self.a, self.c, self.off = nn.Linear(4, 4), nn.Linear(4, 2), off

    def forward(self, x: Tensor) -> Tensor:
        return self.c(HalfTanh.apply(self.a(x), self.off))


def in_half(seed: int, off: float = 1.0) -> Report:
    torch.manual_seed(seed)
    return check_module(InHalf(off), nn.MSELoss(), (torch.randn(8, 4), torch.randn(8, 2)))


@pytest.mark.parametrize("seed", [0, 2, 5, 9])
def test_small_gradients_through_a_float16_kernel(seed: int) -> None:
    assert not in_half(seed).mismatches


@pytest.mark.parametrize("off", [2.0, 1.5, -1.0])
def test_wrong_ones_are_found(off: float) -> None:
    assert "a.weight" in {row.name for row in in_half(5, off).mismatches}


class Rounding(nn.Module):
    """tanh(h·W) + B − B: `first` moves J by stairs that seldom show, `second` by many."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second, self.third = (
            nn.Parameter(factor * torch.randn(5, 5, dtype=torch.float64)) for factor in (1.0, size, 1.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.first) + 27000.0
        return ((torch.tanh(h @ self.second) + 2.7e6) - 2.7e6) @ self.third


@pytest.mark.parametrize("seed", [12, 16, 21])
def test_rounding_that_a_few_points_do_not_see_is_shared_noise(seed: int) -> None:
    torch.manual_seed(seed)
    model, x = Rounding(10.0 ** (-6 + seed % 3)), torch.randn(4, 5, dtype=torch.float64)
    weights = torch.randn(4, 5, dtype=torch.float64)

    assert not check_module(model, lambda y: (y * weights).sum(), x).mismatches


class Flipped(torch.autograd.Function):
    """x with the gradient of −3x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -3 * grad


class Jumping(nn.Module):
    """J jumps at θ along every entry of w, and has a slope besides."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.w, self.v, self.right = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2)), right

    def forward(self, x: Tensor) -> Tensor:
        smooth = self.w if self.right else Flipped.apply(self.w)
        return (self.w.sign() * x).sum() + (smooth * x).sum() + (self.v * x).tanh().sum()


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_jump_at_theta_is_not_called_zero(right: bool, method: str) -> None:
    report = check_module(Jumping(right), lambda y: y, torch.tensor([0.7, 1.3]), method=method)

    assert report["v"].status == "match"
    assert report["w"].status in ({"undecided"} if right else {"undecided", "mismatch"})
    assert not report.proven


MEETING = {
    "x": lambda h: h.relu() - (-h).relu(),
    "leaky": lambda h: nn.functional.leaky_relu(h, 0.1) - (-h).relu(),
    "clamped": lambda h: h.clamp(min=0) + h.clamp(max=0),
    "topk": lambda h: h.topk(2, -1)[0].sum(-1, keepdim=True) + h,
}


class AtZero(nn.Module):
    """A layer of zeros before kinks that meet there; with a wrong factor behind it, if asked for."""

    def __init__(self, activation: str, right: bool) -> None:
        super().__init__()
        self.a, self.b, self.activation, self.right = nn.Linear(3, 3), nn.Linear(3, 1), activation, right
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.a.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(MEETING[self.activation](self.a(x)) + x)
        return y if self.right else Flipped.apply(y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("activation", MEETING)
def test_what_autograd_chooses_where_kinks_meet(activation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    batch = torch.randn(6, 3), torch.randn(6, 1)
    assert not check_module(AtZero(activation, right=True), nn.MSELoss(), batch, dtype=dtype).mismatches
    wrong = check_module(AtZero(activation, right=False), nn.MSELoss(), batch, dtype=dtype)
    assert {row.name for row in wrong.mismatches} >= {"b.weight", "b.bias"}
