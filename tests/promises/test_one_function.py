"""A backward that is not one function is found, and named; one that differs by rounding is judged as any other."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.unrepeatable import (
    Spoil,
    adds_up,
    batch,
    blocks,
    by_entropy,
    drawn,
    every_second_doubled,
    first_doubled,
    five_percent_too_long,
    intact,
    noisy,
    summed_in_any_order,
    summed_in_float32,
    swish,
)
from torch_gradcheck import GradientMonitor, Report, check_closure, check_module
from torch_gradcheck.errors import GradcheckError
from torch_gradcheck.torch_internals.autograd import current_backward

CE = nn.CrossEntropyLoss()
UPSTREAM = ["0.weight", "0.bias", "1.linear.weight", "1.linear.bias", "2.linear.weight", "2.linear.bias"]


def check(model: nn.Module, loss_fn: Callable[..., Any] = CE, **options: Any) -> Report:
    return check_module(model, loss_fn, batch(), **options)


def undecided(report: Report) -> list[str]:
    return [row.name for row in report if row.status == "undecided"]


def assert_found(report: Report, culprit: str, words: str) -> None:
    assert not report.passed
    assert not report.mismatches
    assert report.culprit == culprit
    assert re.search(words, report.notes[0]), report.notes[0]
    assert f"differ by {report.backward_spread:.1e} of the gradient" in report.notes[0]
    assert not any("the mistake is in" in note or "no culprit" in note for note in report.notes)


SPOILT: dict[str, tuple[Callable[[], Spoil], str, float, float]] = {
    "noise of 1 %": (noisy, "No two of three runs are alike", 0.003, 0.1),
    "first call doubled": (first_doubled, "The first run differs from the two that follow: .* 2 times", 0.5, 0.5),
    "every second doubled": (every_second_doubled, "Every second run differs from the others: .* 2 times", 0.5, 0.5),
    "adds up": (adds_up, "The second is 2 times the first, the third 3 times: something adds up", 2 / 3, 2 / 3),
    "noise of 0.1 ‰": (lambda: noisy(1e-4), "No two of three runs are alike", 3e-5, 1e-3),
}


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize(("spoil", "pattern", "least", "most"), SPOILT.values(), ids=SPOILT)
def test_one_function_of_three_is_named(
    spoil: Callable[[], Spoil], pattern: str, least: float, most: float, method: str
) -> None:
    report = check(blocks(intact, spoil(), intact), method=method)
    words = rf"autograd\.Function Swish \(tests/zoo/unrepeatable\.py:\d+\), in 2\.act \(Act\)\. {pattern}"
    assert_found(report, "2.act", words)
    assert least * (1 - 1e-9) <= report.backward_spread <= most * (1 + 1e-9)
    assert undecided(report) == UPSTREAM
    assert Counter(row.status for row in report) == {"undecided": 6, "match": 4}
    assert all("two backward runs from one state differ by" in report[name].reason for name in UPSTREAM)


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("spoil", [intact, drawn], ids=["right", "drawn from torch"])
def test_the_same_function_each_time_is_right(spoil: Spoil, method: str) -> None:
    report = check(blocks(intact, spoil, intact), method=method)
    assert report.passed
    assert report.backward_spread == 0.0
    assert not any("two backward runs" in note or "two runs" in note for note in report.notes)


ROUNDED: dict[str, Callable[[], Spoil]] = {
    "in float64": summed_in_any_order,
    "in float32, out of sight": lambda: summed_in_float32,
}


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("rounded", ROUNDED.values(), ids=ROUNDED)
def test_sums_in_any_order_are_rounding(rounded: Callable[[], Spoil], method: str) -> None:
    right = check(blocks(intact, rounded()), method=method)
    assert right.passed
    assert {row.status for row in right} == {"match"}
    assert any("which may be rounding: it is part of the error bar" in note for note in right.notes)
    wrong = check(blocks(five_percent_too_long, rounded()), method=method)
    assert wrong.culprit == "1.act"
    assert {row.name for row in wrong.mismatches} == set(UPSTREAM[:4])
    assert all(row.diagnosis is not None for row in wrong.mismatches)


def test_sums_in_any_order_in_a_check_in_float32() -> None:
    options: dict[str, Any] = {"dtype": torch.float32, "tolerance": 1e-3}
    assert check(blocks(intact, summed_in_any_order()), **options).passed
    assert_found(check(blocks(intact, noisy()), **options), "2.act", "Function Swish")
    assert check(blocks(five_percent_too_long, summed_in_any_order()), **options).culprit == "1.act"


def test_a_mistake_beside_it_is_diagnosed() -> None:
    report = check(blocks(noisy(), five_percent_too_long))
    assert not report.passed
    assert "Function Swish" in report.notes[0]
    assert "in 1.act (Act)" in report.notes[0]
    assert report.culprit == "2.act"
    assert [row.name for row in report.mismatches] == ["2.linear.weight", "2.linear.bias"]
    assert undecided(report) == UPSTREAM[:4]


def test_of_two_the_one_that_comes_first_in_the_backward_is_named() -> None:
    assert_found(check(blocks(noisy(), noisy())), "2.act", r"in 2\.act")


def with_parameter_hook() -> nn.Module:
    model = blocks(intact)
    model[0].weight.register_hook(noisy())
    return model


def with_backward_hook() -> nn.Module:
    model = blocks(intact, intact)
    spoil = noisy()
    model[1].register_full_backward_hook(lambda module, given, arrived: (spoil(given[0]),))
    return model


def with_backward_pre_hook() -> nn.Module:
    model = blocks(intact, intact)
    spoil = noisy()
    model[1].register_full_backward_pre_hook(lambda module, arrived: (spoil(arrived[0]),))
    return model


class TensorHook(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.spoil = nn.Linear(4, 6), nn.Linear(6, 3), noisy()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden.register_hook(self.spoil)
        result: Tensor = self.last(hidden.tanh())
        return result


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = blocks(intact, noisy()), reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[1](self.net[0](x))
        result: Tensor = self.net[3](checkpoint(self.net[2], hidden, use_reentrant=self.reentrant))
        return result


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = blocks(noisy())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.net[2](self.net[1](self.net[1](self.net[0](x))))
        return result


def tied() -> nn.Module:
    model = blocks(intact, noisy())
    model[1].linear.weight = model[2].linear.weight
    return model


PLACES: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "parameter hook": (
        with_parameter_hook,
        "0.weight",
        r"a hook on the parameter 0\.weight \(tests/zoo/unrepeatable\.py:\d+\)",
    ),
    "backward hook": (with_backward_hook, "1", r"a backward hook of 1 \(Block\)"),
    "backward pre-hook": (with_backward_pre_hook, "1", r"a backward hook of 1 \(Block\)"),
    "tensor hook": (TensorHook, "", r"a hook on a tensor, which .* on its way into first \(Linear\)"),
    "reentrant checkpoint": (lambda: Checkpointed(reentrant=True), "net.2.act", r"Function Swish .*, in net\.2\.act"),
    "checkpoint": (lambda: Checkpointed(reentrant=False), "net.2.act", r"Function Swish .*, in net\.2\.act"),
    "called twice": (CalledTwice, "net.1.act", r"Function Swish .*, in net\.1\.act"),
    "tied parameters": (tied, "2.act", r"Function Swish .*, in 2\.act"),
}


@pytest.mark.parametrize(("model", "culprit", "words"), PLACES.values(), ids=PLACES)
def test_wherever_it_is(model: Callable[[], nn.Module], culprit: str, words: str) -> None:
    assert_found(check(model()), culprit, words)


def test_a_hook_on_one_parameter_leaves_the_others_alone() -> None:
    assert undecided(check(with_parameter_hook())) == ["0.weight"]


def test_in_the_loss() -> None:
    function = swish(noisy())
    report = check(blocks(intact), lambda scores, labels: CE(function.apply(scores), labels))
    assert_found(report, "loss_fn", "Function Swish .*, in the loss function or closure")


def test_in_an_operator_of_torch_library() -> None:
    @torch.library.custom_op("one_function::scaled", mutates_args=())
    def scaled(x: Tensor) -> Tensor:
        return 3 * x

    spoil = noisy()
    scaled.register_autograd(lambda ctx, grad: spoil(3 * grad))

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = scaled(x)
            return result

    report = check(nn.Sequential(nn.Linear(4, 6), Scaled(), nn.Linear(6, 3)))
    assert_found(report, "1", r"autograd\.Function \w*one_function_scaled\w*, in 1 \(Scaled\)")


@pytest.mark.parametrize("runs", [True, False], ids=["runs backward", "returns the loss"])
def test_in_a_closure(runs: bool) -> None:
    model, (x, labels) = blocks(intact, noisy()), batch()

    def closure() -> Tensor:
        model.zero_grad()
        loss: Tensor = CE(model(x), labels)
        if runs:
            loss.backward()
        return loss

    assert_found(check_closure(model, closure), "2.act", "Function Swish")


def test_gradients_by_hand_need_no_backward() -> None:
    model, (x, labels) = blocks(intact).double(), batch()
    CE(model(x.double()), labels).backward()
    by_hand = {name: parameter.grad for name, parameter in model.named_parameters()}
    report = check(blocks(noisy()), gradients=by_hand)
    assert report.passed
    assert report.backward_spread == 0.0


def test_random_numbers_of_the_system() -> None:
    assert_found(check(blocks(by_entropy)), "1.act", "Function Swish")


# .grad, as a training step left it ---------------------------------------------------------------------------------


def stepped(*spoils: Spoil) -> nn.Module:
    model, (x, labels) = blocks(*spoils), batch()
    CE(model(x), labels).backward()
    return model


def test_grad_of_a_backward_that_is_not_one_function() -> None:
    report = check(stepped(intact, noisy()), gradients="grad")
    assert_found(report, "2.act", "Function Swish")
    assert undecided(report) == UPSTREAM
    assert report["3.weight"].status == "match"
    assert check(stepped(intact, summed_in_any_order()), gradients="grad").passed


def test_a_monitor_tells_of_it() -> None:
    model, (x, labels) = blocks(intact, noisy()), batch()
    with GradientMonitor(model, CE, at=[0], on_mismatch="record") as monitor:
        CE(model(x), labels).backward()
        report = monitor.step((x, labels))
    assert report is not None
    assert not report.passed
    assert report.culprit == "2.act"
    assert "Function Swish" in report.notes[0]
    assert report.notes[1].startswith("in .grad, as the training step left it: 6 undecided, 2 match")
    assert report.notes[2].startswith("on trial is what .grad holds")
    assert report.backward_spread > 0.001
    assert "NOT ONE FUNCTION" in monitor.summary


# What is not touched, and what it costs ----------------------------------------------------------------------------


def test_it_takes_one_evaluation_more_where_the_runs_agree_and_two_or_three_where_not() -> None:
    costs = {
        name: check(blocks(spoil)).evaluations
        for name, spoil in {"right": intact, "noisy": noisy(), "every second": every_second_doubled()}.items()
    }
    assert costs["noisy"] == costs["right"] + 1
    assert costs["every second"] == costs["right"] + 2


def test_nothing_is_left_behind() -> None:
    before, model = current_backward(), with_parameter_hook()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    check(model)
    assert current_backward() is before
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_exception_of_the_second_backward_comes_through() -> None:
    calls: list[None] = []

    def fails(gradient: Tensor) -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return gradient

    before = current_backward()
    with pytest.raises(RuntimeError, match="out of luck"):
        check(blocks(fails))
    assert current_backward() is before


def test_the_report_says_so_in_print_and_in_json() -> None:
    report = check(blocks(noisy()))
    assert str(report).startswith(
        "the backward is NOT ONE FUNCTION, 2 of 6 parameters right, 4 undecided\nculprit: 1.act"
    )
    assert report.to_dict()["backward_spread"] == report.backward_spread
    assert report.to_dict()["passed"] is False
    with pytest.raises(GradcheckError):
        report.raise_if_failed()
