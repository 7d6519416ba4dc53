from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from torch_gradcheck.reporting.printable import printable
from torch_gradcheck.reporting.render.shorten import shortened


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["norm.weight"], ["norm.weight"]),
        (["twenty_five.characters.xyz"], ["twenty…aracters.xyz"]),
        (["model.decoder.layers.12.norm.bias"], ["…12.norm.bias"]),
        (["model.layers.7.self_attn.in_proj_weight"], ["…7.sel…_proj_weight"]),
        (["encoder.0.a_long_name.bias", "decoder.0.a_long_name.bias"], ["e….a_long_name.bias", "d….a_long_name.bias"]),
        (["start.of.q_proj.the_weight", "start.of.k_proj.the_weight"], ["s…q_proj.the_weight", "s…k_proj.the_weight"]),
        (
            [f"{'x' * 20}{letter * 18}{'y' * 20}" for letter in "ab"],
            [f"{'x' * 5}…{'y' * 11}#{number}" for number in "12"],
        ),
        ([f"{'x' * 20}_{letter}_{'y' * 20}" for letter in "pq"], [f"…{letter}…{'y' * 16}" for letter in "pq"]),
        (["the_block_number_12_of_the_encoder.weight"], ["the_b…12…der.weight"]),
    ],
    ids=[
        "fits",
        "middle",
        "block",
        "block and middle",
        "told apart at the start",
        "told apart in the middle",
        "numbered",
        "told apart by what differs",
        "numbers are kept",
    ],
)
def test_shortened(names: list[str], shown: list[str]) -> None:
    assert shortened(names, 19) == shown


PART = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).map(printable) | st.integers(0, 99).map(str)
NAMES = st.lists(st.lists(PART, min_size=1, max_size=6).map(".".join), unique=True, max_size=40)


@pytest.mark.slow
@given(NAMES, st.integers(min_value=10, max_value=40))
def test_shortened_names_fit_and_stay_different(names: list[str], width: int) -> None:
    shown = shortened(names, width)
    assert len(set(shown)) == len(names)
    assert all(cell_len(form) <= width for form in shown)
