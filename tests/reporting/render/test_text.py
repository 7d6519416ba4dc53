"""The text report, held by golden files: one for each sample, in golden/.

After a change that is meant, this writes them anew; read the difference before you commit it:

    TORCH_GRADCHECK_REWRITE_GOLDEN=1 pytest tests/reporting/render/test_text.py
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tests.reporting.render.samples import ANY_FACTS, SAMPLES, coordinate, facts, match, transformer_layer, wrong
from tests.zoo.sweeps import EXAMPLES
from torch_gradcheck.reporting.facts import ContractEntry, ContractStatus, Facts, Status
from torch_gradcheck.reporting.render.terminal import Page
from torch_gradcheck.reporting.render.text import text

GOLDEN = Path(__file__).parent / "golden"
REWRITE = os.environ.get("TORCH_GRADCHECK_REWRITE_GOLDEN") == "1"


@pytest.mark.parametrize("name", SAMPLES, ids=str)
def test_text_is_the_golden_one(name: str) -> None:
    golden = GOLDEN / f"{name}.txt"
    printed = text(SAMPLES[name]) + "\n"
    if REWRITE:
        golden.write_text(printed, encoding="utf-8")
    assert printed == golden.read_text(encoding="utf-8")


def test_every_golden_file_has_its_sample() -> None:
    assert {golden.stem for golden in GOLDEN.iterdir()} == set(SAMPLES)


@pytest.mark.slow
@settings(max_examples=EXAMPLES)
@given(ANY_FACTS, st.integers(min_value=1, max_value=200))
def test_any_report_fits_its_width_and_is_plain(report: Facts, width: int) -> None:
    for line in text(report, Page(width)).split("\n"):
        assert cell_len(line) <= max(width, 40)
        assert line.isprintable()
        assert line == line.rstrip()


@pytest.mark.slow
@given(st.text(st.characters(), min_size=1, max_size=30))  # lone surrogates too
def test_any_name_can_be_written_to_a_file(name: str) -> None:
    assert text(facts(match(name))).encode()


@pytest.mark.parametrize("variable", ["COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "JUPYTER_COLUMNS"])
def test_text_does_not_depend_on_the_terminal(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = text(SAMPLES["two_of_twelve_wrong"])
    monkeypatch.setenv(variable, "40")
    assert text(SAMPLES["two_of_twelve_wrong"]) == expected


def test_text_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text(SAMPLES["all_right"]).startswith("gradients right")


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, "…3.sel…out_proj.bias"), (120, "model.decoder.layers.3.self_attn.out_proj.bias")],
    ids=["80", "120"],
)
def test_a_wider_page_shows_longer_names_whole(width: int, shown: str) -> None:
    table = text(SAMPLES["two_hundred_tensors"], Page(width)).split("\n\n")[1]
    assert f"✗ mismatch {shown} " in table


@pytest.mark.parametrize("tensors", [10, 11], ids=["whole", "folded"])
def test_tables_of_more_than_ten_right_rows_are_folded(tensors: int) -> None:
    rows = [match(f"layers.{index}.weight", 3, relative_error=1e-9 * (index + 1)) for index in range(tensors)]
    printed = text(facts(*rows))
    assert ("… and 8 more that match, relative errors 1.0e-09 to 8.0e-09" in printed) == (tensors == 11)
    assert ("layers.0.weight" in printed) == (tensors == 10)
    assert "layers.9.weight" in printed, "the worst are shown"


def test_wrong_rows_come_first_worst_on_top_then_the_models_order() -> None:
    rows = [match("a", 1), wrong("b", 1, relative_error=0.1), match("c", 1), wrong("d", 1, relative_error=0.9)]
    lines = text(facts(*rows)).split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("───")) + 1
    assert [line[:12] for line in lines[start : start + 4]] == [
        "✗ mismatch d",
        "✗ mismatch b",
        "  match    a",
        "  match    c",
    ]


def test_three_coordinates_of_a_wrong_parameter_are_shown() -> None:
    row = wrong("weight", 10, worst=tuple(coordinate(index) for index in range(10)))
    printed = text(facts(row))
    assert [f"[{index}]" in printed for index in range(5)] == [True, True, True, False, False]


def test_ten_wrong_parameters_are_told_one_by_one() -> None:
    printed = text(SAMPLES["everything_wrong"])
    assert "✗ blocks.9.weight, shape 4" in printed
    assert "✗ blocks.10.weight, shape 4" not in printed
    assert "… and 50 more that are wrong; report.mismatches has them all" in printed


@pytest.mark.parametrize(
    ("sample", "headline"),
    [
        ("two_of_twelve_wrong", "gradients WRONG in 2 of 12 parameters"),
        ("all_right", "gradients right: 12 of 12 parameters"),
        ("nothing_proven", "no gradient proven right: 0 of 1 parameter, 1 flat (nothing proven)"),
    ],
    ids=["wrong", "right", "nothing proven"],
)
def test_the_first_line_is_the_outcome(sample: str, headline: str) -> None:
    assert text(SAMPLES[sample]).split("\n")[0] == headline


def test_what_is_proven_at_kinks_only_is_called_right() -> None:
    rows = [replace(row, status=Status.KINK, reason="") for row in transformer_layer()]
    proven = facts(*rows)
    assert proven.proven
    assert text(proven).split("\n")[0] == f"gradients right: 0 of {len(rows)} parameters, {len(rows)} at a kink"


def test_a_reason_shared_by_many_is_given_once() -> None:
    rows = [replace(row, status=Status.FLAT, reason="Too quiet.") for row in transformer_layer()]
    printed = text(facts(*rows))
    assert printed.count("Too quiet.") == 1
    assert "and 6 more" in printed


@pytest.mark.parametrize(
    ("sample", "entry"),
    [("broken_contract", "layouts"), ("wrong_gradient_and_contract", "layouts and 2 more")],
)
@pytest.mark.parametrize("width", [80, 120])
def test_the_first_six_lines_name_the_failed_entries(sample: str, entry: str, width: int) -> None:
    assert entry in "\n".join(text(SAMPLES[sample], Page(width)).splitlines()[:6])


def test_the_culprit_stands_in_the_first_six_lines_below_a_broken_contract() -> None:
    assert "culprit: the model's own forward" in text(SAMPLES["wrong_gradient_and_contract"]).splitlines()[:6]


def test_a_contract_of_which_nothing_applies_has_no_outcome() -> None:
    entry = ContractEntry("vmap", ContractStatus.NOT_APPLICABLE, "It draws random numbers.")
    printed = text(facts(match("x", 3), contract=[entry]))
    assert printed.startswith("gradients right: 1 of 1 parameter\n")
    assert printed.endswith("contract: 1 not applicable\n- vmap (not applicable): It draws random numbers.")


def test_everything_is_shown_where_that_is_asked_for() -> None:
    printed = text(SAMPLES["everything_wrong"], max_rows=None)
    assert printed.count("✗ mismatch") == 60
    assert printed.count("\n✗ blocks") == 60
    assert "…" not in printed


@pytest.mark.parametrize("most", [0, 1, 3])
def test_as_many_rows_are_shown_as_asked_for(most: int) -> None:
    printed = text(SAMPLES["everything_wrong"], max_rows=most)
    assert (printed.count("✗ mismatch"), printed.count("\n✗ blocks")) == (most, most)
    assert f"… and {60 - most} more that are wrong, relative error 3.3e-01" in printed


def test_what_is_not_wrong_is_only_counted_where_that_is_asked_for() -> None:
    found = facts(
        wrong("a", 3), match("b", 3), *[replace(match("c", 3), status=Status.FLAT, name=f"c{k}") for k in range(2)]
    )
    printed = text(found, only_wrong=True)
    assert "✗ mismatch a" in printed
    assert "… and 1 more that match, relative error 3.1e-09\n… and 2 more that are flat" in printed
    assert "nothing was proven, a wrong backward" not in printed


def test_the_report_of_a_right_model_fits_on_a_screen() -> None:
    rows = [match(f"layers.{index}.weight", 64, 64, relative_error=1e-9 * (index + 1)) for index in range(300)]
    assert len(text(facts(*rows, notes=["One sentence. " * 8])).split("\n")) <= 24


def test_reasons_that_differ_in_their_figures_are_one_with_ranges() -> None:
    said = "the noise of J hides errors below {} of the gradient; tolerance={} would decide it"
    figures = [("5e-04", "1e-3"), ("6e-05", "1e-4"), ("2e-04", "1e-3")]
    rows = [
        replace(match(f"layers.{k}.weight", 3), status=Status.UNDECIDED, reason=said.format(*each))
        for k, each in enumerate(figures)
    ]
    printed = " ".join(text(facts(*rows), Page(200)).split())
    assert said.format("2e-04 to 5e-04", "1e-3") in printed
    assert said.format("6e-05", "1e-4") in printed
    assert printed.count("? undecided: ") == 2
