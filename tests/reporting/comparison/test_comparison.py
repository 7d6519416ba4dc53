"""A comparison says what is different in words, lists and an exit, and that nothing is where nothing is."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len

from tests.reporting.made_up import REPORTS, whole
from tests.reporting.render.samples import facts, match, wrong
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.comparison.comparison import Comparison
from torch_gradcheck.reporting.facts.provenance import Provenance
from torch_gradcheck.reporting.report import Report


def compared(new: str, old: str) -> Comparison:
    return REPORTS[new].compare(REPORTS[old])


@pytest.mark.parametrize("name", REPORTS, ids=str)
def test_a_report_beside_itself_is_unchanged(name: str) -> None:
    found = REPORTS[name].compare(Report.from_json(REPORTS[name].to_json()))
    assert found.is_unchanged
    assert found
    assert found.text().startswith("nothing changed: ")
    assert "not checked alike" not in found.text()
    assert "the loss was" not in found.text()


def test_what_became_wrong_is_told_first_with_its_mistake() -> None:
    found = compared("two_of_twelve_wrong", "nothing_wrong_not_all_proven")
    assert found.became_wrong == ["self_attn.out_proj.weight", "norm1.weight"]
    assert not found
    lines = found.text(width=120).splitlines()
    assert lines[0] == "2 BECAME WRONG, 1 changed, 5 better, 4 as before"
    assert lines[1].startswith("old: gradients right: 6 of 12 parameters")
    assert lines[3] == "new: gradients WRONG in 2 of 12 parameters; culprit: norm1, in the backward of FusedNorm at"
    assert lines[4] == "net.py:13"
    assert lines[8].startswith("became wrong norm1.weight"), "the worst"
    assert lines[9] == "became wrong self_attn.out_proj.weight 16×16 match        3.1e-09 mismatch    2.1e-03"
    assert "    scaled: dθ = 2.000 × the right gradient in every entry" in found.text()


def test_the_other_way_round_nothing_became_wrong() -> None:
    found = compared("nothing_wrong_not_all_proven", "two_of_twelve_wrong")
    assert found.became_right == ["self_attn.out_proj.weight", "norm1.weight"]
    assert len(found.worse) == 5
    assert found.headline == "nothing became wrong: 5 worse, 1 changed, 2 became right, 4 as before"


def test_the_contract_is_compared_entry_by_entry() -> None:
    broken, kept = compared("broken_contract", "kept_contract"), compared("kept_contract", "broken_contract")
    assert (broken.became_broken, broken.became_wrong) == (["grad_output_kept", "layouts"], [])
    assert broken.regressed
    assert broken.headline == "2 as before, contract BROKEN now in grad_output_kept, layouts"
    assert "✗ layouts\n    [red]With an expanded gradient[/red]" in broken.text()
    assert (kept.became_kept, kept.regressed) == (["grad_output_kept", "layouts"], False)
    assert repr(broken.entries[0]) == "<ComparedEntry grad_output_kept: passed → failed>"


def test_a_contract_that_is_gone_is_a_change_and_not_broken() -> None:
    found = replace(REPORTS["kept_contract"], contract=[]).compare(REPORTS["kept_contract"])
    assert not found.is_unchanged
    assert (found.became_broken, found.became_kept, found.regressed) == ([], [], False)


def test_a_reference_that_became_wrong_is_said() -> None:
    found = compared("reference_wrong", "candidate_right")
    assert found.reference_became_wrong
    assert found.regressed
    assert "the reference is WRONG now" in found.headline


def test_the_same_rows_may_prove_less() -> None:
    old = REPORTS["reference_wrong"]
    assert old.reference is not None
    right = replace(old, reference=replace(old.reference, parameters=old.reference.parameters[1:]))
    assert old.compare(right).headline == "2 as before, the reference is WRONG now"
    spread = replace(REPORTS["all_right"], backward_spread=0.5).compare(REPORTS["all_right"])
    assert (spread.is_unchanged, spread.regressed) == (False, False)
    assert "new: the backward is NOT ONE FUNCTION" in spread.text()


def test_what_was_not_checked_alike_is_said_on_top() -> None:
    old = whole(facts(match("a", 3)))
    new = replace(old, mode="train", seed=7, loss=3.0)
    found = new.compare(old)
    assert found.conditions == {"mode": ("eval", "train"), "seed": (0, 7)}
    shown = found.text()
    assert "not checked alike: mode eval → train, seed 0 → 7\n" in shown
    assert "the loss was 2.3025851 and is 3: other parameters" in shown
    assert "the loss was" not in replace(old, loss=old.loss + 1e-15).compare(old).text(), "noise of J"


def test_another_model_and_another_torch_are_said_where_both_reports_tell() -> None:
    told = replace(whole(facts(match("a", 3))), provenance=Provenance(model="Net", torch="2.6.0", devices=("cpu",)))
    later = replace(told, provenance=Provenance(model="Net2", torch="2.6.0", devices=("cpu", "cuda:0"), date="today"))
    assert later.compare(told).conditions == {"model": ("Net", "Net2"), "devices": ("cpu", "cpu, cuda:0")}
    assert later == told
    assert later.compare(replace(told, provenance=None)).conditions == {}


@pytest.mark.parametrize("other", [None, "old.json", {}, 3], ids=ascii)
def test_what_is_no_report_is_refused(other: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"not with a \w+; Report\.load\(path\) reads one"):
        REPORTS["all_right"].compare(other)


def test_a_comparison_is_a_value() -> None:
    found, again = (compared("two_of_twelve_wrong", "all_right") for _ in range(2))
    assert found == again
    assert hash(found) == hash(again)
    assert pickle.loads(pickle.dumps(found)) == found
    assert found != compared("all_right", "two_of_twelve_wrong")
    assert repr(found) == "<Comparison: 2 BECAME WRONG, 10 as before>"


def test_as_a_dict_it_is_json() -> None:
    found = compared("two_hundred_tensors", "broken_contract").to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["regressed"] is True
    assert found["only_old"] == ["x", "weight"]
    assert found["conditions"] == {"method": ["exact", "projected"]}


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits_the_page(width: int) -> None:
    for new, old in (("two_hundred_tensors", "all_right"), ("odd_shapes_and_figures", "reference_wrong")):
        for line in compared(new, old).text(width=width).splitlines():
            assert cell_len(line) <= width
            assert line.isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_output_can_encode_it(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    for new, old in (("two_hundred_tensors", "all_right"), ("odd_shapes_and_figures", "broken_contract")):
        str(compared(new, old)).encode(encoding)


def test_a_terminal_has_colours_and_a_formatted_string_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = compared("two_of_twelve_wrong", "all_right")
    assert "\x1b[1;31m2 BECAME WRONG" in str(found)
    assert f"{found}" == found.text()
    assert "\x1b" not in found.text()


def test_long_lists_are_counted() -> None:
    shown = compared("two_hundred_tensors", "no_parameters").text()
    assert "\n\n… and 185 more rows that changed; the lists of the comparison name them all\n\n" in f"{shown}\n\n"


def test_of_what_became_wrong_the_worst_is_told_first() -> None:
    errors = {"a": 0.1, "b": 0.9, "c": 0.5}
    new = facts(*[wrong(name, 3, relative_error=error) for name, error in errors.items()])
    found = Comparison.of(new, facts(*[match(name, 3) for name in errors]))
    assert found.became_wrong == ["a", "b", "c"], "in the order of the model"
    assert [line.split()[2] for line in found.text().splitlines() if line.startswith("became")] == ["b", "c", "a"]


def test_a_notebook_shows_a_table_in_which_names_are_no_markup() -> None:
    old = whole(facts(match("<b>a</b>", 3)))
    shown = whole(facts(wrong("<b>a</b>", 3, reason="<i>wrong</i>"))).compare(old)._repr_html_()
    assert "<td>became wrong</td><td>&lt;b&gt;a&lt;/b&gt;</td>" in shown
    assert "<b>" not in shown
    assert "<i>" not in shown
