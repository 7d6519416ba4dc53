"""Promise: on trial is what `loss.backward()` leaves in `.grad`, whichever way it gets there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import accumulating as zoo
from tests.zoo.accumulating import Checkpoint, X, squared
from torch_gradcheck import GradientMonitor, Report, blind_spots, check_module

FOUR = torch.randn(3, 4, generator=torch.Generator().manual_seed(2))

BLOCK = {"block.0.weight", "block.0.bias", "block.3.weight", "block.3.bias"}

RIGHT = {
    "a checkpoint": zoo.Within(),
    "one that refuses to be asked": zoo.Within(zoo.Refusing),
    "one that writes to grad": zoo.Within(zoo.Writing),
    "one that starts at an edge": zoo.Within(zoo.FromAnEdge),
    "dropout": zoo.Within(dropout=0.3),
    "used inside and outside": zoo.TwiceUsed(),
    "used inside and outside, written": zoo.TwiceUsed(zoo.Writing),
    "tied": zoo.Tied(),
    "nested": zoo.Nested(),
    "nested, refusing": zoo.Nested(zoo.Refusing),
    "torch's own": zoo.Reentrant(dropout=0.3),
    "a graph of J's own": zoo.Sharing(),
}


def left_by_a_backward(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    squared(model(x)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def wrong(report: Report) -> set[str]:
    return {row.name for row in report.mismatches}


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("model", RIGHT.values(), ids=RIGHT)
def test_a_backward_inside_of_the_backward_is_right(model: nn.Module, method: str) -> None:
    report = check_module(model, squared, X, mode="train", method=method)
    assert report.proven, str(report)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "freed"])
@pytest.mark.parametrize("first", [True, False], ids=["the batch itself", "in the middle"])
def test_a_reversible_layer_is_right(keep: bool, first: bool) -> None:
    model, x = zoo.Reversing(keep, first), FOUR.clone().requires_grad_(first)
    before = x.detach().clone()
    report = check_module(model, squared, x)
    assert report.proven, str(report)
    assert torch.equal(x, before)
    assert x.grad is None


def test_what_is_frozen_gets_nothing() -> None:
    model = zoo.Within()
    model.block[0].weight.requires_grad_(False)
    report = check_module(model, squared, X)
    assert report.proven
    assert report["block.0.weight"].status == "frozen"


WRONG = {
    "doubled": (zoo.Within(zoo.Doubling), BLOCK, "scaled"),
    "twice": (zoo.Within(zoo.Repeating), BLOCK, "scaled"),
    "twice, nested": (zoo.Nested(zoo.Repeating), BLOCK | {"first.weight", "first.bias"}, "scaled"),
    "twice, used outside as well": (zoo.TwiceUsed(zoo.Repeating), BLOCK, ""),
    "one doubled, written": (zoo.Within(zoo.WritingTwice), {"block.0.weight"}, "scaled"),
    "one forgotten": (zoo.Within(zoo.Forgetting), {"block.3.bias"}, "missing"),
    "one forgotten, used outside as well": (zoo.TwiceUsed(zoo.Forgetting), {"block.3.bias"}, ""),
    "other draws": (
        zoo.Within(zoo.OtherDraws, dropout=0.5),
        BLOCK - {"block.3.bias"} | {"first.weight", "first.bias"},
        "",
    ),
}


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize(("model", "names", "kind"), WRONG.values(), ids=WRONG)
def test_a_wrong_backward_inside_of_the_backward_is_found(model: zoo.Within, names: set[str], kind: str) -> None:
    report = check_module(model, squared, X, mode="train")
    assert wrong(report) == names
    found = {str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis}
    assert found == {kind} or not kind
    assert report.culprit == ""
    assert f"autograd.Function {model.function.__name__} gives a wrong gradient" in report.notes[0]


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.detach() + self.weight.tanh()


def test_a_mistake_beside_such_a_function_is_not_its_own() -> None:
    """Run alone, too, it is right."""
    model = nn.Sequential(Detached(), zoo.Within(zoo.Refusing))
    report = check_module(model, squared, X)
    assert wrong(report) == {"0.weight"}
    assert report.culprit == "0"


class Halved(zoo.TwiceUsed):
    """Wrong: outside of the checkpoint, half of the first layer's weight is detached."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.block[0].weight, self.block[0].bias
        h = self.through(self.block, self.first(x))
        return self.last(torch.nn.functional.linear(h, (weight + weight.detach()) / 2, bias))  # type: ignore[no-any-return]


