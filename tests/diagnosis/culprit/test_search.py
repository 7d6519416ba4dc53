"""The culprit of closures, given gradients and hooks; and the reason, where none can be named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.places import Lost, Tanh, network
from tests.zoo.planted.row import Problem
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import Report, check_closure, check_module
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.diagnosis.culprit import call_recording, footing


def layers(wrong: bool = True) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(3, 3), Tanh(wrong), nn.Linear(3, 2))


X, T = torch.linspace(-1, 1, 15).view(5, 3), torch.linspace(1, -1, 10).view(5, 2)


def checked(problem: Problem, **options: Any) -> Report:
    return check_module(problem.model, problem.loss_fn, problem.batch, **options)


# Closures ---------------------------------------------------------------------------------------------------------


def test_a_closure_over_parts_of_the_model() -> None:
    torch.manual_seed(7)
    parts = nn.ModuleDict({"G": layers(), "D": nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))})
    report = check_closure(parts, lambda: nn.functional.softplus(-parts["D"](parts["G"](X))).mean())
    assert report.culprit == "G.1"


@pytest.mark.slow
def test_a_module_outside_of_the_model_belongs_to_the_closure() -> None:
    model, critic = layers(wrong=False), nn.Sequential(nn.Linear(2, 3), Tanh(True), nn.Linear(3, 1))
    report = check_closure(model, lambda: critic(model(X)).mean())
    assert report.culprit == "loss_fn"
    assert "Tanh" in report.notes[0] or "HandWritten" in report.notes[0]


@pytest.mark.slow
def test_a_closure_that_runs_its_own_backward() -> None:
    model = layers()

    def closure() -> Tensor:
        loss = squared_error(model(X), T)
        loss.backward()
        return loss

    assert check_closure(model, closure).culprit == "1"


@pytest.mark.slow
def test_a_closure_that_runs_another_backward_besides() -> None:
    torch.manual_seed(7)
    parts = nn.ModuleDict({"G": layers(), "D": nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))})

    def closure() -> Tensor:
        parts["D"](parts["G"](X).detach()).square().mean().backward()
        parts["D"].zero_grad()
        return nn.functional.softplus(-parts["D"](parts["G"](X))).mean()

    assert check_closure(parts, closure).culprit == "G.1"


@pytest.mark.slow
def test_a_closure_that_changes_grad_afterwards() -> None:
    model = layers(wrong=False)

    def closure() -> Tensor:
        loss = squared_error(model(X), T)
        loss.backward()
        model[0].weight.grad.mul_(2)
        return loss

    report = check_closure(model, closure)
    assert report.culprit is None
    assert "changed afterwards" in report.notes[0]


@pytest.mark.parametrize("change", [lambda g: g * float("nan"), lambda g: 3 * g], ids=["nan", "factor"])
def test_a_hook_on_a_parameter(change: Callable[[Tensor], Tensor]) -> None:
    model = layers(wrong=False)
    model[0].weight.register_hook(change)
    report = check_module(model, squared_error, (X, T))
    assert report.culprit == "0.weight"
    assert "a hook on the parameter 0.weight" in report.notes[0]


@pytest.mark.slow
def test_in_float32_too() -> None:
    assert check_module(layers(), squared_error, (X, T), dtype=torch.float32).culprit == "1"


# Gradients given by hand ------------------------------------------------------------------------------------------


def gradients_by_autograd(model: nn.Module) -> dict[str, Tensor]:
    names, parameters = zip(*model.double().named_parameters(), strict=True)
    loss = squared_error(model(X.double()), T.double())
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_given_gradients_that_are_autograds_own_wrong_ones() -> None:
    report = check_module(layers(), squared_error, (X, T), gradients=gradients_by_autograd(layers()))
    assert report.culprit == "1"


def test_given_gradients_that_are_wrong_by_themselves() -> None:
    gradients = gradients_by_autograd(layers(wrong=False))
    gradients["0.weight"] = gradients["0.weight"] * 2
    report = check_module(layers(wrong=False), squared_error, (X, T), gradients=gradients)
    assert report.culprit is None
    assert report.notes[0] == "autograd's own gradient is right: the mistake is in the given one"
    assert report["0.weight"].diagnosis.factor == pytest.approx(2)


def test_given_gradients_that_are_wrong_in_another_way_than_autograds_own() -> None:
    gradients = gradients_by_autograd(layers())
    gradients["0.weight"] = gradients["0.weight"] * 3
    gradients["0.bias"] = gradients["0.bias"] * 3
    report = check_module(layers(), squared_error, (X, T), gradients=gradients)
    assert report.culprit is None
    words = "the given gradient is not autograd's own, which is wrong too, in another way: for 0.weight["
    assert report.notes[0].startswith(words)


# What the notes say -----------------------------------------------------------------------------------------------


class Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        return grad @ weight, 2 * grad.T @ x, grad.sum(0)


class AffineLayer(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return Affine.apply(x, self.weight, self.bias)


def test_the_function_and_its_input_are_named() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), AffineLayer(3, 2))
    report = check_module(model, squared_error, (X, T))
    assert report.culprit == "2"
    assert "2 (AffineLayer): autograd.Function Affine gives a wrong gradient for weight, in" in report.notes[0]


def cut(how: str) -> Callable[[bool], nn.Module]:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            if how == "no_grad":
                with torch.no_grad():
                    return self.b(self.a(x)) + self.b(x)
            h = self.a(x)
            return self.b(h.detach()) + (self.b(h) if how == "input" else self.b(x))

    return lambda wrong: nn.Sequential(nn.Linear(3, 3), Cut())


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no_grad", "it calls 1.a under no_grad"),
        ("output", "no gradient arrives at the output of 1.a"),
        ("input", "the input of 1.b is detached"),
    ],
)
def test_how_a_graph_is_cut_is_said(how: str, words: str) -> None:
    report = checked(network(cut(how))(True))
    assert report.culprit == "1"
    assert "declare it with hold_detached=True" in report.notes[0]
    assert words in report.notes[1]
    assert "the graph is cut: " in report.notes[1]


@pytest.mark.slow
def test_two_mistakes_are_both_told() -> None:
    model = nn.Sequential(layers(), nn.Tanh(), nn.Linear(2, 3), Tanh(True), nn.Linear(3, 2))
    report = check_module(model, squared_error, (X, T))
    assert report.culprit == "3"
    assert report.notes[1].startswith("besides, the mistake is in the backward of 0.1 (Tanh)")


@pytest.mark.slow
def test_a_mistake_in_many_parameters_is_told_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), Tanh(True, 2.0), nn.Linear(3, 2))
    notes = check_module(model, squared_error, (X, T)).notes
    sentence = (
        "the same mistake in 4 parameters upstream of 3 (0.weight, 0.bias, 2.weight and 1 more): scaled by the same "
        "factor 2"
    )
    assert sentence in notes


def test_what_it_took_is_said_and_counted() -> None:
    right, wrong = (check_module(layers(w), squared_error, (X, T)) for w in (False, True))
    assert not any("culprit" in note for note in right.notes)
    assert any(note.startswith("looking for the culprit took ") for note in wrong.notes)


# Why no culprit is named ------------------------------------------------------------------------------------------


class OnceOnly(nn.Module):
    """Cannot be run alone: it needs what its parent sets for the time of its forward."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.act = Tanh(wrong)
        self.scale: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.scale is not None, "no scale"
        y = torch.sin(x) * self.scale
        return y + y.detach()


