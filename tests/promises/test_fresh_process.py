"""Random numbers go on as if no check had been, in a process where each part of the package and of torch is used first.

Libraries that a check imports late (rich, sympy and dynamo of torch, jinja2, pdb) may draw random numbers when they are
imported, so a process that has them loaded shows nothing.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import random
import numpy as np
import torch
from torch import nn

random.seed(1), np.random.seed(2), torch.manual_seed(3)


class WrongFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad


class Wrong(nn.Module):
    def forward(self, x):
        return WrongFunction.apply(x)


from torch_gradcheck import GradientMonitor, blind_spots, check_closure, check_module

right, wrong = (nn.Sequential(nn.Linear(4, 3), layer, nn.Linear(3, 3)) for layer in (nn.Tanh(), Wrong()))
loss_fn, batch = nn.CrossEntropyLoss(), (torch.randn(5, 4), torch.randint(0, 3, (5,)))


def state():
    numpy = np.random.get_state()
    return random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()


def monitored():
    with GradientMonitor(right, loss_fn) as monitor:
        right.zero_grad()
        loss_fn(right(batch[0]), batch[1]).backward()
        monitor.step(batch)
    return str(monitor)


def report(model=wrong, **options):
    return check_module(model, loss_fn, batch, **options)


def refused(call):
    try:
        call()
    except Exception:
        return
    raise AssertionError("nothing was refused")


FIRSTS = {
    "a right model": lambda: report(right),
    "a wrong model": report,
    "printed": lambda: str(report(seed=1)),
    "a bar": lambda: report(progress=True),
    "html": lambda: report()._repr_html_(),
    "json": lambda: report().to_json(),
    "an error": lambda: refused(report().raise_if_failed),
    "a bad request": lambda: refused(lambda: report(method="none")),
    "projected": lambda: report(method="projected"),
    "float32": lambda: report(dtype=torch.float32),
    "held": lambda: report(hold_detached=True),
    "perturbed": lambda: report(perturb=0.1),
    "a closure": lambda: check_closure(wrong, lambda: loss_fn(wrong(batch[0]), batch[1])),
    "grad": lambda: (loss_fn(wrong(batch[0]), batch[1]).backward(), report(gradients="grad")),
    "blind spots": lambda: str(blind_spots(right, loss_fn, batch)),
    "monitored": monitored,
    "compiled": lambda: report(torch.compile(wrong, backend="aot_eager")),
}
for name in FIRSTS:
    before = state()
    FIRSTS[name]()
    if state() != before:
        print("random numbers were drawn by:", name)
"""


@pytest.mark.slow
def test_random_numbers_are_those_of_a_run_without_checks() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False)

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
