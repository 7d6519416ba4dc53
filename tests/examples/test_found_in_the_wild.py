"""Mistakes of published packages: each re-creation is wrong under exactly the right names, its repair is right."""

from __future__ import annotations

from types import ModuleType

import pytest

from found_in_the_wild import detached_maximum, input_without_gradient, mean_over_the_batch, only_while_training
from torch_gradcheck import check_module

BLOCKS = {f"blocks.{number}.0.{name}" for number in range(4) for name in ("weight", "bias")}
INTEGRAND = {f"integrand.{number}.{name}" for number in (0, 2) for name in ("weight", "bias")}
FOUND = [
    pytest.param(mean_over_the_batch, {"root", "p", "A"}, {"scaled"}, id="qpth"),
    pytest.param(detached_maximum, {"velocity"}, {"partial"}, id="deepwave"),
    pytest.param(only_while_training, INTEGRAND, None, id="zuko"),
    pytest.param(input_without_gradient, BLOCKS, {"missing"}, id="revtorch"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("found", "names", "kinds"), FOUND)
def test_the_mistake_is_found_under_its_names(found: ModuleType, names: set[str], kinds: set[str] | None) -> None:
    report = check_module(*found.problem())

    assert {row.name for row in report.mismatches} == names
    assert all(row.status == "match" for row in report if row.name not in names)
    if kinds is not None:
        assert {row.diagnosis.kind for row in report.mismatches if row.diagnosis} == kinds


@pytest.mark.slow
@pytest.mark.parametrize(("found", "names", "kinds"), FOUND)
def test_the_repair_is_proven(found: ModuleType, names: set[str], kinds: set[str] | None) -> None:
    assert check_module(*found.repaired()).proven


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "told"),
    [
        pytest.param(mean_over_the_batch, "Function QuadraticProgram gives a wrong gradient", id="qpth"),
        pytest.param(only_while_training, "Function Integral gives a wrong gradient", id="zuko"),
        pytest.param(input_without_gradient, "the backward of autograd.Function Couplings never runs", id="revtorch"),
    ],
)
def test_the_function_is_the_culprit_and_no_module_inside_it(found: ModuleType, told: str) -> None:
    report = check_module(*found.problem())

    assert told in " ".join(report.notes)
    assert report.culprit == ""
    assert not any(note.startswith("besides") for note in report.notes)


@pytest.mark.slow
def test_the_factor_of_a_mean_over_three_examples() -> None:
    report = check_module(*mean_over_the_batch.problem())

    for name in ("root", "p", "A"):
        diagnosis = report[name].diagnosis
        assert diagnosis is not None
        assert diagnosis.factor == pytest.approx(1 / 3)
        assert "mean where a sum was meant" in diagnosis.message


@pytest.mark.slow
def test_the_wrong_entry_is_that_of_the_maximum() -> None:
    model, loss_fn, batch = detached_maximum.problem()
    (row,) = check_module(model, loss_fn, batch).mismatches

    assert row.mismatched == 1
    assert row.worst[0].index == (int(model.velocity.argmax()),)


@pytest.mark.slow
def test_the_stop_gradient_would_be_right_if_it_were_meant() -> None:
    assert check_module(*detached_maximum.problem(), hold_detached=True).proven


@pytest.mark.slow
def test_training_mode_has_the_whole_gradient() -> None:
    assert check_module(*only_while_training.problem(), mode="train").proven
