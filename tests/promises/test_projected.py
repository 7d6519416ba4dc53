"""Promise: the projected method accuses no correct model, finds every planted bug by name, and changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.zoo.delicate import DELICATE, Delicate
from tests.zoo.modules import CASES, Case
from tests.zoo.planted import PLANTED, Planted
from tests.zoo.snapshot import Snapshot
from tests.zoo.states import STATES, State
from tests.zoo.sweeps import ALL, in_turn, some_of
from torch_gradcheck import Report, check_closure, check_module

half_of_the_bugs = pytest.mark.parametrize("bug", some_of(PLANTED, 2), ids=lambda bug: bug.id)
some_twins = pytest.mark.parametrize("bug", some_of(PLANTED, 4), ids=lambda bug: bug.id)
every_delicate = pytest.mark.parametrize("row", DELICATE, ids=lambda row: row.id)


def check(problem: Any, **options: Any) -> Report:
    report = check_module(problem.model, problem.loss_fn, problem.batch, method="projected", **options)
    assert report.method == "projected"
    return report


@pytest.mark.slow_but_for(2)
@half_of_the_bugs
def test_a_planted_bug_is_found_under_exactly_its_names_and_told_as_by_the_exact_method(bug: Planted) -> None:
    problem = bug.build(True)
    report = check(problem, gradients=problem.gradients, mode=bug.mode)
    assert {row.name for row in report.mismatches} == set(bug.wrong), str(report)
    assert report.culprit in (bug.culprit, None), str(report)
    for row in report.mismatches:
        assert row.diagnosis is not None
        assert row.diagnosis.kind in (bug.kind_of(row.name), "unknown"), row


@pytest.mark.slow_but_for(5)
@some_twins
def test_its_correct_twin_passes(bug: Planted) -> None:
    problem = bug.build(False)
    report = check(problem, gradients=problem.gradients, mode=bug.mode)
    assert {row.status for row in report} <= {"match", "flat", "frozen"}, str(report)


@pytest.mark.slow_but_for(8)
@pytest.mark.parametrize(
    ("case", "mode"),
    [(case, "train") for case in some_of(CASES, 2)] + [(case, "eval") for case in some_of(CASES, 4, first=1)],
    ids=lambda value: getattr(value, "id", value),
)
def test_a_correct_module_matches(case: Case, mode: str) -> None:
    problem = case.build()
    report = check(problem, mode=mode, include=problem.include)
    assert report.passed, str(report)
    surprises = {
        row.name: (str(row.status), row.reason)
        for row in report
        if row.status not in case.excused.get(f"{mode} {row.name}", "match").split()
    }
    assert not surprises, str(report)


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("seed", range(3 if ALL else 2))
@every_delicate
def test_a_delicate_model_is_not_accused(row: Delicate, seed: int) -> None:
    report = check(row.build(seed), mode=row.mode, include=row.include, seed=seed)
    assert not report.mismatches, str(report)
    surprises = {
        found.name: (str(found.status), found.reason)
        for found in report
        if found.status not in row.statuses.get(found.name, "match").split()
    }
    assert not surprises, str(report)


@pytest.mark.slow_but_for(6)
@every_delicate
def test_a_delicate_model_is_not_accused_in_float32(row: Delicate) -> None:
    report = check(row.build(0), mode=row.mode, include=row.include, dtype=torch.float32)
    assert not report.mismatches, str(report)


DROWNED = ("sixty-layers", "layers.0.weight")
"""A gradient of 1e-9 under a loss of 1: an error of 1e-4 in it may be left undecided."""


def off_by_a_ten_thousandth(g: Tensor) -> Tensor:
    return g * (1 + 1e-4)


def one_larger_entry_off_by_a_hundredth(g: Tensor) -> Tensor:
    flat = g.flatten().clone()
    flat[flat.abs().argmax()] *= 1.01
    return flat.view_as(g)


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize(
    ("row", "name", "change"),
    in_turn(
        [(row, name) for row in DELICATE for name in row.to_spoil if (row.id, name) != DROWNED],
        [(off_by_a_ten_thousandth,), (one_larger_entry_off_by_a_hundredth,)],
    ),
    ids=lambda value: getattr(value, "id", getattr(value, "__name__", value)),
)
def test_a_small_error_in_a_delicate_model_is_found(row: Delicate, name: str, change: Any) -> None:
    problem = row.build(0)
    problem.model.get_parameter(name).register_hook(change)
    report = check(problem, mode=row.mode, include=row.include)
    assert [found.name for found in report.mismatches] == [name], str(report)


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.id)
def test_nothing_changes(state: State) -> None:
    torch.manual_seed(11)
    setup = state.build()
    before = Snapshot(model=setup.model, loss=setup.loss_fn, batch=setup.batch, **setup.watched)
    try:
        check_module(setup.model, setup.loss_fn, setup.batch, method="projected")
        assert before.changes() == []
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)


# Kinks, readings of values, formulas of one's own: where no second gradient helps ---------------------------------


def images() -> tuple[Tensor, Tensor]:
    """White noise in a black frame."""
    x = torch.zeros(4, 1, 14, 14)
    x[:, :, 6:10, 6:10] = torch.rand(4, 1, 4, 4)
    return x, torch.arange(4)


def convolutions(bias: float | None, width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(2 * width * 25, 20), nn.ReLU(), nn.Linear(20, 10),
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and bias is not None:
            nn.init.constant_(parameter, bias)
    return model


class Reading(nn.Module):
    """A model that looks at values in Python, and so cannot be recorded."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y if sum(y.flatten().tolist()) < 1e9 else 2 * y


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
@pytest.mark.parametrize("width", [6, 66], ids="width={}".format)
def test_biases_of_0_under_black_pixels_lie_at_kinks(width: int, recorded: bool) -> None:
    """Hundreds of units at exactly 0: no direction through the biases has one slope."""
    model = convolutions(0.0, width)
    report = check_module(model if recorded else Reading(model), nn.CrossEntropyLoss(), images(), method="projected")
    assert report.passed, str(report)
    kinked = {row.name for row in report if row.status in ("kink", "undecided")}
    assert {name.removeprefix("inner.") for name in kinked} == {"0.bias", "2.bias"}, str(report)


