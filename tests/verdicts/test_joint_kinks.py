"""Directions along which all pieces of a function have one slope, from the gradients of these pieces."""

from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.verdicts.joint_kinks import joint_directions, kinked, nearest_allowed

OF_TIES = [[0, 1, 2, 0, 2, 1, 1, 0], [0, 0, 1, 1, 0, 1, 0, 1]]
"""Which of the tied entries is the largest at each of eight points, for two groups of them."""


def pieces(*groups: tuple[list[int], float], entries: int = 5) -> Floats:
    """Gradients of Σ size · max over a group, at eight points; an entry in no group has the derivative 0.5."""
    found = np.full((8, entries), 0.5)
    for (group, size), places in zip(groups, OF_TIES, strict=False):
        found[:, group] = 0.0
        for point, place in enumerate(places):
            found[point, group[place]] = size
    return found


def gradient(shares: list[float], size: float = 2.0) -> Floats:
    return np.array([size * shares[0], size * shares[1], size * shares[2], 0.5, 0.5])


TIED = pieces(([0, 1, 2], 2.0))
FIRST, EQUAL = gradient([1, 0, 0]), gradient([1 / 3, 1 / 3, 1 / 3])


def test_what_differs_between_the_pieces_is_kinked() -> None:
    assert np.flatnonzero(kinked(TIED)).tolist() == [0, 1, 2]
    assert not kinked(TIED * (1 + 1e-6 * np.arange(8))[:, None])[3:].any(), "curvature is no kink"


@pytest.mark.parametrize("reference", [FIRST, EQUAL], ids=["first", "equal"])
@pytest.mark.parametrize(
    "shares",
    [(1, 0, 0), (0, 0, 1), (1 / 3, 1 / 3, 1 / 3), (0.5, 0.5, 0), (0.2, 0.3, 0.5)],
    ids=["first", "last", "equal", "two", "uneven"],
)
def test_no_direction_contradicts_a_mixture_of_the_pieces(shares: list[float], reference: Floats) -> None:
    assert joint_directions(gradient(shares), reference, TIED, [np.ones(5), np.sign(FIRST)]) == []


@pytest.mark.parametrize("reference", [FIRST, EQUAL], ids=["first", "equal"])
@pytest.mark.parametrize(
    ("shares", "allowed"),
    [((1, 1, 1), (1 / 3, 1 / 3, 1 / 3)), ((0.5, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)), ((0, 0, 0), (1 / 3, 1 / 3, 1 / 3))],
    ids=["each all", "each a half", "none anything"],
)
def test_a_direction_in_which_the_tied_move_together_contradicts_others(
    shares: list[float], allowed: list[float], reference: Floats
) -> None:
    on_trial = gradient(shares)
    first, *_ = joint_directions(on_trial, reference, TIED, [])
    assert np.abs(first) == pytest.approx(np.array([1, 1, 1, 0, 0]) / np.sqrt(3), abs=1e-12)
    found, wrong = nearest_allowed(on_trial, float(reference @ first), first)
    assert found == pytest.approx(gradient(allowed))
    assert wrong.tolist() == [True, True, True, False, False]


def test_two_groups_are_told_apart() -> None:
    """Both tie; in the second the gradient is a mixture of the pieces."""
    both = pieces(([0, 1, 2], 2.0), ([3, 4], 3.0))
    on_trial, of_torch = np.array([2, 2, 2, 1.5, 1.5]), np.array([2, 0, 0, 3, 0.0])
    first, *_ = joint_directions(on_trial, of_torch, both, [])
    assert np.flatnonzero(np.abs(first) > 1e-9).tolist() == [0, 1, 2]


def test_the_convention_of_torch_counts_as_a_piece() -> None:
    """relu(x) − relu(−x): the pieces have the slope 1, torch says 0. That 0 is on trial contradicts nothing."""
    assert joint_directions(np.zeros(1), np.zeros(1), np.ones((8, 1)), [np.ones(1)]) == []


def test_more_groups_than_points_are_tried_by_directions_that_keep_the_usual_ties() -> None:
    groups = [([3 * k, 3 * k + 1, 3 * k + 2], 1.0 + k) for k in range(20)]
    rng = np.random.default_rng(0)
    nearby, first = np.zeros((8, 60)), np.zeros(60)
    for (group, size), places in zip(groups, rng.integers(0, 3, (20, 8)), strict=True):
        nearby[np.arange(8), np.array(group)[places]] = size
        first[group[0]] = size
    each = np.repeat(1.0 + np.arange(20), 3)
    found = joint_directions(each, first, nearby, [np.ones(60)])
    assert any(np.allclose(unit, each / np.linalg.norm(each)) for unit in found)
