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


def test_a_cell_holds_both_gradients_where_they_are_furthest_apart() -> None:
    numeric = np.arange(1.0, 13.0).reshape(3, 4)
    analytic = numeric.copy()
    analytic[1, 2], analytic[2, 3] = -70.0, 1 / 3
    drawn = wrong_map(Evidence.of(analytic, numeric, np.ones(12)))
    assert drawn.numeric == tuple(map(tuple, numeric))
    assert drawn.analytic[1] == (5.0, 6.0, -70.0, 8.0)
    assert drawn.analytic[2][3] == 1 / 3


def test_of_a_block_the_furthest_entry_is_kept_and_nothing_of_one_that_was_not_judged() -> None:
    numeric = np.ones((32, 97))
    analytic = numeric.copy()
    analytic[3, 5], analytic[2, 4], analytic[31, 96] = 9.0, 3.0, math.nan
    evidence = Evidence.of(analytic, numeric, np.ones(32 * 97))
    judged = evidence.judged.reshape(32, 97).copy()
    judged[4:6, :3] = False
    drawn = wrong_map(replace(evidence, judged=judged.ravel()))
    assert drawn.block == (2, 3)
    assert drawn.analytic[1][1] == 9.0
    assert math.isnan(drawn.analytic[15][32])
    assert drawn.numeric[15][32] == 1.0
    assert math.isnan(drawn.numeric[2][0])
    assert [len(line) for line in drawn.numeric] == [33] * 16
