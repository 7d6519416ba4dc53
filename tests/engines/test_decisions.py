"""Checks of models that decide by values: recorded as others are, and a wrong backward behind a decision is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.deciding import Adaptive, Experts, FixedPoint, doubled
from torch_gradcheck import Report, check_module

WIDE = 12
"""Outputs of the layer before the model, so that the eager engine is not fast enough."""


class Between(nn.Module):
    """A linear layer, a model that decides, and another linear layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.first, self.model, self.last = nn.Linear(WIDE, 4), model, nn.Linear(4, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        calls.append(1)
        return self.last(self.model(self.first(x)))


calls: list[int] = []
"""One entry an evaluation, where a check does not put things back."""


def checked(model: nn.Module) -> Report:
    torch.manual_seed(0)
    calls.clear()
    x, y = torch.randn(6, WIDE), torch.randn(6, WIDE)
    return check_module(Between(model), nn.MSELoss(), (x, y), method="exact", progress=False)


def built(model: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return model()


MODELS: dict[str, Callable[[], nn.Module]] = {"experts": Experts, "fixed point": FixedPoint, "adaptive": Adaptive}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("name", MODELS)
def test_a_right_model_is_recorded_and_passes(name: str) -> None:
    report = checked(built(MODELS[name]))
    assert report.passed, str(report)
    assert not [note for note in report.notes if "one coordinate at a time" in note]
    assert len(calls) < report.evaluations / 2


UPSTREAM = ["first.weight", "first.bias"]

WRONG: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "in the experts": (lambda: Experts(activation=doubled), [*UPSTREAM, "model.up"]),
    "in the router": (lambda: Experts(routed=doubled), [*UPSTREAM, "model.router.weight", "model.router.bias"]),
    "in the fixed point": (lambda: FixedPoint(doubled), [*UPSTREAM, "model.W"]),
    "in the slope": (lambda: Adaptive(doubled), [*UPSTREAM, "model.first.weight", "model.first.bias"]),
}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("place", WRONG)
def test_a_wrong_backward_behind_a_decision_is_found(place: str) -> None:
    model, names = WRONG[place]
    report = checked(built(model))
    assert {row.name for row in report if row.status == "mismatch"} >= set(names), str(report)
    assert not [note for note in report.notes if "one coordinate at a time" in note]


class Casting(nn.Module):
    """A router that casts its own layer in its forward, as that of Switch Transformers does."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.activation = nn.Linear(4, 4), activation

    def forward(self, x: Tensor) -> Tensor:
        self.classifier = self.classifier.to(torch.float32)
        return self.activation(self.classifier(x.to(torch.float32))).to(x.dtype)


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_layer_that_its_module_casts_in_the_forward_is_checked(right: bool) -> None:
    report = checked(built(lambda: Casting(torch.tanh if right else doubled)))
    names = {row.name for row in report if row.status == "mismatch"}
    assert names == (set() if right else {*UPSTREAM, "model.classifier.weight", "model.classifier.bias"}), str(report)


class AtBound(nn.Module):
    """Counts how many of two parameters are at a bound: both are at θ, none is a step away."""

    def __init__(self) -> None:
        super().__init__()
        self.bounded = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        factor = 1 + self.bounded.sum()
        return x * factor if int((self.bounded == 0).sum()) == 2 else factor * x


def test_a_record_that_holds_at_theta_only_for_some_parameters_serves_the_others() -> None:
    report = checked(built(AtBound))
    assert report.passed, str(report)
    assert not [note for note in report.notes if "one coordinate at a time" in note]
    assert len(calls) < report.evaluations / 2
