from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from torch_gradcheck import check_closure, check_module

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def notes(model: nn.Module, loss: Callable[..., Any] = torch.sum, **options: Any) -> str:
    return "\n".join(check_module(model, loss, X, **options).notes)


class Casts(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))


def test_the_step_and_why_it_was_widened() -> None:
    assert "the step eps was widened from 1e-07 to" in notes(model())


def test_a_given_step_that_is_good_needs_no_note() -> None:
    assert "eps" not in notes(model(), eps=1e-5)


@pytest.mark.parametrize("eps", [1e-14, 1e-12])
def test_a_given_step_that_drowns_in_noise(eps: float) -> None:
    assert f"eps = {eps:g} drowns in noise for 4 of 4 parameters" in notes(model(), eps=eps)


def test_casts_that_were_overridden_with_their_modules() -> None:
    found = notes(nn.Sequential(nn.Linear(3, 3), Casts(3, 2)))
    assert "casts and tensors of a lower precision were computed in float64" in found
    assert " in 1" in found


def test_many_modules_are_counted() -> None:
    found = notes(nn.Sequential(*[Casts(3, 3) for _ in range(5)]))
    assert "in 0, 1, 2 and 2 more" in found


def test_without_casts_no_note() -> None:
    assert "lower precision" not in notes(model())


def test_a_loss_that_needs_a_graph() -> None:
    def penalty(y: Tensor) -> Tensor:
        [g] = torch.autograd.grad(y.sum(), y, create_graph=True) if y.requires_grad else [torch.zeros(())]
        return (y * g).sum()

    assert "J was evaluated with autograd on" in notes(model(), penalty)


def test_a_closure_that_runs_backward() -> None:
    net = nn.Linear(3, 1)

    def closure() -> Tensor:
        net.zero_grad()
        loss = net(X).sum()
        loss.backward()
        return loss

    report = check_closure(net, closure)
    assert any("the closure calls backward() itself" in note for note in report.notes)


def test_equal_calls_that_differ_by_roundoff() -> None:
    calls = iter(range(10**6))
    found = notes(model(), lambda y: y.square().sum() * (1 + (next(calls) == 0) * 2.0**-50))
    assert "two equal calls differ by" in found


def test_what_was_not_proven_is_named() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Softmax(dim=1))
    assert "not proven right: 0.weight, 0.bias; their rows say why" in notes(net)


def test_many_names_are_counted() -> None:
    net = nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)], nn.Softmax(dim=1))
    assert "not proven right: 0.weight, 0.bias, 1.weight and 3 more" in notes(net)


def test_rows_left_out_on_purpose() -> None:
    net = nn.Embedding(5, 2, padding_idx=0)
    report = check_module(net, torch.sum, torch.tensor([0, 1, 2]))
    assert any("padding_idx" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm], ids=["new", "old"])
def test_power_iterations_held_still_on_purpose(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(norm(nn.Linear(5, 4)), nn.Tanh())
    sentence = "the power iteration of 0"
    assert not any(sentence in note for note in check_module(net, torch.sum, torch.rand(3, 5)).notes)
    report = check_module(net, torch.sum, torch.rand(3, 5), mode="train")
    assert report.passed
    assert any(sentence in note for note in report.notes)
    net.train()
    vectors = [net(torch.rand(3, 5)) is not None and {k: v.clone() for k, v in net.named_buffers()} for _ in range(2)]
    assert any(not torch.equal(vectors[0][name], vectors[1][name]) for name in vectors[0]), "iterates again afterwards"


def test_nothing_but_sentences() -> None:
    report = check_module(model(), torch.sum, X)
    assert all(isinstance(note, str) and note for note in report.notes)