@pytest.mark.parametrize("function", [zoo.Refusing, zoo.Writing], ids=["accumulating", "writing"])
def test_a_mistake_outside_of_such_a_function_in_the_same_parameter(function: type[Checkpoint]) -> None:
    report = check_module(Halved(function), squared, X)
    assert wrong(report) == {"block.0.weight"}
    assert report.culprit == ""
    assert "Function" not in report.notes[0]


def test_what_a_training_step_leaves_is_judged_alike() -> None:
    model = zoo.Within(zoo.Refusing, dropout=0.3).train()
    with GradientMonitor(model, squared) as monitor:
        squared(model(X)).backward()
        report = monitor.step(X)
    assert report is not None
    assert report.proven
    assert report.in_grad is not None
    assert report.in_grad.proven


def test_held_values_leave_it_as_it_is() -> None:
    assert check_module(zoo.Within(zoo.Refusing), squared, X, hold_detached=True).proven


def test_blind_spots_go_through_it() -> None:
    found = blind_spots(zoo.Within(), squared, X)
    assert {spot.module for spot in found if not spot.found} == {"first"}, "its input needs no gradient"


# Nothing of the caller's changes, and no hook on the accumulation runs ------------------------------------------------


def test_gradients_that_were_there_stay() -> None:
    model = zoo.TwiceUsed(zoo.Writing)
    before = left_by_a_backward(model, X)
    kept = {name: gradient.clone() for name, gradient in before.items() if gradient is not None}
    assert check_module(model, squared, X).proven
    for name, parameter in model.named_parameters():
        assert parameter.grad is before[name]
        assert torch.equal(before[name], kept[name])  # type: ignore[arg-type]


def test_optimizers_in_the_backward_do_not_step() -> None:
    model, fired = zoo.Within(), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    assert check_module(model, squared, X).proven
    assert fired == []
    left_by_a_backward(model, X)
    assert len(fired) == len(list(model.parameters()))


class HookedInForward(zoo.Within):
    def __init__(self) -> None:
        super().__init__()
        self.fired: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.block[0].weight.register_post_accumulate_grad_hook(self.fired.append)
        return super().forward(x)


def test_hooks_that_the_forward_registers_do_not_run_either() -> None:
    model = HookedInForward()
    assert check_module(model, squared, X).proven
    assert model.fired == []
    left_by_a_backward(model, X)
    assert len(model.fired) == 1


class Elsewhere:
    """Holds a tensor where nobody looks for one."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class WithOthers(zoo.Within):
    """A tensor that the loan does not find takes part, inside of the checkpoint and outside."""

    def __init__(self, function: type[Checkpoint], dtype: torch.dtype) -> None:
        super().__init__(function)
        self.inside = Elsewhere(torch.ones(4, requires_grad=True, dtype=torch.float64))
        self.outside = Elsewhere(torch.ones(4, requires_grad=True, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return (self.block(x) * self.inside.tensor).to(x.dtype)

        return self.last((self.through(run, self.first(x)) * self.outside.tensor).to(x.dtype))  # type: ignore[no-any-return]


@pytest.mark.parametrize("held", [None, 3.0], ids=["none", "a gradient"])
@pytest.mark.parametrize(
    ("function", "dtype"), [(zoo.Refusing, torch.float64), (Checkpoint, torch.float32)], ids=["float64", "float32"]
)
def test_leaves_that_are_not_lent_keep_their_gradients(
    held: float | None, function: type[Checkpoint], dtype: torch.dtype
) -> None:
    model = WithOthers(function, dtype)
    others = [model.inside.tensor, model.outside.tensor]
    before = [None if held is None else torch.full_like(each.detach(), held) for each in others]
    for each, gradient in zip(others, before, strict=True):
        each.grad = gradient
    assert check_module(model, squared, X).proven
    for each, gradient in zip(others, before, strict=True):
        assert each.grad is gradient
        assert gradient is None or torch.equal(gradient, torch.full_like(gradient, held or 0.0))


def test_a_note_says_which_hooks_did_not_run() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight.register_post_accumulate_grad_hook(lambda parameter: parameter.grad.mul_(0.5))

    report = check_module(model, torch.sum, torch.randn(4, 3))

    assert report.passed
    assert any("register_post_accumulate_grad_hook on 1.weight did not run" in note for note in report.notes)
