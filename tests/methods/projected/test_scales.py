from __future__ import annotations

import numpy as np

from torch_gradcheck.methods.projected.scales import CAP_BY_LEAST, CAP_BY_MEDIAN, capped, scales


def test_a_step_counts_as_much_for_every_tensor() -> None:
    lengths, sizes = np.array([0.1, 2.0, 0.5]), np.array([0.2, 1.0, 0.3])
    np.testing.assert_allclose(scales(lengths, sizes) * lengths, 1)


def test_a_gradient_of_zero_is_looked_for_no_further_than_others_are_moved() -> None:
    lengths, sizes = np.array([0.1, 0.0, 0.2, 1e-17]), np.array([1.0, 2.0, 1.0, 3.0])
    moved = scales(lengths, sizes) / sizes
    assert np.isfinite(moved).all()
    assert moved[1] == moved[3] <= CAP_BY_LEAST * moved.min()
    assert capped(scales(lengths, sizes), lengths)[[0, 2]].tolist() == [1, 1]


def test_a_small_gradient_among_many_is_moved_thirty_times_as_far_as_the_typical_one() -> None:
    lengths = np.array([1.0, 1.0, 1.0, 1.0, 1e-3])
    np.testing.assert_allclose(scales(lengths, np.ones(5)), [1, 1, 1, 1, CAP_BY_MEDIAN])


def test_nothing_but_zeros_is_moved_by_its_own_size() -> None:
    assert scales(np.zeros(2), np.array([1.0, 3.0])).tolist() == [1, 3]


def test_tiny_losses_and_huge_ones() -> None:
    for loss in (1e-200, 1e-12, 1e12, 1e200):
        lengths = loss * np.array([0.1, 2.0])
        np.testing.assert_allclose(scales(lengths, np.ones(2)) * lengths, 1)
