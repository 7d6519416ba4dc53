"""What is said of the shares that ranks have in `.grad`, from numbers alone."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.objective.loss import ClosureLoss
from torch_gradcheck.training_step.ranks.reduction import Reduction
from torch_gradcheck.training_step.ranks.shard_clipping import clipped_by_shards
from torch_gradcheck.training_step.ranks.unreduced import unreduced
from torch_gradcheck.training_step.ranks.window import WindowOfRanks

GENERATOR = np.random.default_rng(0)


def window(ranks: Sequence[int], weights: Sequence[float] = (), sizes: Sequence[int] = ()) -> WindowOfRanks:
    losses = [ClosureLoss(lambda: 0.0)] * len(ranks)
    per_rank = len(ranks) // len(set(ranks))
    return WindowOfRanks(losses, weights, float(sum(weights)) or len(ranks), per_rank, ranks, sizes)


@pytest.mark.parametrize(
    ("of", "found", "words"),
    [
        pytest.param(window([0, 1]), [0.5, 0.5], "", id="right"),
        pytest.param(window([0, 1]), [1.0, 1.0], "", id="a factor on all"),
        pytest.param(window([0, 1]), [0.5, 0.0], "dθ holds nothing of rank 1: its backward", id="skipped"),
        pytest.param(window([0, 1, 2, 3]), [0.5, 0.5, 0.0, 0.0], "the mean over ranks 0, 1 only", id="another group"),
        pytest.param(window([0, 1, 2, 3]), [0.25, 0.25, 0.25, 0.0], "nothing of rank 3: its", id="one of four"),
        pytest.param(window([0, 1, 2]), [0.25, 0.5, 0.25], "(rank 1 counts twice)", id="twice"),
        pytest.param(window([0, 1], sizes=[2, 6]), [0.25, 0.75], "by the sizes of the batches, 2, 6", id="by size"),
        pytest.param(window([0, 0, 1, 1]), [0.25, 0.25, 0.0, 0.25], "nothing of batch 1 of rank 1", id="a batch"),
        pytest.param(window([0, 1], [1, 3]), [0.5, 0.5], "each rank counting the same", id="weights not summed"),
        pytest.param(window([0, 1]), [0.4, 0.6], "weights 0.4 of rank 0, 0.6 of rank 1, where equal", id="others"),
    ],
)
def test_words_on_shares(of: WindowOfRanks, found: Sequence[float], words: str) -> None:
    message = of.message(np.array(found), scaled=False)
    assert words in message
    assert bool(message) is bool(words)


def gradients(number: int, entries: int = 24) -> list[Floats]:
    return list(GENERATOR.normal(size=(number, entries)))


def beside(given: Floats, right: Floats) -> Evidence:
    return Evidence.of(given.reshape(4, -1), right.reshape(4, -1), np.zeros(given.size), error_bar=1e-9)


@pytest.mark.parametrize("factor", [1.0, 0.5], ids=["as it is", "divided"])
def test_gradients_of_the_ranks_own(factor: float) -> None:
    one, other = gradients(2)
    evidences = {0: beside(factor * one, (one + other) / 2), 1: beside(one, one)}
    held = {0: [factor * one, factor * other]}
    found = unreduced(evidences, held, window([0, 1]), [{0: one, 1: one}, {0: other, 1: one}])
    assert set(found) == {0}
    assert found[0].factor == (None if factor == 1.0 else pytest.approx(factor))
    assert "is among those that are not reduced" in found[0].message


def test_gradients_that_differ_otherwise_are_not_the_ranks_own() -> None:
    one, other = gradients(2)
    mean = (one + other) / 2
    evidences = {0: beside(2 * mean, mean)}
    assert not unreduced(evidences, {0: [2 * mean, mean]}, window([0, 1]), [{0: one}, {0: other}])


HALVES = [(0, 2), (2, 4)]


@pytest.mark.parametrize(
    ("factors", "is_found"),
    [((0.5, 0.25), True), ((2.1e-3, 1.8e-3), True), ((0.5, 0.5), False), ((2.0, 0.5), False), ((-0.5, 0.5), False)],
    ids=["a factor a shard", "small ones", "one factor", "larger", "flipped"],
)
def test_norms_clipped_a_shard_at_a_time(factors: tuple[float, float], is_found: bool) -> None:
    rights: Mapping[int, Floats] = dict(enumerate(gradients(2)))
    scale = np.repeat(factors, 12)
    evidences = {at: beside(scale * right, right) for at, right in rights.items()}
    found = clipped_by_shards(evidences, rights, {0: HALVES, 1: HALVES})
    assert set(found) == ({0, 1} if is_found else set())


def summed(gradients: list[Floats], dtype: torch.dtype, division_first: bool) -> Floats:
    """The mean of the ranks' gradients, everything rounded to a dtype."""
    ranks = [torch.tensor(each).to(dtype) for each in gradients]
    if division_first:
        ranks = [each / len(ranks) for each in ranks]
    total = functools.reduce(torch.add, ranks)
    return np.asarray((total if division_first else total / len(ranks)).double().numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-6], ids=["normal numbers", "subnormal ones of float16"])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_the_error_of_a_sum_in_a_coarse_precision(dtype: torch.dtype, size: float, world: int) -> None:
    common = np.random.default_rng(world).normal(size=1000) * size
    off = np.random.default_rng(2).normal(size=(world, 1000)) * size * 1e-3
    ranks = [(common if rank % 2 else -common) + off[rank] for rank in range(world)]  # that nearly cancel
    allowed = Reduction(window(list(range(world))), [{0: each} for each in ranks], dtype).error(0)
    exact = np.mean(ranks, axis=0)
    found = [np.abs(summed(ranks, dtype, division_first) - exact) for division_first in (True, False)]
    assert 0.03 < np.max(found / allowed) <= 1


def test_a_sum_of_ranks_that_are_not_known_may_be_anything() -> None:
    one, _ = gradients(2)
    assert np.isinf(Reduction(window([0, 1]), [{0: one}, {}], torch.bfloat16).error(0))


def test_a_scaled_loss_keeps_small_gradients_from_underflow() -> None:
    one, other = gradients(2)
    parts = [{0: one * 1e-9}, {0: other * 1e-9}]
    plain, scaled = (Reduction(window([0, 1]), parts, torch.float16, scale).error(0) for scale in (1.0, 2.0**16))
    assert np.all(plain > 1e-9)
    assert np.all(scaled < 1e-11)
