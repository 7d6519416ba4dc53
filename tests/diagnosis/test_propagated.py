"""A parameter upstream of a culprit is told by the culprit's input gradient only where putting that right mends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import HandWritten
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import DiagnosisKind, Report, check_module
from torch_gradcheck.diagnosis import propagated
from torch_gradcheck.diagnosis.kind.input_errors import InputGradient, InputMistake


class Silu(torch.autograd.Function):
    """x · σ(x), its second term forgotten; raises in every backward after the first `good` ones."""

    good = 1000

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Silu.good -= 1
        if Silu.good < 0:
            raise RuntimeError("no more")
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x)


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Silu.apply(x)
        return y


def chain(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [module for _ in range(layers) for module in (nn.Linear(3, 3), Activation())]
    return nn.Sequential(*hidden, nn.Linear(3, 2))


def check(model: nn.Module, **options: Any) -> Report:
    torch.manual_seed(1)
    return check_module(model, squared_error, (torch.randn(5, 3), torch.randn(5, 2)), **options)


def told(report: Report) -> dict[str, str]:
    return {row.name: str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis}


def test_calls_in_a_row_are_put_right_from_the_loss_upwards() -> None:
    report = check(chain(3))
    assert set(told(report).values()) == {"slope"}
    said = {row.name: row.diagnosis.message for row in report.mismatches if row.diagnosis}
    assert "module 5 has the wrong slope" in said["4.weight"]
    assert "likewise" not in said["4.weight"]
    assert "likewise in 1 more call)" in said["2.weight"]
    assert "likewise in 2 more calls)" in said["0.weight"]


def test_it_takes_one_run_of_j_for_each_mistake_and_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = check(chain(3)).evaluations
    monkeypatch.setattr("torch_gradcheck.diagnosis.findings.propagated", lambda *_: {})
    assert with_it - check(chain(3)).evaluations == 4


def test_a_fit_that_explains_nothing_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_fit(gradient: InputGradient) -> InputMistake:
        return InputMistake(DiagnosisKind.SLOPE, "is off", 0.9 * gradient.error)

    monkeypatch.setattr(propagated, "input_mistake", wrong_fit)
    assert set(told(check(chain(1))).values()) == {"unknown"}


def test_a_backward_that_raises_then_leaves_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Silu, "good", 10**6)
    check(chain(1))
    used = 10**6 - Silu.good
    monkeypatch.setattr(Silu, "good", used - 2)
    assert told(check(chain(1))) == {"0.weight": "unknown", "0.bias": "unknown"}


def test_nothing_changes() -> None:
    model, batch = chain(2), (torch.randn(5, 3), torch.randn(5, 2))
    model.get_parameter("0.weight").grad = torch.ones(3, 3)
    before = Snapshot(model=model, batch=batch)
    report = check_module(model, squared_error, batch)
    assert before.changes() == []
    assert set(told(report).values()) == {"slope"}


@pytest.mark.parametrize("options", [{"dtype": torch.float32, "tolerance": 1e-2}, {"hold_detached": True}], ids=str)
def test_other_checks_find_it_as_well(options: dict[str, Any]) -> None:
    assert set(told(check(chain(1), **options))) == {"0.weight", "0.bias"}


class Half(nn.Module):
    """x + sin(x); wrong: half of the sine's gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + HandWritten.apply(torch.sin, lambda g, x: (g * x.cos() / 2,), x)
        return y


def test_the_factor_of_a_branch_is_measured() -> None:
    torch.manual_seed(0)
    row = check(nn.Sequential(nn.Linear(3, 3), Half(), nn.Linear(3, 3), Half(), nn.Linear(3, 2)))["0.weight"]
    assert row.diagnosis is not None
    assert row.diagnosis.kind == "propagated"
    assert row.diagnosis.factor == pytest.approx(0.5, rel=1e-12)


def square(wrong: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """x Wᵀ; what is wrong is done to the gradient of W."""
    return lambda x, w: HandWritten.apply(  # type: ignore[no-any-return]
        lambda x, w: x @ w.T, lambda g, x, w: (g @ w, wrong(g.T @ x)), x, w
    )


class UsedAgain(nn.Module):
    """A square weight on two paths, the first of them with a wrong gradient; or on the first one several times."""

    def __init__(self, wrong: Callable[[Tensor], Tensor], times: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.by_hand, self.times = square(wrong), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(self.by_hand(x, self.weight))
        return (x @ self.weight)[:, :2]


@pytest.mark.parametrize(
    ("wrong", "times", "kind", "words"),
    [
        pytest.param(lambda g: g.T, 1, "transposed", "is the right gradient transposed", id="transposed"),
        pytest.param(lambda g: g.T, 3, "transposed", "likewise in 2 more calls", id="transposed in three calls"),
        pytest.param(lambda g: g.flip(0), 1, "permuted", "with rows reversed", id="reversed"),
        pytest.param(lambda g: g / 5, 1, "propagated", "is 0.2 × the right one", id="a mean over the batch"),
        pytest.param(lambda g: g * g, 1, "unknown", "no simple relation", id="nothing that is known"),
    ],
)
def test_a_parameter_that_a_function_is_given_and_others_use_as_well(
    wrong: Callable[[Tensor], Tensor], times: int, kind: str, words: str
) -> None:
    torch.manual_seed(0)
    row = check(UsedAgain(wrong, times))["weight"]
    assert row.diagnosis is not None
    assert (row.diagnosis.kind, words in row.diagnosis.message) == (kind, True), row.diagnosis.message


def centred(x: Tensor) -> Tensor:
    return x - x.mean(0)


class Centred(nn.Module):
    """x less its mean over the batch; wrong: the mean is not taken out of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = HandWritten.apply(centred, lambda g, x: (g.clone(),), x)
        return y


def test_a_bias_that_j_does_not_depend_on_is_told_by_the_mistake_that_reaches_it() -> None:
    torch.manual_seed(0)
    report = check(nn.Sequential(nn.Linear(3, 3), Centred(), nn.Tanh(), nn.Linear(3, 2)))
    assert told(report) == {"0.weight": "projection", "0.bias": "projection"}


def test_mistakes_of_one_kind_in_two_places_are_told_apart() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 3), nn.Tanh(), Unscaled(), nn.Linear(3, 3), nn.Tanh(), Centred(), nn.Tanh(), nn.Linear(3, 2)]
    report = check(nn.Sequential(*layers))
    assert set(told(report).values()) == {"projection"}
    text = " ".join(str(report).split())
    assert "less its mean" not in text
    assert text.count("the same mistake in 2 parameters") == 2
    assert "upstream of" not in text.partition("the same mistake")[2]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


class Unscaled(nn.Module):
    """Rows of length 1; wrong: what is along a row is not taken out of the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = HandWritten.apply(unit, lambda g, x: (g / x.norm(dim=1, keepdim=True),), x)
        return y
