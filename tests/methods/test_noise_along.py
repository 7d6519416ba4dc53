"""Noise belongs to the parameters that it moves with: the others are judged by their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.methods.test_problem import loan
from torch_gradcheck import Report, check_module


class Scaled(torch.autograd.Function):
    """The identity, whose backward is `factor` times the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


class ClassToken(nn.Module):
    """A class token of almost nothing, normed, beside ordinary layers, as a vision model starts out.

    J is steep along the token and along the bias that is added to it: it curves within 1e-9.
    """

    def __init__(self, steep: bool = True, factor: float = 1.0) -> None:
        super().__init__()
        self.token = nn.Parameter((1e-10 if steep else 1.0) * torch.randn(8, dtype=torch.float64))
        self.before = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.bias = nn.Parameter(torch.zeros(8))
        self.after = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        token = self.token + self.bias
        token = token / (token.square().mean() + 1e-20).sqrt()
        y: Tensor = self.after(Scaled.apply(self.before(x), self.factor) + token)
        return y


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 6), torch.arange(5) % 3


def checked(model: nn.Module, **options: Any) -> Report:
    return check_module(model, nn.CrossEntropyLoss(), batch(), progress=False, **options)


STEEP = {"token", "bias"}


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_only_what_is_steep_stays_undecided(method: str) -> None:
    torch.manual_seed(0)
    report = checked(ClassToken(), method=method)
    rows = {row.name: str(row.status) for row in report}
    assert {name for name, status in rows.items() if status != "match"} <= STEEP, str(report)
    assert "mismatch" not in rows.values()


@pytest.mark.slow
def test_a_mistake_beside_it_is_found() -> None:
    torch.manual_seed(0)
    wrong = {row.name for row in checked(ClassToken(factor=1.01), method="exact").mismatches}
    assert wrong == {"before.0.weight", "before.0.bias", "before.2.weight", "before.2.bias"}


def test_the_noise_of_a_parameter_is_measured_once_and_where_there_is_need() -> None:
    torch.manual_seed(0)
    model, given = ClassToken(), batch()
    with loan(model, (given[0], torch.randn(5, 3))) as problem:
        steep = [position for position, entry in enumerate(problem.theta) if entry.name == "bias"]
        others = [position for position in problem.theta.checked if position not in steep]
        assert problem.noise.sigma > 1e-6
        assert problem.noise_along(others).sigma < 1e-14
        before = problem.objective.evaluations
        assert problem.noise_along(steep) == problem.noise
        assert problem.noise_along([others[0], steep[0]]) == problem.noise
        assert problem.objective.evaluations == before


def test_an_ordinary_model_has_one_noise_and_pays_for_one() -> None:
    torch.manual_seed(0)
    with loan(ClassToken(steep=False), (batch()[0], torch.randn(5, 3))) as problem:
        noise, before = problem.noise, problem.objective.evaluations
        assert all(problem.noise_along([position]) is noise for position in problem.theta.checked)
        assert problem.objective.evaluations == before


class InSingle(nn.Module):
    """Two layers and between them a kernel that computes in float32, out of sight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(Single.apply(self.first(x)))
        return y


class Single(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.detach().numpy().astype(np.float32)).astype(np.float64))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad / x.cosh() ** 2


def test_noise_of_a_hidden_precision_is_shared() -> None:
    """J climbs stairs along all that is before the kernel, whether or not a measurement along some of it sees them."""
    torch.manual_seed(0)
    with loan(InSingle(), (batch()[0], torch.randn(5, 3))) as problem:
        assert problem.noise.sigma > 1e-9
        assert all(problem.noise_along([position]) is problem.noise for position in problem.theta.checked)


def test_a_note_names_what_the_noise_belongs_to() -> None:
    torch.manual_seed(0)
    notes = [note for note in checked(ClassToken(), method="exact").notes if "belongs to" in note]
    assert len(notes) == 1
    assert "that noise belongs to bias," in notes[0]
    assert "Along the 9 others" in notes[0]
