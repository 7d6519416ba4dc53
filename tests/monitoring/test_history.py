"""The history of a monitored run: what it records of each parameter on each checked step, and how it is read."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientHistory, GradientMonitor, GradientRecord

mse = nn.MSELoss()
X, Y = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]), torch.tensor([[1.0], [0.0], [-1.0]])
LR = 0.1


def line() -> nn.Linear:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25]]))
        model.bias.fill_(0.125)
    return model


def trained(
    model: nn.Module,
    steps: int = 4,
    spoil: Callable[[nn.Module], object] = lambda _: None,
    optimizer: Any = None,
    **options: Any,
) -> GradientMonitor:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=LR)
    with GradientMonitor(model, mse, on_mismatch="record", **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            mse(model(X), Y).backward()
            spoil(model)
            monitor.step((X, Y))
            optimizer.step()
    return monitor


def test_a_record_holds_what_grad_and_weights_are() -> None:
    model = line()
    wanted: dict[str, float] = {}

    def note(_: nn.Module) -> None:
        wanted.update(grad=model.weight.grad.norm().item(), weight=model.weight.norm().item())  # type: ignore[union-attr]
        wanted.update(largest=model.weight.grad.abs().max().item())  # type: ignore[union-attr]

    monitor = trained(model, steps=1, spoil=note)
    record, bias = monitor.history
    assert (record.step, record.name, record.numel, bias.name) == (0, "weight", 2, "bias")
    assert record.grad_norm == pytest.approx(wanted["grad"], rel=1e-6)
    assert record.grad_max == pytest.approx(wanted["largest"], rel=1e-6)
    assert record.weight_norm == pytest.approx(wanted["weight"], rel=1e-6)
    assert (record.zeros, record.finite, record.status) == (0, True, "match")
    assert record.error_bar is not None
    assert 0 < record.error_bar < 1e-3 * wanted["grad"]
    in_grad = monitor.reports[0].in_grad
    assert in_grad is not None
    assert record.error_bar == in_grad["weight"].noise


@pytest.mark.parametrize("at", [[0, 2], [0], [0, 1, 2, 3], [3]], ids=str)
def test_the_update_is_what_the_optimizer_did_after_the_step(at: list[int]) -> None:
    history = trained(line(), at=at).history
    assert history.steps == at
    for row in history:  # plain SGD moves the weights by lr times the gradient
        assert row.grad_norm is not None
        assert row.update_norm == pytest.approx(LR * row.grad_norm, rel=1e-5)
        assert row.update_ratio == pytest.approx(LR * row.grad_norm / row.weight_norm, rel=1e-5)


def test_the_update_of_adam_is_no_multiple_of_its_gradient() -> None:
    model = line()
    history = trained(model, steps=1, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3)).history
    assert history[0].update_norm == pytest.approx(1e-3 * math.sqrt(2), rel=1e-4)


def test_until_the_next_step_the_update_is_not_known() -> None:
    model = line()
    monitor = GradientMonitor(model, mse, at=0)
    mse(model(X), Y).backward()
    monitor.step((X, Y))
    assert monitor.history[0].update_norm is None
    assert monitor.history[0].update_ratio is None
    with torch.no_grad():
        model.weight += 3
    monitor.step((X, Y))
    assert monitor.history[0].update_norm == pytest.approx(3 * math.sqrt(2), rel=1e-6)
    with torch.no_grad():
        model.weight += 100
    monitor.close()
    assert monitor.history[0].update_norm == pytest.approx(3 * math.sqrt(2), rel=1e-6), "it was measured once"


def test_an_optimizer_that_does_not_step_updates_nothing() -> None:
    """As where a GradScaler skips a step."""
    model = line()
    history = trained(model, steps=2, optimizer=torch.optim.SGD(model.parameters(), lr=0.0)).history
    assert [(row.update_norm, row.update_ratio) for row in history] == [(0, 0), (0, 0)]


def test_where_all_weights_are_0_there_is_no_ratio() -> None:
    model = line()
    nn.init.zeros_(model.bias)
    bias = trained(model, steps=1).history["bias"][0]
    assert (bias.weight_norm, bias.update_ratio) == (0, None)
    assert bias.update_norm


def test_a_missing_gradient_is_none_and_not_0() -> None:
    def lose(model: nn.Module) -> None:
        model.bias.grad = None  # type: ignore[union-attr]

    row = trained(line(), steps=1, spoil=lose).history["bias"][0]
    assert (row.grad_norm, row.grad_max, row.grad_mean, row.zeros, row.finite) == (None,) * 5
    assert (row.status, row.update_norm) == ("mismatch", 0)


def test_zeros_are_counted_and_nan_is_seen() -> None:
    def spoil(model: nn.Module) -> None:
        model.weight.grad[0, 1] = 0  # type: ignore[union-attr, index]
        model.bias.grad.fill_(torch.nan)  # type: ignore[union-attr, operator]

    weight, bias = trained(line(), steps=1, spoil=spoil).history
    assert (weight.zeros, weight.finite) == (0.5, True)
    assert (bias.zeros, bias.finite, str(bias.grad_norm)) == (0, False, "nan")


def test_a_loss_scale_is_taken_off() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024)
    scaler.scale(torch.ones(()))  # only now it has a scale

    def scale(model: nn.Module) -> None:
        for parameter in model.parameters():
            parameter.grad *= 1024  # type: ignore[operator]

    scaled = trained(line(), steps=1, spoil=scale, scaler=scaler).history
    assert [row.grad_norm for row in scaled] == [row.grad_norm for row in trained(line(), steps=1).history]


def test_a_window_is_one_record_and_its_update_comes_after_it() -> None:
    model = line()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    with GradientMonitor(model, mse, at=[0, 1], accumulate=2) as monitor:
        for call in range(4):
            (mse(model(X), Y) / 2).backward()
            monitor.step((X, Y))
            if call % 2:
                optimizer.step()
                optimizer.zero_grad()
    alone = trained(line(), steps=2, at=[0, 1]).history
    for one, other in zip(monitor.history, alone, strict=True):
        assert (one.step, one.name) == (other.step, other.name)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
        assert one.update_norm == pytest.approx(other.update_norm, rel=1e-5)


def test_a_step_that_could_not_be_checked_has_its_gradients() -> None:
    model = line()
    monitor = GradientMonitor(model, lambda output, target: mse(output, target) * torch.nan, on_mismatch="record")
    mse(model(X), Y).backward()
    monitor.step((X, Y))
    assert list(monitor.errors) == [0]
    row = monitor.history[0]
    assert (row.status, row.error_bar) == (None, None)
    assert row.grad_norm == pytest.approx(model.weight.grad.norm().item())  # type: ignore[union-attr]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.frozen = nn.Linear(2, 2, bias=False), nn.Linear(2, 1).requires_grad_(False)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(torch.tanh(self.other(torch.tanh(self.one(x)))))


def test_tied_parameters_have_one_record_under_all_names() -> None:
    history = trained(Tied(), steps=1).history
    assert history.names == ["one.weight"], "what is frozen has none"
    assert list(history["other.weight"]) == list(history["one.weight"])


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 2, sparse=True)
        self.phase = nn.Parameter(torch.tensor([0.5 + 0.25j]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.table(torch.tensor([0, 1, 1])) * self.phase.abs()).sum(1, keepdim=True) + x.sum()


def test_sparse_and_complex_gradients() -> None:
    model = Table()
    phase, table = trained(model, steps=2).history
    assert table.zeros == pytest.approx(3 / 5)
    assert table.update_norm == pytest.approx(LR * (table.grad_norm or 0), rel=1e-5)
    assert (phase.numel, phase.zeros) == (1, 0)
    assert phase.grad_norm == phase.grad_max


def test_patterns_select_what_is_recorded() -> None:
    assert trained(line(), steps=1, include="b*").history.names == ["bias"]


def test_inputs_on_trial_have_no_record() -> None:
    model, x = line(), X.clone().requires_grad_()
    with GradientMonitor(model, mse, include=["weight", "batch*"]) as monitor:
        mse(model(x), Y).backward()
        monitor.step((x, Y))
    assert {row.name for row in monitor.reports[0]} == {"weight", "batch[0]"}
    assert monitor.history.names == ["weight"]


# --- how it is read ---------------------------------------------------------------------------------------------------


def row_of(step: int, name: str, **facts: Any) -> GradientRecord:
    known = {"grad_norm": 1.0, "grad_max": 1.0, "grad_mean": 0.5, "zeros": 0.0, "finite": True, "weight_norm": 2.0}
    return GradientRecord(step, name, 4, **{**known, **facts})


HISTORY = GradientHistory(
    [row_of(step, name, grad_norm=float(step)) for step in (0, 10) for name in ("1.weight", "1.bias")],
    {"2.weight": "1.weight"},
)


def test_it_is_a_sequence_of_rows() -> None:
    assert len(HISTORY) == 4
    assert [row.name for row in HISTORY] == ["1.weight", "1.bias"] * 2
    assert HISTORY[-1] == list(HISTORY)[3]
    assert list(HISTORY[1:3]) == list(HISTORY)[1:3]
    assert repr(HISTORY) == "<GradientHistory: 4 records, 2 parameters on 2 steps>"


def test_it_is_selected_from_by_parameter_and_by_step() -> None:
    assert [row.grad_norm for row in HISTORY["1.weight"]] == [0, 10]
    assert [row.grad_norm for row in HISTORY["2.weight"]] == [0, 10], "a tied parameter's other name"
    assert [row.name for row in HISTORY.at(10)] == ["1.weight", "1.bias"]
    assert HISTORY["1.bias"].at(0)[0] == HISTORY[1]
    assert (HISTORY.steps, HISTORY.names) == ([0, 10], ["1.weight", "1.bias"])


def test_what_is_not_there_is_told_with_what_is() -> None:
    with pytest.raises(KeyError, match=r"no parameter '1\.weihgt' in this history; close names: 1\.weight"):
        HISTORY["1.weihgt"]
    with pytest.raises(KeyError, match="no record of step 5; there are some of 0, 10"):
        HISTORY.at(5)
    with pytest.raises(KeyError, match="no record of step 5; there are none at all"):
        GradientHistory().at(5)


def test_a_row_is_frozen_and_becomes_a_dictionary() -> None:
    """As pandas makes columns of it."""
    with pytest.raises(FrozenInstanceError):
        HISTORY[0].step = 3  # type: ignore[misc]
    assert asdict(HISTORY[0])["weight_norm"] == 2
    assert list(pickle.loads(pickle.dumps(HISTORY))) == list(HISTORY)


def test_its_json_is_strict() -> None:
    history = GradientHistory([row_of(0, "w", grad_norm=math.nan, grad_max=math.inf, zeros=None)])
    (row,) = json.loads(history.to_json())
    assert (row["grad_norm"], row["grad_max"], row["zeros"], row["finite"]) == ("nan", "inf", None, True)
    assert list(row) == list(asdict(history[0]))


def test_it_prints_as_a_table() -> None:
    rows = [row_of(0, "1.weight", update_ratio=1e-3, status="match"), row_of(0, "1.bias", grad_norm=None, zeros=None)]
    assert [line.split() for line in str(GradientHistory(rows)).splitlines()] == [
        ["step", "parameter", "‖g‖", "zeros", "‖Δw‖/‖w‖", "status"],
        ["0", "1.weight", "1.00e+00", "0%", "1.00e-03", "match"],
        ["0", "1.bias", "-", "-", "-", "not", "checked"],
    ]
    assert str(GradientHistory(rows * 30)).endswith("\n... and 20 more records")


def test_a_name_stays_on_its_line() -> None:
    row = GradientRecord(0, "a\nb.weight", 1, 1, 1, 1, 0, True, 1)
    assert "a\\nb.weight" in str(GradientHistory([row])).splitlines()[1]


def test_a_history_can_be_printed_where_standard_output_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert "||dw||/||w||" in str(GradientHistory([])).splitlines()[0]
