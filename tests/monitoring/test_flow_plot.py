"""The plot of the flow of gradients: readable for three layers and for many, and nothing of matplotlib's changes."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import pytest
from torch import nn

from torch_gradcheck import GradientHistory, GradientMonitor, GradientRecord, InvalidRequestError
from torch_gradcheck.monitoring.flow_plot import flow_plot

matplotlib = pytest.importorskip("matplotlib")


def history(steps: int, layers: int, norm: float = 0.5, update: float | None = 1e-3) -> GradientHistory:
    facts = {"grad_max": norm, "grad_mean": norm, "zeros": 0.0, "finite": True, "weight_norm": 2.0}
    rows = [
        GradientRecord(10 * step, f"blocks.{k}.{name}", 4, norm * (k + 1), update_norm=update, **facts)
        for step in range(steps)
        for k in range(layers)
        for name in ("weight", "bias")
    ]
    return GradientHistory(rows)


def labels(axes: Any) -> list[str]:
    return [each.get_text() for each in axes.get_xticklabels()]


def test_a_few_steps_are_lines_over_the_layers() -> None:
    figure = flow_plot(history(steps=3, layers=4))
    above, below = figure.axes
    lines = [line for line in above.get_lines() if line.get_label().startswith("step")]
    assert [line.get_label() for line in lines] == ["step 0", "step 10", "step 20"]
    assert list(lines[0].get_ydata()) == pytest.approx([0.5 * (k + 1) * math.sqrt(2) for k in range(4)])
    assert labels(below) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert (above.get_yscale(), below.get_ylabel()) == ("log", "‖update‖ / ‖weights‖")
    drawn = [line.get_ydata()[0] for line in below.get_lines() if line.get_label() == "step 10"]
    assert drawn == pytest.approx([1e-3 / 2])


def test_without_updates_there_is_one_panel() -> None:
    assert len(flow_plot(history(steps=1, layers=2, update=None)).axes) == 1


@pytest.mark.parametrize(("value", "mark"), [(0.0, "v"), (math.nan, "X"), (math.inf, "X")], ids=str)
def test_what_a_logarithm_cannot_show_has_a_mark(value: float, mark: str) -> None:
    (axes,) = flow_plot(history(steps=1, layers=2, norm=value, update=None)).axes
    marked = [line for line in axes.get_lines() if line.get_marker() == mark]
    assert [list(line.get_xdata()) for line in marked] == [[0, 1]]


def test_many_steps_and_layers_are_a_map_that_names_some_of_them() -> None:
    figure = flow_plot(history(steps=30, layers=100))
    axes, *_ = [each for each in figure.axes if each.get_ylabel() == "step"]
    assert axes.collections[0].get_array().shape == (30, 100)
    assert [each.get_text() for each in axes.get_yticklabels()][:2] == ["0", "50"]
    below = next(each for each in figure.axes if each.get_xlabel())
    assert below.get_xlabel() == "layers in the order of named_parameters(), one in 3 named"
    assert len(labels(below)) == 34
    assert figure.get_figwidth() <= 16


def test_long_names_are_shown_by_their_ends() -> None:
    figure = flow_plot(GradientHistory([GradientRecord(0, f"{'encoder.' * 9}fc.weight", 1, 1, 1, 1, 0, True, 1)]))
    (label,) = labels(figure.axes[0])
    assert (label[0], label[-11:], len(label)) == ("…", ".encoder.fc", 26)


def test_a_name_is_no_formula() -> None:
    figure = flow_plot(GradientHistory([GradientRecord(0, r"a$\frac$b.weight", 1, 1, 1, 1, 0, True, 1)]))
    figure.savefig(BytesIO())
    assert labels(figure.axes[0]) == [r"a\$\frac\$b"]


@pytest.mark.slow
def test_nothing_of_matplotlib_changes() -> None:
    before = (dict(matplotlib.rcParams), matplotlib.rcParams._get_backend_or_none())
    flow_plot(history(steps=9, layers=3)).savefig(BytesIO(), format="png")
    assert (dict(matplotlib.rcParams), matplotlib.rcParams._get_backend_or_none()) == before


def test_a_monitor_that_has_checked_nothing_has_no_plot() -> None:
    with pytest.raises(InvalidRequestError, match="no gradient to plot yet: no step has been checked"):
        GradientMonitor(nn.Linear(2, 1), nn.MSELoss()).plot()
