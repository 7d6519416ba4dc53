"""hold_detached: what leaves the graph is held at its value at θ, whichever way it leaves, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck import Report, check_closure
from torch_gradcheck.reporting.facts import Status

Closure = Callable[[], Tensor]

Case = Callable[[], tuple[nn.Module, Closure]]


def _data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _two(width: int = 3) -> nn.ModuleDict:
    return nn.ModuleDict({"a": nn.Linear(4, width), "b": nn.Linear(width, 2)})


class Half(torch.autograd.Function):
    """tanh with a backward that is half of the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 0.5 * grads[0] * (1 - y * y)


class Right(torch.autograd.Function):
    """x · sigmoid(x), whose forward computes without a graph, and saves what it computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = torch.sigmoid(x.detach().data)
        with torch.no_grad():
            ctx.slope = s * (1 + x * (1 - s))
        with torch.enable_grad():
            s = s.clone()
        return x * s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.slope


right: Callable[[Tensor], Tensor] = Right.apply
"""An alias made before any check."""


def straight_through() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return model["b"](h + (torch.round(2 * h) / 2 - h).detach()).square().mean()

    return model, closure


def vq_vae() -> tuple[nn.Module, Closure]:
    model, x = (
        nn.ModuleDict({"encoder": nn.Linear(4, 2), "codes": nn.Embedding(5, 2), "decoder": nn.Linear(2, 4)}),
        _data(6, 4),
    )

    def closure() -> Tensor:
        z = model["encoder"](x)
        q = model["codes"](torch.cdist(z, model["codes"].weight).argmin(dim=1))
        decoded = model["decoder"](z + (q - z).detach())
        return F.mse_loss(decoded, x) + F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())

    return model, closure


def gumbel() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)
    return model, lambda: model["b"](F.gumbel_softmax(model["a"](x), hard=True)).square().mean()


def simsiam() -> tuple[nn.Module, Closure]:
    model, x, y = nn.ModuleDict({"f": nn.Linear(4, 3), "p": nn.Linear(3, 3)}), _data(5, 4), _data(10, 4)[5:]

    def closure() -> Tensor:
        z, w = model["f"](x), model["f"](y)
        p, q = model["p"](z), model["p"](w)
        return -F.cosine_similarity(p, w.detach()).mean() - F.cosine_similarity(q, z.detach()).mean()

    return model, closure


def grpo() -> tuple[nn.Module, Closure]:
    model, x, advantages = nn.Linear(4, 3), _data(5, 4), _data(5)

    def closure() -> Tensor:
        log_p = F.log_softmax(model(x), dim=1)[:, 1]
        return -(torch.exp(log_p - log_p.detach()) * advantages).mean()

    return model, closure


def td_targets() -> tuple[nn.Module, Closure]:
    model, x, y = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), _data(5, 4), _data(10, 4)[5:]

    def closure() -> Tensor:
        with torch.no_grad():
            target = 1.0 + 0.9 * model(y).amax(dim=1)
        return F.smooth_l1_loss(model(x)[:, 0], target)

    return model, closure


def by_data() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return (model["b"](h) * h.data.norm()).square().mean() + (model["b"].weight.data * model["b"].weight).sum()

    return model, closure


def by_item() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        return (model["b"](h / h.norm().item())).square().mean()

    return model, closure


def by_list_and_array() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        sizes = torch.tensor([sum(map(abs, row)) for row in h.tolist()], dtype=h.dtype)
        means = torch.from_numpy(np.abs(h.detach().numpy()).mean(axis=0))
        return (model["b"](h * means).square().mean(dim=1) / sizes).sum()

    return model, closure


def views_without_grad() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            first = h[:1].view(-1)
        return model["b"](h * first).square().mean()

    return model, closure


def new_leaf() -> tuple[nn.Module, Closure]:
    """A gradient penalty at a detached point, whose formula reads the point again."""
    model = nn.ModuleDict({"g": nn.Linear(4, 3), "d": nn.Linear(3, 1)})
    x = _data(5, 4)

    def closure() -> Tensor:
        fake = model["g"](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(model["d"](fake**3).sum(), fake, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean() + model["d"](model["g"](x)).tanh().mean()

    return model, closure


def gradient_without_graph() -> tuple[nn.Module, Closure]:
    """First-order MAML: the inner gradient is a constant."""
    model, x = nn.Linear(4, 2), _data(5, 4)

    def closure() -> Tensor:
        grads = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
        weight, bias = (p - 0.5 * g for p, g in zip(model.parameters(), grads, strict=True))
        return F.linear(x, weight, bias).tanh().square().mean()

    return model, closure


def inference_mode() -> tuple[nn.Module, Closure]:
    model, x = _two(), _data(5, 4)

    def closure() -> Tensor:
        with torch.inference_mode():
            target = model["a"](x)
        return (model["a"](x).tanh() - target.clone()).square().mean() + model["b"].weight.sum()

    return model, closure


def running_statistic() -> tuple[nn.Module, Closure]:
    """A buffer that the forward moves, and reads, under no_grad."""
    model, x = _two(), _data(5, 4)
    model.register_buffer("mean", torch.zeros(3))

    def closure() -> Tensor:
        h = model["a"](x)
        with torch.no_grad():
            model.get_buffer("mean").mul_(0.9).add_(0.1 * h.mean(dim=0))
        return model["b"](h - model.get_buffer("mean")).square().mean()

    return model, closure


def in_a_checkpoint(use_reentrant: bool) -> Case:
    def case() -> tuple[nn.Module, Closure]:
        model, x = _two(), _data(5, 4)

        def block(x: Tensor) -> Tensor:
            h = model["a"](x)
            return h + (h.sign() - h).detach()

        def closure() -> Tensor:
            h = checkpoint(block, x.clone().requires_grad_(), use_reentrant=use_reentrant)
            return model["b"](h).square().mean()

        return model, closure

    return case


CASES: dict[str, Case] = {
    "straight-through": straight_through,
    "VQ-VAE": vq_vae,
    "Gumbel": gumbel,
    "SimSiam": simsiam,
    "GRPO": grpo,
    "TD targets": td_targets,
    ".data": by_data,
    ".item()": by_item,
    ".tolist() and .numpy()": by_list_and_array,
    "views under no_grad": views_without_grad,
    "new leaf": new_leaf,
    "first-order MAML": gradient_without_graph,
    "inference mode": inference_mode,
    "running statistic": running_statistic,
    "checkpoint": in_a_checkpoint(False),
    "reentrant checkpoint": in_a_checkpoint(True),
}


def _checked(case: Case, wrap: Callable[[Closure], Closure] = lambda closure: closure, **options: Any) -> Report:
    torch.manual_seed(0)
    model, closure = case()
    return check_closure(model, wrap(closure), **options)


@pytest.mark.parametrize("name", CASES)
def test_a_declared_stop_gradient_is_right(name: str) -> None:
    report = _checked(CASES[name], hold_detached=True)
    assert report.passed, report
    assert {row.status for row in report} <= {Status.MATCH, Status.FLAT, Status.UNUSED}
    assert any("held at its value at θ" in note and "test_held_values.py:" in note for note in report.notes)


@pytest.mark.parametrize("name", CASES)
def test_the_same_is_a_mismatch_that_says_how_to_declare_it(name: str) -> None:
    report = _checked(CASES[name])
    assert not report.passed
    assert "declare it with hold_detached=True" in report.notes[0]
    assert "test_held_values.py:" in report.notes[0]
