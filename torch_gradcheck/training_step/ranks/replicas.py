"""Tensors that all ranks should hold alike, compared: the parameters of a model, and the `.grad` that was left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.errors import UnequalRanksError
from torch_gradcheck.objective.theta import Theta, ThetaEntry, flat_values
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.processes.team import Team
from torch_gradcheck.reporting.words import listed

ROUNDINGS = 64.0
"""Replicas may be apart by so many machine epsilons of the largest entry: their devices round differently."""


def that_differ(team: Team, arrays: Mapping[str, Callable[[], Floats | None]]) -> dict[str, list[Floats | None]]:
    """The arrays that are not the same on all ranks, to the bit, those of each rank in order.

    All ranks send a digest of each array, and where these differ the array.

    Args:
        team: the ranks; collective.
        arrays: name → what gives this rank's array; None where it has none.
    """
    digests = team.exchanged({name: _digest(array()) for name, array in arrays.items()})
    differing = [name for name in arrays if len({each.get(name) for each in digests}) > 1]
    if not differing:
        return {}
    sent = team.exchanged({name: arrays[name]() for name in differing})
    return {name: [each[name] for each in sent] for name in differing}


def refuse_drifted(team: Team, theta: Theta) -> dict[torch.Tensor, torch.Tensor]:
    """Raises where a parameter is not the same on all ranks: their gradients are then not those of one θ.

    Returns the leader's numbers of those that are apart by no more than rounding.
    """
    apart = that_differ(team, {entry.name: partial(flat_values, entry) for entry in theta})
    by_name = {entry.name: entry for entry in theta}
    off = {name: _off(values, by_name[name].own_dtype) for name, values in apart.items()}
    drifted = {name: ranks for name, ranks in off.items() if ranks}
    if not drifted:
        return {by_name[name].parameter: _as_held(by_name[name], values[LEADER]) for name, values in apart.items()}
    name, ranks = max(drifted.items(), key=lambda item: max(item[1].values()))
    rank = max(ranks, key=lambda each: ranks[each])
    others = f", and so do {len(drifted) - 1} other parameters" if len(drifted) > 1 else ""
    raise UnequalRanksError(
        f"the replicas have drifted apart: {name} on rank {listed([str(each) for each in ranks])} differs from rank 0's"
        f" (by up to {ranks[rank]:.2g}){others}. Their gradients are of different weights, and nothing can be judged "
        "by them: start from equal weights, and find the step that left a .grad on one rank that others do not have."
    )


def _as_held(entry: ThetaEntry, values: Floats | None) -> torch.Tensor:
    """Flat values of a parameter in its own shape and dtype."""
    numbers = torch.as_tensor(values).to(entry.parameter.device)
    if entry.parameter.is_complex():
        numbers = torch.view_as_complex(numbers.reshape(-1, 2))
    return numbers.reshape(entry.parameter.shape).to(entry.parameter.dtype)


def _off(values: Sequence[Floats | None], dtype: torch.dtype) -> dict[int, float]:
    """Rank → how far its values are from those of rank 0, where that is more than rounding."""
    first = values[0]
    assert first is not None
    allowed = ROUNDINGS * epsilon(dtype) * float(np.max(np.abs(first), initial=0.0))
    off = {rank: _distance(first, each) for rank, each in enumerate(values)}
    return {rank: distance for rank, distance in off.items() if not distance <= allowed}


def _distance(one: Floats, other: Floats | None) -> float:
    if other is None or one.shape != other.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float(np.max(np.where(one == other, 0.0, np.abs(one - other)), initial=0.0))


def _digest(array: Floats | None) -> bytes | None:
    return None if array is None else hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
