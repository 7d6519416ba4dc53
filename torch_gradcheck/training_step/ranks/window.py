"""The window of a step of several ranks: the batches of all of them, and what a wrong share of a rank means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning
from torch_gradcheck.training_step.window import LISTED, SAME_SHARE, Window, alike, nothing_of, shares_listed


@dataclass(frozen=True)
class WindowOfRanks(Window):
    """The batches of one optimizer step of several ranks: J = Σ wᵢ Jᵢ / divisor over the batches of all of them.

    Attributes:
        ranks: the rank of each batch.
        sizes: the length of the first tensor of each batch; empty where one has none.
    """

    ranks: Sequence[int] = ()
    sizes: Sequence[int] = ()

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return len(set(self.ranks))

    @property
    def suspected(self) -> Sequence[Floats]:
        """See `Window.suspected`: nothing of one rank."""
        return [np.where(np.array(self.ranks) == rank, 0.0, self.shares) for rank in range(self.world)]

    @property
    def note(self) -> str:
        """See `Window.note`."""
        words = super().note.replace("this step has", f"this step of {self.world} ranks has")
        return words or on_mean(self.world, "weighted mean" if self.weights else "mean")

    def of_rank(self, shares: Floats) -> Floats:
        """The shares of the batches of each rank, added up."""
        return np.bincount(self.ranks, weights=shares).astype(np.float64)

    def own_shares(self, rank: int) -> Floats:
        """The shares of the batches in the gradient that one rank's own backward leaves."""
        mine = np.array(self.ranks) == rank
        shares = np.where(mine, self.shares, 0.0)
        return np.asarray(shares / np.sum(shares) * np.sum(self.shares))

    def factor_meanings(self) -> list[FactorMeaning]:
        """See `Window.factor_meanings`."""
        world = self.world
        meanings = [
            FactorMeaning(float(world), f"summed over the {world} ranks, and not divided by their number"),
            FactorMeaning(
                1 / world, f"divided by the number of ranks, {world}, once more: their gradients were averaged already"
            ),
        ]
        if self.accumulate > 1:
            count = len(self.losses) / world
            meanings += [
                FactorMeaning(
                    count,
                    f"the losses were summed over the {count:g} batches of each rank and not divided by their number",
                ),
                FactorMeaning(
                    count * world,
                    f"the losses of all {count * world:g} batches were summed, and not divided by anything",
                ),
                FactorMeaning(1 / self.accumulate, f"divided by {self.accumulate} accumulation steps once too often"),
            ]
        if self.weights:
            total = float(np.sum(self.weights))
            meanings.append(
                FactorMeaning(total, f"the losses were summed and not divided by the sum of the weights, {total:g}")
            )
        others = [meaning for meaning in meanings if abs(meaning.factor - 1) > SAME_SHARE]
        return [meaning._replace(comes_first=True) for meaning in others]

    def _words_on(self, found: Floats, times: str) -> str:
        """See `Window.message`."""
        of_rank, total = self.of_rank(found), float(np.sum(found))
        missing = nothing_of(of_rank)
        if missing:
            return _nothing_of_ranks(missing, of_rank)
        batches = nothing_of(found)
        if batches:
            return f"dθ holds nothing of {', '.join(map(self._name, batches[:LISTED]))}: {ZEROED}"
        return f"dθ is {times}{self._by(found / total)}, where {self._declared} are right"

    def _by(self, shares: Floats) -> str:
        if self.sizes and alike(shares, self._in_proportion(np.array(self.sizes, dtype=float))):
            return f"the mean by the sizes of the batches, {_numbers(self.sizes)}"
        if self.weights and alike(shares, self._mean_of_means()):
            return (
                "the mean of the ranks' own means, each rank counting the same: the weights were summed on each alone"
            )
        by_rank = self.of_rank(shares)
        if alike(shares, self.own_in_equal_parts(by_rank)):
            listed = ", ".join(f"{share:.3g} of rank {rank}" for rank, share in enumerate(by_rank[:LISTED]))
            return f"the mean with weights {listed}{self._counted(by_rank)}"
        return f"the mean of the {len(shares)} batches of all ranks with weights {shares_listed(shares)}"

    def own_in_equal_parts(self, by_rank: Floats) -> Floats:
        """The shares of the batches where each rank has these and splits them as declared."""
        declared = self.shares / self.of_rank(self.shares)[np.array(self.ranks)]
        return np.asarray(declared * by_rank[np.array(self.ranks)])

    @property
    def _declared(self) -> str:
        by_rank = self.of_rank(self.shares / np.sum(self.shares))
        if alike(by_rank, np.full(self.world, 1 / self.world)):
            return "equal weights of the ranks"
        return f"weights {shares_listed(by_rank)} of the ranks"

    def _counted(self, by_rank: Floats) -> str:
        usual = float(np.median(by_rank)) if self.world > 2 else float(np.min(by_rank))
        twice = [rank for rank, share in enumerate(by_rank) if abs(share / usual - 2) <= 4 * SAME_SHARE]
        return f" (rank {', '.join(map(str, twice))} counts twice)" if len(twice) == 1 else ""

    def _mean_of_means(self) -> Floats:
        weights = np.array(self.weights)
        return np.asarray(weights / self.of_rank(weights)[np.array(self.ranks)] / self.world)

    def _in_proportion(self, numbers: Floats) -> Floats:
        return np.asarray(numbers / np.sum(numbers))

    def _name(self, at: int) -> str:
        rank = self.ranks[at]
        return f"batch {at - list(self.ranks).index(rank) + 1} of rank {rank}"


def on_mean(world: int, mean: str = "mean") -> str:
    """The note on J where each rank has a batch of its own."""
    return f"J is the {mean} of the losses of {world} ranks, each on its own batch"


ZEROED = "was zero_grad() called within the window, or are they not one window (accumulate=, last=)?"


def _nothing_of_ranks(missing: Sequence[int], of_rank: Floats) -> str:
    present = [rank for rank in range(len(of_rank)) if rank not in missing]
    shares = of_rank[present]
    if len(present) > 1 and alike(shares, np.full(len(present), 1 / len(present))):
        return (
            f"dθ is the mean over ranks {_numbers(present)} only, and holds nothing of rank {_numbers(missing)}: they "
            "are not in one process group"
        )
    return (
        f"dθ holds nothing of rank {_numbers(missing)}: its backward did not run, its loss was skipped, or its "
        "gradient was not there when they were reduced"
    )


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:LISTED])) + (", ..." if len(numbers) > LISTED else "")
