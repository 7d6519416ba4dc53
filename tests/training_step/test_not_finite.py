"""NaN and infinity in `.grad`: made by an operation of J, by the step's own precision, or after the backward."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, Status, check_module

X = torch.linspace(-1, 1, 15).view(5, 3)


def total(y: Tensor) -> Tensor:
    return y.square().sum()


class Root(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where(y > 9, (0 * y).sqrt(), y)


def stepped(model: nn.Module, x: Tensor) -> nn.Module:
    total(model(x)).backward()  # type: ignore[no-untyped-call]
    return model


def checked(model: nn.Module, x: Tensor = X) -> Report:
    return check_module(model, total, x, gradients="grad")


def layer(kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    torch.manual_seed(0)
    return kind(3, 2)


def test_an_operation_of_j_is_named_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(stepped(layer(Root), X))
    assert report.culprit == ""
    _, start = inspect.getsourcelines(Root.forward)
    assert f"test_not_finite.py:{start + 2}, in the model itself (Root): its input is 0" in report.notes[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_came_after_the_backward_is_told_from_it(value: float) -> None:
    model = stepped(layer(), X)
    assert isinstance(model.bias, Tensor)
    assert model.bias.grad is not None
    model.bias.grad[1] = value  # type: ignore[index, unused-ignore]
    report = checked(model)
    assert [row.status for row in report] == [Status.MATCH, Status.MISMATCH]
    assert report.notes[0].startswith(".grad holds NaN or infinity; the step run again gives finite gradients")


def test_a_precision_that_overflows_is_told() -> None:
    model, x = layer().half(), 300 * X.half()
    report = checked(stepped(model, x), x)
    assert not report.passed
    assert "the gradient of the same batch in float64 is finite" in report.notes[0]
    assert "float16 ends at 65504" in report.notes[0]


def test_a_finite_grad_has_no_such_note() -> None:
    report = checked(stepped(layer(), X))
    assert report.passed
    assert not any("NaN" in note for note in report.notes)


def takes(parameter: Tensor) -> None:
    pass


def test_hooks_that_may_have_taken_the_gradient_are_named_with_their_line() -> None:
    model = stepped(layer(), X)
    model.weight.register_post_accumulate_grad_hook(takes)  # type: ignore[union-attr, operator, unused-ignore]
    note = checked(model).notes[0]
    assert f"test_not_finite.py:{inspect.getsourcelines(takes)[1]}" in note
