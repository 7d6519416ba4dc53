"""Promise: judging `.grad` changes nothing of the caller's, on return, on exceptions and on Ctrl-C."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.fx.experimental.symbolic_shapes  # torch imports it in a first backward, and sympy sets a warning filter
from torch import Tensor, nn

from tests.zoo.snapshot import Snapshot
from tests.zoo.training import REGIMES, Regime, Trained, backward, built
from torch_gradcheck import GradientMonitor, check_module


class Interrupts(nn.Module):
    """Raises in its n-th forward from now."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.armed: list[int] = [10**9]

    def forward(self, x: Tensor) -> Tensor:
        self.armed[0] -= 1
        if self.armed[0] == 0:
            raise self.error("here")
        return x


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("model", ["mlp", "spectral", "sparse"])
def test_on_return(model: str, regime: str) -> None:
    trained = built(model, REGIMES[regime])
    backward(trained, REGIMES[regime])
    before = Snapshot(**trained._asdict())
    check_module(trained.model, trained.loss_fn, trained.batch, gradients="grad")
    assert before.changes() == []


def stepped(trained: Trained, regime: Regime) -> Callable[[], object]:
    monitor = GradientMonitor(trained.model, trained.loss_fn, include="0.*")
    backward(trained, regime)
    return lambda: monitor.step(trained.batch)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("forward", [1, 2, 12, 13, 15, 18, 19])
def test_on_an_exception_in_any_part_of_it(error: type[BaseException], forward: int) -> None:
    """Forwards of the model's check, of the native runs, of the runs with noise, and of the second half."""
    torch.manual_seed(0)
    stop = Interrupts(error)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.2), stop)
    trained = Trained(model, lambda y: y.square().sum(), (torch.randn(5, 2),))
    step = stepped(trained, REGIMES["float32"])
    hooks = dict(model._forward_pre_hooks)
    before = Snapshot(model=model, batch=trained.batch)
    stop.armed[0] = forward
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        step()
    stop.armed[0] = 10**9
    changed = [line for line in before.changes() if "armed" not in line and "_forward_pre_hooks" not in line]
    assert changed == []
    assert hooks
    assert not model._forward_pre_hooks, "the step is over"
