from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map


def spoiled(shape: tuple[int, ...], *wrong: int) -> Evidence:
    right = np.linspace(1, 2, math.prod(shape)).reshape(shape)
    analytic = right.copy()
    analytic.reshape(-1)[list(wrong)] *= 2
    return Evidence.of(analytic, right, right)


def test_a_small_matrix_is_drawn_entry_by_entry() -> None:
    drawn = wrong_map(spoiled((2, 3), 4))
    assert drawn.cells == ((0, 0, 0), (0, 1, 0))
    assert (drawn.down, drawn.across, drawn.block) == ("2 rows", "3 columns", (1, 1))


def test_a_large_one_by_blocks_and_their_shares() -> None:
    drawn = wrong_map(spoiled((32, 96), 0, 1, 96))
    assert (len(drawn.cells), len(drawn.cells[0]), drawn.block) == (16, 48, (2, 2))
    assert drawn.cells[0][0] == 0.75
    assert sum(map(sum, drawn.cells)) == 0.75


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1000,), (3, 5), (17, 49), (4, 3, 2, 2), (0, 3)], ids=str)
def test_any_shape_fits(shape: tuple[int, ...]) -> None:
    drawn = wrong_map(spoiled(shape))
    assert len(drawn.cells) <= 16
    assert all(len(line) <= 48 for line in drawn.cells)
    assert {share for line in drawn.cells for share in line} <= {0.0}


def test_the_last_block_counts_what_it_has() -> None:
    assert wrong_map(spoiled((49,), 48)).cells[0][24] == 1.0


def test_what_was_not_judged_is_no_number() -> None:
    evidence = replace(spoiled((3,), 0), judged=np.array([True, True, False]))
    first, second, third = wrong_map(evidence).cells[0]
    assert (first, second) == (1.0, 0.0)
    assert math.isnan(third)


def test_a_convolution_has_its_output_channels_downwards() -> None:
    drawn = wrong_map(spoiled((4, 3, 2, 2), 12))
    assert (drawn.down, drawn.across) == ("4 output channels", "3×2×2 entries of each")
    assert drawn.cells[1][0] == 1.0
