from __future__ import annotations

from torch_gradcheck.planting.spots import BlindSpot, BlindSpots

HIDDEN = BlindSpot("block.<norm>", "output gradient scaled by 1.01", found=False, reason="its weight is 1 < 2")
FOUND = BlindSpot("block", "output gradient zeroed", found=True)


def test_a_notebook_shows_what_the_table_says_with_names_escaped() -> None:
    source = BlindSpots((HIDDEN, FOUND), "eval", seed=3, perturb=0.5, notes=("a note",))._repr_html_()
    for said in (
        "1 of 2 faults would be found",
        "mode eval, seed 3, perturb 0.5",
        "block.&lt;norm&gt;",
        "1 &lt; 2",
        "a note",
    ):
        assert said in source
    assert '<div class="head undecided">' in source


def test_where_all_are_found_there_is_no_table() -> None:
    source = BlindSpots((FOUND,), "eval", seed=0)._repr_html_()
    assert "1 of 1 faults would be found" in source
    assert "<table" not in source
    assert '<div class="head match">' in source


def test_the_repr_is_one_line() -> None:
    found = repr(BlindSpots((HIDDEN, FOUND), "eval", seed=3))
    assert found == "<BlindSpots: 1 of 2 faults would be found; mode eval, seed 3>"
