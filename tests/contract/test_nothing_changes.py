"""Entries of the contract leave all as it was: arguments, gradients, random state, switches, the garbage collector."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from tests.contract.made_functions import drawn, function, tried
from tests.zoo.snapshot import Snapshot
from torch_gradcheck.contract.entries import ENTRIES


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _backward(ctx: Any, g: Any) -> Any:
    x, w = ctx.saved_tensors
    return g * w, g * x


def _jvp(ctx: Any, dx: Any, dw: Any) -> Any:
    x, w = ctx.saved_tensors
    return dx * w + dw * x


def _raising(ctx: Any, g: Any) -> Any:
    raise RuntimeError("no backward")


RIGHT = function("Times", lambda x, w: x * w, _backward, setup_context=_setup, jvp=_jvp, generate_vmap_rule=True)
RAISING = function("Raising", lambda ctx, x, w: x * w, _raising)


class Layer(nn.Module):
    """A module with a buffer that every call writes to, and an attribute that every call replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(drawn(3, 4, seed=2))
        self.weight.grad = torch.ones(3, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.last: Any = None

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y: torch.Tensor = RIGHT(RIGHT(x, self.weight), w)
        self.last = y
        return y


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("kind", ["right", "raising", "module"])
def test_nothing_changes(name: str, kind: str) -> None:
    run: Any = {"right": RIGHT, "raising": RAISING, "module": Layer()}[kind]
    inputs = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    inputs[0].grad = torch.ones(3, 4)
    before = Snapshot(inputs=inputs, model=run if kind == "module" else None)
    with suppress(RuntimeError):
        tried(name, run, *inputs)
    assert before.changes() == []
