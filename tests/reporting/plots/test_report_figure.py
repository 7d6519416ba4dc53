from __future__ import annotations

import pickle
import random
import sys
from typing import Any

import pytest

from tests.reporting.render.samples import DRAWN_FACTS, INF, NAN, SAMPLES, facts, match, pairs, report_of, wrong
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.facts import WrongMap
from torch_gradcheck.reporting.plots.report_figure import figure_of

matplotlib = pytest.importorskip("matplotlib")

REPORT = report_of(DRAWN_FACTS)


def drawn_axes(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.axison and axes.get_title(loc="left")]


def test_each_row_is_plotted_wrong_entries_apart() -> None:
    scatters = {
        axes.get_title(loc="left").split("\n")[0]: [len(points.get_offsets()) for points in axes.collections]
        for axes in drawn_axes(REPORT.plot())
        if axes.collections and not axes.images
    }
    assert scatters == {"fc.weight": [68, 12], "right": [3, 0]}, "entries that are not wrong, and wrong ones"


def test_a_wrong_tensor_has_heat_maps_of_both_gradients_and_their_difference() -> None:
    maps = [axes for axes in drawn_axes(REPORT.plot()) if axes.images]
    assert [axes.get_title(loc="left").split("\n")[1] for axes in maps] == ["analytic", "numeric", "difference"]
    apart = maps[2].images[0].get_array()
    assert (apart != 0).sum() == 12
    assert sorted({int(row) for row in (apart != 0).nonzero()[0]}) == [3, 4]


def test_errors_too_small_to_be_seen_are_drawn_as_differences() -> None:
    row = wrong("weight", 2, pairs=pairs((1.01, -2.0), (1.0, -2.0)))
    [axes] = drawn_axes(figure_of(facts(row)))
    assert axes.get_ylabel() == "difference"
    assert axes.collections[1].get_offsets().tolist() == [[1.0, pytest.approx(0.01)]]


def test_both_gradients_have_one_scale() -> None:
    """On scales of their own a gradient 1e5 times too large lies on a line from corner to corner."""
    row = wrong("weight", 2, pairs=pairs((1e5, -2e5), (1.0, -2.0)))
    [axes] = drawn_axes(figure_of(facts(row)))
    assert axes.get_xlim() == axes.get_ylim() == (pytest.approx(-2.18e5), pytest.approx(1.18e5))


def test_what_is_not_finite_is_counted_and_marked_in_maps() -> None:
    where = WrongMap(((0.0, 1.0),), "", "2 entries", (1, 1), ((1.0, NAN),), ((1.0, 2.0),))
    scatter, on_trial, *_ = drawn_axes(figure_of(facts(wrong("w", 2, pairs=pairs((1.0, NAN), (1.0, 2.0)), map=where))))
    assert scatter.get_title(loc="left").endswith(", 1 not finite")
    assert on_trial.images[0].cmap.get_bad().tolist() != on_trial.images[0].cmap(0.5)


def test_any_number_can_be_drawn() -> None:
    on_trial, right = (1e308, -INF, NAN, 5e-324), (1.0, 2.0, 3.0, -4.0)
    where = WrongMap(((1.0,) * 4,), "", "4 entries", (1, 1), (on_trial,), (right,))
    figure_of(facts(wrong("weight", 4, pairs=pairs(on_trial, right), map=where))).draw_without_rendering()


def test_the_title_is_the_headline_and_says_how_many_rows_are_left_out() -> None:
    rows = [match(f"layers.{k}", 2, pairs=pairs((1.0, 2.0), (1.0, 2.0))) for k in range(15)]
    figure = figure_of(facts(*rows))
    assert figure.get_suptitle() == "gradients right: 15 of 15 parameters (3 more rows are not drawn)"
    assert len(drawn_axes(figure)) == 12


@pytest.mark.parametrize("name", ["all_right", "odd_shapes_and_figures", "no_parameters", "candidate_wrong"])
def test_a_report_without_entries_to_plot_gives_a_figure_with_its_headline(name: str) -> None:
    assert "right" in figure_of(SAMPLES[name]).get_suptitle() or "WRONG" in figure_of(SAMPLES[name]).get_suptitle()


def test_names_with_a_dollar_are_no_formulas() -> None:
    figure = figure_of(facts(match("$\\frac{", 2, pairs=pairs((1.0, 2.0), (1.0, 2.0)))))
    figure.draw_without_rendering()


def test_nothing_of_matplotlib_changes_and_pyplot_is_not_loaded() -> None:
    before = dict(matplotlib.rcParams), random.getstate(), "matplotlib.pyplot" in sys.modules
    REPORT.plot()
    assert (dict(matplotlib.rcParams), random.getstate(), "matplotlib.pyplot" in sys.modules) == before


def test_a_notebook_shows_the_figure_pickled_or_not() -> None:
    figure = figure_of(facts(match("weight", 2, pairs=pairs((1.0, 2.0), (1.0, 2.0)))))
    for each in (figure, pickle.loads(pickle.dumps(figure))):
        assert each._repr_png_().startswith(b"\x89PNG")


def test_without_matplotlib_plot_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidRequestError, match=r"pip install matplotlib \(the extra .*\[plot\]") as caught:
        REPORT.plot()
    assert isinstance(caught.value, ImportError)
