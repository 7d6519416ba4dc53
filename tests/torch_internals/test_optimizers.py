"""Why a gradient scaler is looked into: `.grad` may or may not still carry the loss scale."""

from __future__ import annotations

import pytest
import torch

from torch_gradcheck.torch_internals.missing import MissingInTorchError
from torch_gradcheck.torch_internals.optimizers import has_unscaled, skips_infinite


def test_a_scaler_tells_whether_it_has_unscaled_the_gradients_of_this_step() -> None:
    w = torch.ones(2, requires_grad=True)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD([w])
    scaler.scale(w.sum()).backward()
    assert not has_unscaled(scaler)
    scaler.unscale_(optimizer)
    assert has_unscaled(scaler)
    assert w.grad is not None
    assert w.grad.tolist() == [1, 1]
    scaler.step(optimizer)
    scaler.update()
    assert not has_unscaled(scaler)


def test_a_scaler_of_another_torch_is_named() -> None:
    with pytest.raises(MissingInTorchError, match="_per_optimizer_states"):
        has_unscaled(object())  # type: ignore[arg-type]


def test_a_scaler_skips_what_it_has_found_infinite_or_has_still_to_look_at() -> None:
    w = torch.ones(2, requires_grad=True)
    scaler, optimizer = torch.amp.GradScaler("cpu", init_scale=8.0), torch.optim.SGD([w])
    scaler.scale(w.sum()).backward()
    assert skips_infinite(scaler)
    scaler.unscale_(optimizer)
    assert not skips_infinite(scaler), "it has found none"
    scaler.step(optimizer)
    scaler.update()
    w.grad = torch.full((2,), torch.inf)
    scaler.unscale_(optimizer)
    assert skips_infinite(scaler)


def test_a_scaler_that_is_off_does_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert not has_unscaled(scaler)
    assert not skips_infinite(scaler)
