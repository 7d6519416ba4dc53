from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torch_gradcheck import GradientMonitor, Report, __version__, check_closure, check_function, check_module
from torch_gradcheck.pipeline import provenance
from torch_gradcheck.pipeline.provenance import _of_all, made_by
from torch_gradcheck.reporting.facts import Provenance

X = torch.tensor([[0.5, -1.0], [2.0, 0.25]])


class Model(nn.Linear):
    """A model of the user's own."""


def checked(**options: Any) -> Report:
    torch.manual_seed(0)
    return check_module(Model(2, 1), lambda y: (y**2).sum(), X, **options)


def origin(report: Report) -> Provenance:
    assert report.provenance is not None
    return report.provenance


def test_a_report_says_what_it_was_made_with_and_when() -> None:
    before = datetime.now(UTC).date()
    made = origin(checked())
    assert made.model == f"{Model.__module__}.Model"
    assert (made.torch_gradcheck, made.torch, made.numpy) == (__version__, torch.__version__, np.__version__)
    assert made.devices == ("cpu",)
    assert all((made.python, made.platform, made.processor))
    assert before <= date.fromisoformat(made.date) <= datetime.now(UTC).date()


@pytest.mark.parametrize(
    ("options", "again"),
    [
        ({}, "check_module(model, loss_fn, batch)"),
        ({"mode": "train", "seed": 3}, 'check_module(model, loss_fn, batch, mode="train", seed=3)'),
        ({"include": "w*"}, 'check_module(model, loss_fn, batch, include="w*")'),
        ({"exclude": ["bias", "b*"]}, 'check_module(model, loss_fn, batch, exclude=["bias", "b*"])'),
        ({"tolerance": 1e-5, "eps": 1e-6}, "check_module(model, loss_fn, batch, eps=1e-06)"),
        ({"dtype": torch.float32}, "check_module(model, loss_fn, batch, dtype=torch.float32)"),
        (
            {"gradients": {"weight": np.zeros((1, 2)), "bias": np.zeros(1)}},
            "check_module(model, loss_fn, batch, gradients=gradients)",
        ),
        ({"reference": nn.Linear(2, 1)}, "check_module(model, loss_fn, batch, reference=reference)"),
    ],
    ids=["plain", "mode and seed", "pattern", "patterns", "a default is left out", "dtype", "by hand", "reference"],
)
def test_a_report_says_how_to_make_it_again(options: dict[str, Any], again: str) -> None:
    assert origin(checked(**options)).again == again


def test_a_report_on_grad_a_closure_and_a_function_say_so_too() -> None:
    model = Model(2, 1)
    loss = lambda y: (y**2).sum()  # noqa: E731
    loss(model(X)).backward()
    in_grad = origin(check_module(model, loss, X, gradients="grad"))
    assert in_grad.again == 'check_module(model, loss_fn, batch, gradients="grad")'
    closure = origin(check_closure(model, lambda: loss(model(X)), perturb=0.5))
    assert closure.again == "check_closure(model, closure, perturb=0.5)"
    function = origin(check_function(torch.tanh, (X,), seed=5))
    assert (function.model, function.again) == ("tanh", "check_function(function, inputs, seed=5)")
    assert function.devices == ("cpu",)


def test_ranks_have_one_provenance_with_the_devices_of_all() -> None:
    one, other = origin(checked()), replace(origin(checked()), devices=("cuda:1 (GPU)",), processor="another")
    assert _of_all([one, other]) == replace(one, devices=("cpu", "cuda:1 (GPU)"))


def test_a_report_of_a_monitor_says_which_step_it_was() -> None:
    model = Model(2, 1)
    loss = nn.MSELoss()
    with GradientMonitor(model, loss, at=0, seed=3) as monitor:
        loss(model(X), X[:, :1]).backward()
        report = monitor.step((X, X[:, :1]))
    assert report is not None
    assert origin(report).again == "GradientMonitor(model, loss_fn, at=0, seed=3)"
    assert report.in_grad is not None
    assert report.in_grad.provenance is None, "which is part of it"


def test_reports_of_one_seed_are_equal_whenever_they_were_made() -> None:
    one, other = checked(), made_by(checked(), ["torch-gradcheck", "a file.py:problem"])
    assert origin(other).again == "torch-gradcheck 'a file.py:problem'"
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (SimpleNamespace(get_device_name=lambda device: f"GPU {device.index}"), "cuda:1 (GPU 1)"),
        (SimpleNamespace(), "cuda:1"),
    ],
    ids=["named", "without a name"],
)
def test_an_accelerator_is_named(module: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = SimpleNamespace(is_available=lambda: True, current_accelerator=lambda: torch.device("cuda"))
    monkeypatch.setattr(provenance.torch, "accelerator", accelerator)
    monkeypatch.setattr(provenance.torch, "get_device_module", lambda device: module)
    assert provenance._device_in_words(torch.device("cuda", 1)) == words
    assert provenance._device_in_words(torch.device("cpu")) == "cpu"
