"""Correct models that leave float64 inside: casts, factories, constants, autocast, and tensors that losses hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error


class Mixed(nn.Module):
    """tanh(W·x + b), with `inside` applied to the sum; reports the dtype of what comes out of `inside`."""

    def __init__(self, inside: Callable[[Tensor], Tensor], report: Callable[[torch.dtype], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.inside = inside
        self.report = report

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(self.linear(x))
        self.report(y.dtype)
        return torch.tanh(y)


class Net(nn.Module):
    """Front → mixed → back."""

    def __init__(self, inside: Callable[[Tensor], Tensor], report: Callable[[torch.dtype], None]) -> None:
        super().__init__()
        self.front = nn.Linear(2, 3)
        self.mixed = Mixed(inside, report)
        self.back = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.mixed(self.front(x)).to(self.back.weight.dtype))


@dataclass(frozen=True)
class Cast:
    id: str
    inside: Callable[[Tensor], Tensor]


def _autocast(y: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return y @ torch.eye(3, dtype=y.dtype) + torch.nn.functional.linear(y, torch.ones(3, 3))


def _softmax_in_float32(y: Tensor) -> Tensor:
    return torch.softmax(y, -1, dtype=torch.float32).to(y.dtype) + y


def _norm_in_float32(y: Tensor) -> Tensor:
    wide = y.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(y)


def _rotary(y: Tensor) -> Tensor:
    angles = torch.arange(3, dtype=torch.float32) / 3
    return y * angles.cos() + y.roll(1, -1) * angles.sin()


def _written_into_float32(y: Tensor) -> Tensor:
    out = torch.zeros(y.shape, dtype=torch.float32)
    out[:, :2] = y[:, :2].float()
    out[:, 2] += y[:, 2].float()
    return out


def _from_numpy(y: Tensor) -> Tensor:
    return y * torch.from_numpy(np.linspace(0.1, 0.9, 3, dtype=np.float32))


def _masked_with_finfo(y: Tensor) -> Tensor:
    mask = torch.full((3, 3), torch.finfo(y.dtype).min).triu(1)
    return torch.softmax(y.float()[:, None] + mask, -1).sum(1)


def _default_dtype(y: Tensor) -> Tensor:
    return y.to(torch.get_default_dtype())


def _in_place_half(y: Tensor) -> Tensor:
    low = y.half()
    low.mul_(2).add_(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float16))
    return low


CASTS = [
    Cast("float", lambda y: y.float()),
    Cast("half", lambda y: y.half() * 1.1),
    Cast("bfloat16", lambda y: y.to(torch.bfloat16) * 1.1),
    Cast("and-back", lambda y: y.half().double().float().to(y.dtype)),
    Cast("type", lambda y: y.type(torch.float32)),
    Cast("to-other-tensor", lambda y: y.to(torch.zeros(1, dtype=torch.float16))),
    Cast("to-dtype-of-other", lambda y: y.to(torch.ones(1, dtype=torch.bfloat16).dtype)),
    Cast("to-with-memory-format", lambda y: torch.empty_like(y, dtype=torch.float16).copy_(y) + y),
    Cast("zeros", lambda y: y + torch.zeros(3, dtype=torch.float32)),
    Cast("ones-like", lambda y: y.float() * torch.ones_like(y, dtype=torch.float16)),
    Cast("arange", lambda y: y * torch.arange(1, 4, dtype=torch.float32)),
    Cast("eye", lambda y: y.float() @ torch.eye(3)),
    Cast("new-tensor", lambda y: y * y.new_tensor([0.1, 0.2, 0.3])),
    Cast("constant", lambda y: y.float() * torch.tensor([0.1, 0.2, 0.3], dtype=torch.float32)),
    Cast("float-tensor-constructor", lambda y: y.float() * torch.FloatTensor([0.1, 0.2, 0.3])),
    Cast("sum-dtype", lambda y: y + y.sum(-1, keepdim=True, dtype=torch.float32)),
    Cast("cumsum-dtype", lambda y: y.cumsum(-1, dtype=torch.float32)),
    Cast("softmax-dtype", _softmax_in_float32),
    Cast("rms-norm-in-float32", _norm_in_float32),
    Cast("rotary-embedding", _rotary),
    Cast("written-into-float32", _written_into_float32),
    Cast("numpy-constant", _from_numpy),
    Cast("finfo-mask", _masked_with_finfo),
    Cast("autocast", _autocast),
    Cast("default-dtype", _default_dtype),
    Cast("in-place-half", _in_place_half),
    Cast("complex", lambda y: torch.complex(y.float(), y.float() * 2).abs()),
    Cast("fft", lambda y: torch.fft.rfft(y.float()).abs() @ torch.ones(2, 3)),
    Cast("einsum", lambda y: torch.einsum("bi,ij->bj", y.float(), torch.eye(3))),
    Cast("where-scalar", lambda y: torch.where(y > 0, y.float(), torch.tensor(0.1, dtype=torch.float32) * y)),
]


def casting_net(cast: Cast) -> tuple[Net, Any, set[torch.dtype]]:
    """A model with the cast inside, its batch, and the dtypes that come out of the cast when it runs."""
    torch.manual_seed(8)
    seen: set[torch.dtype] = set()
    return Net(cast.inside, seen.add), (torch.randn(4, 2), torch.randn(4, 1)), seen


class ComplexNet(nn.Module):
    """complex64 parameters, buffers and constants, with a real output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        self.gain = nn.Parameter(torch.randn(2))
        self.register_buffer("phase", torch.polar(torch.ones(2), torch.tensor([0.1, 0.7])))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.complex64) @ self.weight * self.phase + self.bias
        return torch.view_as_real(torch.tanh(y) * torch.tensor(0.5 + 0.3j, dtype=torch.complex64)).sum(-1) * self.gain


GLOBAL_WEIGHTS = torch.tensor([0.3, 1.7], dtype=torch.float32)


def loss_with_a_global_tensor(y: Tensor, t: Tensor) -> Tensor:
    return ((y - t) ** 2 * GLOBAL_WEIGHTS).mean()


def loss_with_a_local_tensor() -> Callable[[Tensor, Tensor], Tensor]:
    weights = torch.tensor([0.3, 1.7], dtype=torch.float32)
    return lambda y, t: ((y - t) ** 2 * weights).mean()


def loss_in_float32(y: Tensor, t: Tensor) -> Tensor:
    return squared_error(y.float(), t.float())


class Energy(nn.Module):
    """A potential energy of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).sum()


class Forces(Energy):
    """Minus the gradient of the energy, as a differentiable output."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(super().forward(x), x, create_graph=True)
        return -grad


class Penalised:
    """A critic's loss with a gradient penalty, as in WGAN-GP, over the model it is given."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, score: Tensor, points: Tensor) -> Tensor:
        points = points.detach().requires_grad_()
        (grad,) = torch.autograd.grad(self.model(points).sum(), points, create_graph=True)
        return score.mean() + ((grad.norm(dim=1) - 1) ** 2).mean()


def inner_step_loss(model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """MAML: the loss after one differentiable step on the parameters."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    loss = squared_error(torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,)), t)
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    moved = {n: p - 0.1 * g for n, p, g in zip(names, parameters, grads, strict=True)}
    return squared_error(torch.func.functional_call(model, moved, (x,)), t)
