"""A `.grad` whose step nobody saw is judged under an autocast only where its digits show one; else it is undecided."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor, Report, check_module
from torch_gradcheck.reporting.facts import Status

Spoil = Callable[[nn.Module], None]


def built() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.randn(16, 6), torch.randint(0, 3, (16,))


def loss_of(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """The loss without a call of the whole model, so that no hook sees its forward."""
    return nn.functional.cross_entropy(model[2](model[1](model[0](x))), y)


def after_backward(spoil: Spoil, smoothing: float = 0.0, autocast: bool = False) -> Report:
    """The `.grad` of a step that no monitor saw."""
    model, x, y = built()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = nn.functional.cross_entropy(model(x).float(), y, label_smoothing=smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    spoil(model)
    return check_module(model, nn.CrossEntropyLoss(), (x, y), gradients="grad")


def by_a_monitor(spoil: Spoil) -> Report:
    """The `.grad` of a loop that calls the parts of the model only."""
    model, x, y = built()
    with GradientMonitor.of_closure(
        model, lambda batch: loss_of(model, *batch), at=[0], on_mismatch="record", log=None
    ) as monitor:
        loss_of(model, x, y).backward()  # type: ignore[no-untyped-call]
        spoil(model)
        monitor.step((x, y))
    return monitor.reports[0]


def nothing(model: nn.Module) -> None:
    """Leaves `.grad` as it is."""


def noise(size: float) -> Spoil:
    def spoil(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= 1 + size * torch.randn(parameter.shape, generator=generator)

    return spoil


def stepped(model: nn.Module) -> None:
    torch.optim.SGD(model.parameters(), lr=0.01).step()


@pytest.mark.parametrize("checked", [after_backward, by_a_monitor])
@pytest.mark.parametrize(
    "spoil", [pytest.param(noise(1e-2), id="noise"), pytest.param(noise(1e-3), id="small noise"), stepped]
)
def test_what_float32_does_not_give_is_no_match_for_an_autocast_that_nobody_used(
    checked: Callable[[Spoil], Report], spoil: Spoil
) -> None:
    report = checked(spoil)
    assert not report.passed
    assert {row.status for row in report} == {Status.UNDECIDED}
    assert all("under autocast to bfloat16 it may give this" in row.reason for row in report)
    assert not any("computed in float32, autocast" in note for note in report.notes)


def test_another_loss_is_no_match_either() -> None:
    assert {row.status for row in after_backward(nothing, smoothing=0.01)} == {Status.UNDECIDED}


@pytest.mark.parametrize("checked", [after_backward, by_a_monitor])
def test_the_right_one_is_a_match(checked: Callable[[Spoil], Report]) -> None:
    assert checked(nothing).passed


def test_an_autocast_that_was_used_shows_in_the_digits() -> None:
    report = after_backward(nothing, autocast=True)
    assert report.passed
    assert any("computed in float32, autocast to bfloat16" in note for note in report.notes)


def test_large_errors_are_wrong_under_any_autocast() -> None:
    assert Status.MISMATCH in {row.status for row in after_backward(noise(0.3))}
