"""The parts of a tensor: slices and blocks along every axis, and sums over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_gradcheck.against_reference.judging.parts import Cut, Part, cuts_of

SHAPES = st.lists(st.integers(1, 40), min_size=0, max_size=4).filter(lambda shape: np.prod(shape) < 5000)


@given(SHAPES)
@settings(deadline=None, max_examples=40)
def test_every_sum_is_that_over_its_part(shape: list[int]) -> None:
    values = np.random.default_rng(0).integers(-9, 9, size=int(np.prod(shape))).astype(float)
    for cut in cuts_of(shape):
        sums = cut.sums(values)
        for number in {0, len(sums) // 2, len(sums) - 1}:
            assert sums[number] == values[cut.part(number).inside(shape)].sum()


def test_tails_after_the_last_full_block_are_parts_of_their_own() -> None:
    cut = Cut((70, 3), (0,))
    parts = [cut.part(number) for number in range(len(cut.counts))]
    assert Part((0,), 64, 70) in parts
    assert Part((0,), 48, 64) in parts
    assert Part((0,), 69, 70) in parts


def test_each_head_of_each_sequence_is_a_part() -> None:
    assert [cut.axes for cut in cuts_of((2, 3, 5, 4))] == [(), (0,), (1,), (2,), (3,), (0, 1), (0, 1, 2)]


def test_axes_of_one_slice_are_not_cut() -> None:
    assert [cut.axes for cut in cuts_of((1, 7, 1))] == [(), (1,)]


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part((), 0, 1), "all of it"),
        (Part((1,), 4, 5), "slice 4 along dimension 1"),
        (Part((1,), 64, 70), "slices 64 to 69 along dimension 1"),
        (Part((0, 1), 3, 4), "slice 3 along dimensions 0 to 1"),
    ],
    ids=["whole", "slice", "block", "leading axes"],
)
def test_parts_are_named(part: Part, words: str) -> None:
    assert str(part) == words
