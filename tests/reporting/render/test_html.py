from __future__ import annotations

from html import escape
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reporting.render.samples import ANY_FACTS, SAMPLES, coordinate, facts, match, wrong
from tests.zoo.sweeps import EXAMPLES
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, Facts
from torch_gradcheck.reporting.render.html import html, page

TABLE = {"table", "thead", "tbody", "tr", "th", "td"}
OURS = {"div", "style", "p", "span", "code", "details", "summary", "ul", "li"} | TABLE
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
    assert "url(" not in html(SAMPLES[name])


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
    badges = Elements(html(SAMPLES["nothing_wrong_not_all_proven"])).badges
    table = badges[:9]
    assert [badge for badge in table if badge != "match"] == ["flat", "flat", "kink", "undecided", "unused", "frozen"]
    assert table.count("match") == 3, "the others are folded"


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


def test_page_is_a_document_with_an_escaped_title() -> None:
    document = page(SAMPLES["all_right"], title="model.py:<problem>")
    assert document.startswith("<!DOCTYPE html>")
    assert "<title>model.py:&lt;problem&gt;</title>" in document
    assert html(SAMPLES["all_right"]) in document
    assert Elements(document).addresses == []


def test_wrong_places_are_a_heat_map() -> None:
    source = html(SAMPLES["partly_wrong"])
    assert source.count('<table class="map">') == 2, "where everything is wrong there is nothing to see"
    assert source.count("rgba(207, 34, 46, 1.00)") == 14 + 2, "cells that are all wrong"
    assert source.count("rgba(26, 127, 55, 0.25)") == 80 - 14 + 3, "cells that are all right"


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