class Setting(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.inner, self.back = nn.Linear(3, 3), OnceOnly(wrong), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.inner.scale = 2.0
        y = self.inner(self.front(x))
        self.inner.scale = None
        return self.back(y)


@pytest.mark.slow
def test_where_a_module_cannot_be_run_alone_no_culprit_is_named() -> None:
    report = checked(network(Setting)(True))
    assert report.culprit is None
    assert "inner raises AssertionError (no scale) when it is run alone" in report.notes[1]


def test_the_search_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footing, "MOST_RUNS", 3)
    report = check_module(layers(), squared_error, (X, T))
    assert report.culprit is None
    assert "was not looked at after 3 runs of single modules" in report.notes[0]


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_recording, "MEMORY_LIMIT", 100)
    report = check_module(layers(), squared_error, (X, T))
    assert report.culprit is None
    assert "take more than 1 GiB" in report.notes[0]


class Aside(nn.Module):
    """Leaves a tensor with a graph in an attribute; what the parent does with it is the mistake."""

    def forward(self, x: Tensor) -> Tensor:
        self.aside = torch.sin(x)
        return torch.tanh(x)


class UsesAside(nn.Module):
    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.inner, self.back = nn.Linear(3, 3), Aside(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.front(x))
        return self.back(y + self.inner.aside.detach())


