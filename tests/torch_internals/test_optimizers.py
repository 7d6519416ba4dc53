"""Why a gradient scaler is looked into, and optimizers are looked for: `.grad` may or may not still carry the scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torch_gradcheck.torch_internals.missing import MissingInTorchError
from torch_gradcheck.torch_internals.optimizers import Look, Scaling, optimizers_of, parameters_of


def scaled(weights: list[torch.Tensor]) -> torch.amp.GradScaler:
    """A scaler after the backward of a step."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.stack([weight.sum() for weight in weights]).sum()).backward()
    return scaler


def leaves(count: int) -> list[torch.Tensor]:
    return [torch.ones(2, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_a_scaler_tells_whether_it_has_unscaled_the_gradients_of_this_step(fused: bool) -> None:
    w, other = leaves(2)
    scaler, optimizer = scaled([w, other]), torch.optim.SGD([w], fused=fused)
    assert Scaling.of(scaler).carried(w) == 8.0
    scaler.unscale_(optimizer)
    assert w.grad is not None
    assert w.grad.tolist() == [1, 1]
    assert (Scaling.of(scaler).carried(w), Scaling.of(scaler).carried(other)) == (1.0, 8.0)
    scaler.step(optimizer)
    assert Scaling.of(scaler).carried(w) == 1.0
    scaler.update()
    assert not Scaling.of(scaler).has_unscaled


def test_a_scaler_of_another_torch_is_named() -> None:
    other: Any = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 1.0)
    with pytest.raises(MissingInTorchError, match="_per_optimizer_states"):
        Scaling.of(other)


def test_a_scaler_skips_what_it_has_found_infinite_or_has_still_to_look_at() -> None:
    w, other = leaves(2)
    scaler, optimizer = scaled([w, other]), torch.optim.SGD([w])
    assert Scaling.of(scaler).skipped_of([w, other]) == {0, 1}
    scaler.unscale_(optimizer)
    assert Scaling.of(scaler).skipped_of([w, other]) == {1}, "it has found nothing infinite in w"
    scaler.step(optimizer)
    scaler.update()
    w.grad = torch.full((2,), torch.inf)
    scaler.unscale_(optimizer)
    assert Scaling.of(scaler).skips(w)


def test_an_optimizer_that_is_not_found_may_step_anything() -> None:
    (w,) = leaves(1)
    scaling = Scaling(8.0, True, [Look(None, infinite=False)])
    assert (scaling.carried(w), scaling.skips(w)) == (1.0, False)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", enabled=False)], ids=["none", "off"])
def test_a_scaler_that_is_off_does_nothing(scaler: torch.amp.GradScaler | None) -> None:
    (w,) = leaves(1)
    assert (Scaling.of(scaler).carried(w), Scaling.of(scaler).skips(w)) == (1.0, False)


def test_the_optimizers_of_parameters_are_found() -> None:
    one, two, three = leaves(3)
    first, second = torch.optim.SGD([one, two]), torch.optim.Adam([three])
    assert optimizers_of([two]) == [first]
    assert {id(each) for each in optimizers_of([one, two, three])} == {id(first), id(second)}
    assert parameters_of(first)[1] is two
    assert optimizers_of(leaves(1)) == []


def test_a_fused_step_takes_the_scale_out_of_grad_itself() -> None:
    (w,) = leaves(1)
    scaler, optimizer = scaled([w]), torch.optim.SGD([w], fused=True)
    scaler.step(optimizer)
    assert w.grad is not None
    assert w.grad.tolist() == [1, 1]
    assert Scaling.of(scaler).carried(w) == 1.0
