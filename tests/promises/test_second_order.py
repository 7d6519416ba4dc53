"""Promise: of second order, no right model is accused, and a wrong double backward is found and named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo.second_order import BATCH, MISTAKES, RIGHT, RIGHT_FUNCTIONS, Mistake, Right, around
from torch_gradcheck import Report, check_function, check_module
from torch_gradcheck.reporting.facts import Status

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def of_network(function: Any, order: int = 2) -> Report:
    return check_module(around(function), F.cross_entropy, BATCH, order=order)


@pytest.mark.slow_but_for(10)
@pytest.mark.parametrize("case", RIGHT.values(), ids=RIGHT)
def test_a_right_model_matches(case: Right) -> None:
    torch.manual_seed(0)
    with sdpa_kernel(SDPBackend.MATH):
        report = check_module(case.build(), case.loss_fn, case.batch, order=2, **case.options)
    assert report.passed, str(report)
    assert report.order == 2
    surprises = {row.name: str(row.status) for row in report if row.status != case.statuses.get(row.name, "match")}
    assert not surprises, str(report)


@pytest.mark.parametrize("function", RIGHT_FUNCTIONS.values(), ids=RIGHT_FUNCTIONS)
def test_a_right_function_matches(function: Any) -> None:
    assert of_network(function).proven
    assert check_function(function.apply, (X,), order=2).proven


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_double_backward_is_found_and_named(mistake: Mistake) -> None:
    report = of_network(mistake.function)
    assert not report.passed
    assert {row.name for row in report if row.status is Status.MISMATCH} == set(mistake.rows), str(report)
    assert report.culprit == "1.0"
    assert mistake.words in report.notes[0]
    assert "tests/zoo/second_order.py:" in report.notes[0]


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_its_first_order_is_right(mistake: Mistake) -> None:
    assert of_network(mistake.function, order=1).proven


@pytest.mark.parametrize("name", ["a number", "a detached gradient", "no_grad", "None for the input"])
def test_it_is_found_in_a_function_alone(name: str) -> None:
    mistake = MISTAKES[name]
    report = check_function(mistake.function.apply, (X,), order=2)
    assert [row.status for row in report] == [Status.MISMATCH]
    assert mistake.words in report.notes[0]


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_it_is_found_by_every_method(method: str) -> None:
    mistake = MISTAKES["a hundredth too much"]
    report = check_module(around(mistake.function), F.cross_entropy, BATCH, order=2, method=method)
    assert {row.name for row in report.mismatches} == set(mistake.rows)
    assert report.culprit == "1.0"


@pytest.mark.parametrize("name", ["a detached gradient", "a derivative is saved"])
def test_inputs_are_rows(name: str) -> None:
    mistake, x = MISTAKES[name], BATCH[0].clone().requires_grad_()
    report = check_module(around(mistake.function), F.cross_entropy, (x, BATCH[1]), order=2)
    assert {row.name for row in report.mismatches} == {*mistake.rows, "batch[0]"}
    assert report.culprit == "1.0"


def test_a_mistake_in_a_frozen_networks_double_backward_shows_in_its_input() -> None:
    model, x = around(MISTAKES["numpy"].function).requires_grad_(False), BATCH[0].clone().requires_grad_()
    report = check_module(model, F.cross_entropy, (x, BATCH[1]), order=2)
    assert [row.name for row in report.mismatches] == ["batch[0]"]


SATURATED = {
    "tanh": lambda a: (100 * a).tanh(),
    "softmax": lambda a: (100 * a).softmax(1),
    "attention": lambda a: (100 * a @ a.T).softmax(1) @ a,
    "a small tanh": lambda a: 1e-20 * (100 * a).tanh(),
}


@pytest.mark.parametrize("seed", [0, 2])
@pytest.mark.parametrize("function", SATURATED.values(), ids=SATURATED)
def test_a_saturated_function_is_not_accused(function: Any, seed: int) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    report = check_function(function, (x,), order=2)
    assert not report.mismatches, str(report)
    assert not report.broken, str(report)