def test_a_mistake_beside_kinks_is_found() -> None:
    model = convolutions(0.0)
    model[2].weight.register_hook(lambda g: 1.01 * g)
    report = check_module(model, nn.CrossEntropyLoss(), images(), method="projected")
    assert [row.name for row in report.mismatches] == ["2.weight"], str(report)


def test_what_cannot_be_recorded_is_verified_itself() -> None:
    report = check_module(Reading(convolutions(None)), nn.CrossEntropyLoss(), images(), method="projected")
    assert {row.status for row in report} == {"match"}, str(report)
    assert report.evaluations <= 60
    assert any("verified the gradient on trial itself: Tensor.tolist" in note for note in report.notes)


def test_one_wrong_entry_of_what_cannot_be_recorded_is_found_by_bisection() -> None:
    model, wrong = convolutions(None), []

    def zeroed(g: Tensor) -> Tensor:
        flat = g.flatten().clone()
        place = int(flat.abs().argmax())
        wrong.append(tuple(int(i) for i in np.unravel_index(place, g.shape)))
        flat[place] = 0
        return flat.view_as(g)

    model[5].weight.register_hook(zeroed)
    report = check_module(Reading(model), nn.CrossEntropyLoss(), images(), method="projected")
    [row] = report.mismatches
    assert (row.name, row.mismatched, row.worst[0].index) == ("inner.5.weight", 1, wrong[-1]), str(report)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0])
def test_a_wrong_tensor_of_what_cannot_be_recorded_is_found(factor: float) -> None:
    model = convolutions(None)
    model[2].weight.register_hook(lambda g: factor * g)
    report = check_module(Reading(model), nn.CrossEntropyLoss(), images(), method="projected")
    [row] = report.mismatches
    assert row.name == "inner.2.weight"
    assert row.mismatched == sum(coordinate.status == "mismatch" for coordinate in row.worst) or row.mismatched > 10


