"""Directions and steps on their way to other ranks."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_gradcheck.methods.directional.motions import Direction, Drawn, InSizes, Motion, Part
from torch_gradcheck.methods.directional.names import Names
from torch_gradcheck.methods.directional.shared import pairs_of, ranks_of
from torch_gradcheck.processes.team import Team


def random(number: int, scales: Mapping[int, float]) -> Drawn:
    def draw(number: int, position: int) -> Tensor:
        return torch.rand(6, generator=torch.Generator().manual_seed(10 * number + position)) + 0.5

    return Drawn(number, scales, draw)


def in_sizes(direction: Drawn) -> InSizes:
    return InSizes(direction, lambda position, components: (position + 1) * components.double())


SPARSE: Direction = {3: Motion(0.5, torch.tensor([0.0, 0.0, 0.0, 7.0, 0.0, 0.0], dtype=torch.float64))}
DENSE: Direction = {0: Motion(2.0, torch.arange(1.0, 7.0)), 1: Motion(1.0, torch.ones(2))}
DIRECTIONS = {
    "random": random(4, {0: 2.0, 2: 0.1}),
    "part": Part(random(1, {2: 3.0}), 2, 1, 5, [3]),
    "in sizes of entries": in_sizes(random(5, {0: 2.0, 2: 0.1})),
    "sparse": SPARSE,
    "dense": DENSE,
}


def sent(names: Names, other: Names, directions: list[Direction]) -> list[Direction]:
    """The directions as the other rank has them."""
    return other.called(pickle.loads(pickle.dumps(names.given(1, directions))), random, in_sizes)


def assert_same(one: Direction, other: Direction) -> None:
    assert list(one) == list(other)
    for position, motion in one.items():
        assert motion.scale == other[position].scale
        assert torch.equal(motion.components, other[position].components)


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_another_rank_has_the_same_direction(direction: Direction) -> None:
    (received,) = sent(Names(), Names(), [direction])
    assert_same(direction, received)


@pytest.mark.parametrize("name", ["random", "part", "in sizes of entries"])
def test_what_every_rank_can_draw_is_not_sent(name: str) -> None:
    kept, (given,) = Names(), Names().given(1, [DIRECTIONS[name]])
    assert b"numpy" not in pickle.dumps(given)
    kept.called([given], random, in_sizes)
    assert not kept._kept[0]


def test_components_are_sent_once() -> None:
    names, other = Names(), Names()
    sent(names, other, [DENSE])
    again = names.given(1, [SPARSE, DENSE])
    assert len(pickle.dumps(again[1])) < 200
    for direction, received in zip([SPARSE, DENSE], other.called(again, random, in_sizes), strict=True):
        assert_same(direction, received)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("directions", [1, 2, 5])
def test_pairs_stay_together_and_are_shared_evenly(size: int, directions: int) -> None:
    which, steps = np.repeat(np.arange(directions), 6), np.tile([1.0, -1.0, 0.5, -0.5, 0.25, -0.25], directions)
    ranks = ranks_of(which, steps, size)
    pairs = pairs_of(which, steps)
    of_pair = [set(ranks[(which == i) & (np.abs(steps) == step)].tolist()) for i, step in pairs]
    assert all(len(each) == 1 for each in of_pair)
    counts = np.bincount(ranks, minlength=size)
    assert counts.max() - counts.min() <= 2
    assert counts[0] == counts.min(), "the leader has slopes to predict besides"


def test_a_rank_alone_shares_nothing() -> None:
    assert not Team().can_share
