from __future__ import annotations

import math
import re
from html import escape
from html.parser import HTMLParser
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reporting.render.samples import ANY_FACTS, DRAWN_FACTS, NAN, SAMPLES, coordinate, facts, match, pairs, wrong
from tests.zoo.sweeps import EXAMPLES
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, Facts, WrongMap
from torch_gradcheck.reporting.render.html import html, page
from torch_gradcheck.reporting.render.html.heat_map import heat_maps
from torch_gradcheck.reporting.render.html.scales import Axis, percent_of_log
from torch_gradcheck.reporting.render.html.scatter import scatter

TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
DRAWN = {"svg", "path", "text", "figure", "figcaption"}
OURS = {"div", "style", "p", "span", "code", "pre", "details", "summary", "ul", "li", "dl", "dt", "dd"} | TABLE | DRAWN
NEVER_CLOSED = {"meta"}


class Elements(HTMLParser):
    """Reads a document and keeps what is in it; an element that is not closed in turn is an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.badges: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in NEVER_CLOSED:
            self.open.append(tag)
        of = dict(attributes)
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src")]
        if (of.get("class") or "").startswith("status "):
            self.badges.append((of["class"] or "").removeprefix("status "))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("name", SAMPLES, ids=str)
def test_html_is_well_formed_and_stands_alone(name: str) -> None:
    read = Elements(html(SAMPLES[name]))
    assert set(read.tags) <= OURS
    assert read.addresses == []
    for foreign in ("url(", "http", "@import", "<script"):
        assert foreign not in html(SAMPLES[name])


@pytest.mark.slow
@settings(max_examples=EXAMPLES)
@given(ANY_FACTS)
def test_any_report_is_well_formed(report: Facts) -> None:
    assert set(Elements(html(report)).tags) <= OURS


@given(st.text(min_size=1))
def test_names_are_never_taken_for_markup(name: str) -> None:
    expected = Elements(html(facts(match("weight", 3), notes=["note"])))
    read = Elements(html(facts(match(name, 3), notes=[f"<b>{name}</b>"])))
    assert read.tags == expected.tags


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    assert escape("<b>weight</b>") in html(facts(match("<b>weight</b>", 3)))


def test_every_status_has_its_colour() -> None:
    outcome, *badges = Elements(html(SAMPLES["nothing_wrong_not_all_proven"])).badges
    assert outcome == "undecided"
    assert {"flat", "kink", "undecided", "unused", "frozen", "match"} <= set(badges[:12])


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("two_of_twelve_wrong", "wrong"),
        ("broken_contract", "wrong"),
        ("reference_wrong", "wrong"),
        ("all_right", "right"),
        ("nothing_wrong_not_all_proven", "not all proven"),
        ("nothing_proven", "not proven"),
    ],
)
def test_the_first_word_is_the_outcome(name: str, outcome: str) -> None:
    _, _, words = html(SAMPLES[name]).partition('role="heading"')
    assert Elements(f"<p {words.partition('</span>')[0]}</span></p>").words == outcome


def test_html_says_what_the_text_says() -> None:
    words = Elements(html(SAMPLES["two_of_twelve_wrong"])).words
    for said in (
        "gradients WRONG in 2 of 12 parameters",
        "norm1",
        "relative error 8.7e-02 (worry) over the whole θ",
        "self_attn.out_proj.weight",
        "dθ = 2.000 × the right gradient in every entry (residual 3e-9)",
        "-3.125170e-02",
        "auto chose exact",
    ):
        assert said in words


def test_rows_that_the_table_leaves_out_can_be_unfolded() -> None:
    name = "model.decoder.layers.16.norm2.bias"
    before, fold, after = html(SAMPLES["two_hundred_tensors"]).partition("… and 198 more that match")
    assert name not in before
    assert fold
    assert name in after


def test_thousands_of_rows_are_counted_in_the_end() -> None:
    source = html(facts(*[match(f"layers.{k}.weight", 3) for k in range(700)]))
    assert 500 <= source.count("<tr") <= 520
    assert "more; the report as JSON has them all" in source


def test_page_is_a_document_with_an_escaped_title() -> None:
    document = page(SAMPLES["all_right"], title="model.py:<problem>")
    assert document.startswith("<!DOCTYPE html>")
    assert "<title>gradients right: 12 of 12 parameters – model.py:&lt;problem&gt;</title>" in document
    assert html(SAMPLES["all_right"]) in document
    assert Elements(document).addresses == []


def panels(source: str) -> list[str]:
    """The heat maps of a page, each up to its end."""
    return [part.partition("</svg>")[0] for part in source.split('<svg class="heat"')[1:]]


def cells_of(panel: str, kind: str) -> int:
    """How many cells of a kind a heat map has."""
    _, _, path = panel.partition(f'class="{kind}" d="')
    return sum(int(stroke) for stroke in re.findall(r"h(\d+)", path.partition('"')[0]))


def test_wrong_places_and_both_gradients_are_heat_maps() -> None:
    where, analytic, numeric, difference, blocks = panels(html(DRAWN_FACTS))
    assert [cells_of(where, kind) for kind in ("w8", "right")] == [14, 80 - 14]
    assert analytic != numeric
    assert sum(cells_of(difference, f"{sign}{shade}") for sign in "np" for shade in range(9)) == 14 - 2, "0 twice"
    assert [cells_of(blocks, kind) for kind in ("right", "w2", "w4", "w6", "w8", "none")] == [1] * 6


def test_a_scatter_has_a_cross_for_each_wrong_entry_and_a_dot_for_the_others() -> None:
    source = html(DRAWN_FACTS)
    assert source.count('class="scatter"') == 1
    assert source.count("m-3-3l6 6m0-6l-6 6") == 8, "equal ones are drawn once"
    assert "analytic against numeric, all 80 entries: × wrong (12), • not" in source


def test_differences_are_drawn_where_both_gradients_would_lie_on_one_line() -> None:
    close = pairs((1.01, -2.02, 0.0), (1.0, -2.0, 0.0))
    found = scatter(close, ("analytic", "numeric"), 3)
    assert "difference against numeric" in found.drawing
    assert 'class="equal" d="M8 ' in found.drawing
    assert "-2.0e-02 to 1.0e-02" in found.drawing


@pytest.mark.parametrize(
    ("error", "percent"),
    [(1.0, 100), (2.0, 100), (NAN, 100), (1e-4, 75), (1e-8, 50), (1e-16, 0), (0.0, 0), (None, 0)],
    ids=str,
)
def test_errors_are_on_a_logarithmic_scale(error: float | None, percent: float) -> None:
    assert percent_of_log(error) == pytest.approx(percent)


@given(st.lists(st.floats(), min_size=1))
def test_every_number_has_a_place_on_its_axis(values: list[float]) -> None:
    axis = Axis.over(values)
    assert all(0 <= axis.share(value) <= 1 for value in [*values, 0.0])
    low, high = sorted(values[:1] + values[-1:])
    assert math.isnan(low) or math.isnan(high) or axis.share(low) <= axis.share(high)


def test_a_bar_shows_the_error_the_error_bars_and_the_tolerance() -> None:
    row = match("weight", 3, relative_error=1e-8, relative_noise=1e-4)
    source = html(facts(row, tolerance=1e-12))
    for drawn in ('class="error" d="M0 3h50v4', 'class="band" d="M0 0h75v10', 'class="limit" d="M25 0v10'):
        assert drawn in source


def test_a_page_says_where_it_comes_from() -> None:
    read = Elements(html(DRAWN_FACTS))
    for said in ("net.Model<T>", "torch 2.13.0+cpu", "2026-11-30 (UTC)", 'mode="train")', "A processor"):
        assert said in read.words
    assert "How this was made" not in Elements(html(SAMPLES["all_right"])).words


def test_a_large_model_with_a_hundred_wrong_tensors_stays_small() -> None:
    rng = Random(0)
    grid = tuple(tuple(rng.gauss(0, 1) for _ in range(48)) for _ in range(16))
    other = tuple(tuple(value * rng.choice((1, 2)) for value in line) for line in grid)
    share = tuple(tuple(rng.random() for _ in line) for line in grid)
    of_each = {
        "map": WrongMap(share, "1600 rows", "4800 columns", (100, 100), other, grid),
        "pairs": pairs(sum(other, ())[:256], sum(grid, ())[:256]),
        "worst": tuple(coordinate(k, k) for k in range(10)),
    }
    rows = [wrong(f"transformer.h.{k}.attn.c_attn.weight", 1600, 4800, **of_each) for k in range(100)]
    right = [match(f"transformer.h.{k}.ln.weight", 1600) for k in range(48)]
    assert len(page(facts(*rows, *right), "gpt2")) < 300_000


def test_one_mistake_in_many_parameters_is_told_once() -> None:
    twice = Diagnosis(DiagnosisKind.SCALED, "dθ = 2 × the right gradient", 2.0)
    rows = [wrong(f"layers.{k}.weight", 4, worst=(coordinate(1),), diagnosis=twice) for k in range(4)]
    words = Elements(html(facts(*rows, culprit="norm"))).words
    assert words.count("dθ = 2 × the right gradient") == 1
    assert "layers.1.weight, layers.2.weight, layers.3.weight" in words
    assert "scaled, as layers.0.weight" in words


def test_the_contract_has_its_badges_and_its_messages() -> None:
    read = Elements(html(SAMPLES["broken_contract"]))
    contract = read.badges[-5:]
    assert contract == ["failed", "failed", "passed", "not_applicable", "not_applicable"]
    assert "12 of 12 entries changed" in read.words
    assert "forward_ad, vmap: The Function has no jvp." in read.words
    assert 'title="The backward says' in html(SAMPLES["broken_contract"])


def test_shares_of_wrong_entries_that_are_no_shares_are_drawn_as_the_nearest_one() -> None:
    """As a document of somebody else's may hold them."""
    where = WrongMap(((math.inf, 0.5, 0.0, -1.0),), "", "4 entries", (1, 1))
    [panel] = heat_maps(where, ("analytic", "numeric"))
    assert re.findall('class="(w8|w4|right)" d="([^"]*)"', panel.drawing) == [
        ("right", "m2 0h2"),
        ("w4", "m1 0h1"),
        ("w8", "m0 0h1"),
    ]