@torch.library.custom_op("torch_gradcheck_tests::swish", mutates_args=())
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _wrong(ctx: Any, grad: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return grad * torch.sigmoid(x)  # a term is missing


swish.register_autograd(_wrong, setup_context=_keep)


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


@pytest.mark.slow
def test_a_wrong_formula_that_the_record_shares_is_found() -> None:
    """An operation registered with its backward stays one operation in the record, with that backward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 20), Swish(), nn.Linear(20, 5))
    report = check_module(model, nn.CrossEntropyLoss(), (torch.randn(6, 20), torch.arange(6) % 5), method="projected")
    assert {row.name for row in report.mismatches} == {"0.weight", "0.bias", "2.weight", "2.bias"}, str(report)


# What else there is in exact mode ---------------------------------------------------------------------------------


def test_entries_that_are_not_finite_are_mismatches() -> None:
    model = convolutions(None)
    model[5].weight.register_hook(lambda g: torch.where(torch.arange(20)[:, None] == 3, torch.nan, g))
    report = check_module(model, nn.CrossEntropyLoss(), images(), method="projected")
    [row] = report.mismatches
    assert (row.name, row.mismatched) == ("5.weight", 300)


def test_frozen_and_left_out_parameters() -> None:
    model = convolutions(None)
    model[0].weight.requires_grad_(False)
    report = check_module(model, nn.CrossEntropyLoss(), images(), method="projected", include=["0.*", "2.*"])
    assert [(row.name, str(row.status)) for row in report] == [
        ("0.weight", "frozen"), ("0.bias", "match"), ("2.weight", "match"), ("2.bias", "match"),
    ]  # fmt: skip


def test_a_row_of_padding_is_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(12, 2))
    nn.init.normal_(model[0].weight)
    batch = (torch.tensor([[0, 1, 2, 0], [3, 0, 4, 1]]), torch.tensor([0, 1]))
    report = check_module(model, nn.CrossEntropyLoss(), batch, method="projected")
    assert [(str(row.status), row.checked) for row in report] == [("match", 12), ("match", 24), ("match", 2)]


def test_tied_parameters_are_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    report = check_module(model, nn.MSELoss(), (torch.randn(3, 4), torch.randn(3, 4)), method="projected")
    assert report["0.weight"].aliases == ("2.weight",)
    assert {row.status for row in report} == {"match"}


def test_gradients_by_hand() -> None:
    torch.manual_seed(0)
    layer, x, y = nn.Linear(5, 2), torch.randn(7, 5), torch.randn(7, 2)
    loss = nn.functional.mse_loss(layer.double()(x.double()), y.double())
    weight, bias = torch.autograd.grad(loss, list(layer.parameters()))
    given = {"weight": weight, "bias": bias / 7}
    report = check_module(layer, nn.MSELoss(), (x, y), gradients=given, method="projected")
    assert [row.name for row in report.mismatches] == ["bias"]
    assert report["bias"].mismatched == 2


def test_a_closure_that_runs_backward_itself() -> None:
    model, (x, y) = convolutions(None), images()

    def closure() -> Tensor:
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    report = check_closure(model, closure, method="projected")
    assert {row.status for row in report} == {"match"}, str(report)


def test_the_same_seed_gives_the_same_report_and_another_one_other_directions() -> None:
    def figures(seed: int) -> list[Any]:
        report = check_module(convolutions(None), nn.CrossEntropyLoss(), images(), method="projected", seed=seed)
        return [(row.status, row.noise, row.eps, row.detectable) for row in report]

    assert figures(0) == figures(0)
    assert [row[1] for row in figures(0)] != [row[1] for row in figures(1)] or figures(0) == figures(1)


def test_what_was_proven_is_stated() -> None:
    report = check_module(convolutions(None), nn.CrossEntropyLoss(), images(), method="projected")
    for row in report:
        assert (row.directions, row.checked) == (8, row.numel)
        assert 0 < row.detectable < 1e-4
    assert any("would have been missed with odds of 1e-06" in note for note in report.notes)
    assert report.evaluations <= 60
