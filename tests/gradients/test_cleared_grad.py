"""A closure that runs its own backward is told where it does not clear `.grad` first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_closure


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def step(clear: Callable[[nn.Sequential], object], model: nn.Sequential) -> Callable[[], Tensor]:
    x = torch.ones(5, 3)

    def closure() -> Tensor:
        clear(model)
        loss = model(x).square().mean()
        loss.backward()
        return loss

    return closure


def to_zero(model: nn.Module) -> None:
    model.zero_grad(set_to_none=False)


def refuses(model: nn.Module) -> None:
    model.zero_grad() if all(each.grad is None or each.grad.norm() < 1e9 for each in model.parameters()) else 1 / 0


@pytest.mark.parametrize("clear", [nn.Module.zero_grad, to_zero, refuses])
def test_one_that_clears_is_not_told(clear: Callable[[nn.Module], object]) -> None:
    model = net()
    report = check_closure(model, step(clear, model))
    assert report.passed
    assert not any("does not clear .grad" in note for note in report.notes)


@pytest.mark.parametrize(
    ("clear", "which"),
    [
        pytest.param(lambda model: None, "4 of 4 tensors ('0.weight', '0.bias', '2.weight' and 1 more)", id="never"),
        pytest.param(lambda model: model[0].zero_grad(), "2 of 4 tensors ('2.weight', '2.bias')", id="one layer only"),
    ],
)
def test_what_is_not_cleared_is_named_and_grad_is_as_before(clear: Callable[[nn.Module], object], which: str) -> None:
    model = net()
    model[2].weight.grad = kept = torch.ones(2, 4)
    report = check_closure(model, step(clear, model))
    assert report.passed
    (told,) = [note for note in report.notes if "does not clear .grad" in note]
    assert which in told
    assert model[2].weight.grad is kept
    assert torch.equal(kept, torch.ones(2, 4))
    assert model[0].weight.grad is None


def test_one_that_returns_its_loss_is_not_asked() -> None:
    model = net()
    report = check_closure(model, lambda: model(torch.ones(5, 3)).square().mean())
    assert not any("does not clear" in note for note in report.notes)