def test_where_a_graph_leaves_by_an_attribute_no_culprit_is_named() -> None:
    report = checked(network(UsesAside)(True))
    assert report.culprit is None
    assert "inner lets a graph out by an attribute" in report.notes[1]


class Watchful(nn.Module):
    """Raises when it is watched: it looks for its caller's own tensor."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.front, self.back = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x)
        if type(y.grad_fn).__name__ == "CloneBackward0":
            raise KeyError("watched")
        return self.back(Lost.apply(y))


def test_where_a_model_cannot_be_recorded_no_culprit_is_named() -> None:
    report = checked(network(Watchful)(True))
    assert not report.passed
    assert report.culprit is None
    assert "a run of J in which calls are recorded raises KeyError ('watched')" in report.notes[0]


# Nothing is left behind -------------------------------------------------------------------------------------------


class Countdown(nn.Module):
    """The identity; raises KeyboardInterrupt at the k-th call. A check would undo what an instance counted."""

    calls, k = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        Countdown.calls += 1
        if Countdown.calls == Countdown.k:
            raise KeyboardInterrupt
        return x * 1.0


@pytest.mark.slow
def test_an_interrupt_anywhere_in_the_search_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 1), Countdown(), Tanh(True), nn.Linear(1, 2, bias=False))
    model[0].weight.register_hook(lambda g: g * 1.0)
    before = Snapshot(model=model, module=nn.Module.__call__, function=vars(torch.autograd.Function)["apply"])
    monkeypatch.setattr(Countdown, "calls", 0)
    check_module(model, squared_error, (X, T))
    assert before.changes() == []
    everything = Countdown.calls
    for k in range(everything - 60, everything + 1):
        monkeypatch.setattr(Countdown, "calls", 0)
        monkeypatch.setattr(Countdown, "k", k)
        with pytest.raises(KeyboardInterrupt):
            check_module(model, squared_error, (X, T))
        assert before.changes() == []


def test_a_module_made_anew_at_each_call_is_recognised() -> None:
    class MakesItsLoss(nn.Module):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            self.body = layers(wrong)

        def forward(self, x: Tensor) -> Tensor:
            return nn.Softplus()(self.body(x))

    assert checked(network(MakesItsLoss)(True)).culprit == "body.1"


def test_a_function_with_setup_context() -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Doubled.apply(x)

    report = check_module(nn.Sequential(nn.Linear(3, 2), Layer()), squared_error, (X, T))
    assert report.culprit == "1"
    assert "autograd.Function Doubled gives a wrong gradient for x, in" in report.notes[0]


def test_another_threads_model_is_not_recorded() -> None:
    with call_recording.Recording(RandomState.of_everything) as recorded:
        thread = threading.Thread(target=lambda: layers()(X))
        thread.start()
        thread.join()
        layers()(X)
    assert [type(call.owner).__name__ for call in recorded.roots] == ["Sequential"]


class Wrong(torch.autograd.Function):
    """The identity; its gradient is 5 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.05 * grad


class Field(nn.Module):
    """A vector field, right or wrong."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.layer, self.wrong = nn.Linear(3, 3), wrong

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.layer(x))
        return Wrong.apply(y) if self.wrong else y


class Solver(nn.Module):
    """Many small steps of a field, of each of which the error is a few hundredths."""

    def __init__(self, wrong: bool, steps: int = 30) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.field, self.head, self.steps = Field(wrong), nn.Linear(3, 2), steps

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = x + self.field(x) / self.steps
        return self.head(x)


def test_a_module_of_whose_many_calls_each_is_a_little_wrong() -> None:
    report = check_module(Solver(True), squared_error, (X, T))
    assert {row.name for row in report.mismatches} == {"field.layer.weight", "field.layer.bias"}
    assert report.culprit == "field"
    assert "it is called 30 times, and one of these accounts for" in report.notes[0]
    assert check_module(Solver(False), squared_error, (X, T)).passed
