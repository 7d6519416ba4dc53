"""What the ranks of a group were given, side by side: they share a check of one J, and one J only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from torch_gradcheck.errors import UnequalRanksError

ADVICE = {
    "call": "Call the same function on every rank.",
    "torch": "The ranks of one check need the same versions: install them alike.",
    "options": "Give every rank the same options.",
    "tensors": "Build the same model, and freeze the same parameters, on every rank.",
    "modes": "Call train() and eval() alike on every rank.",
    "parameters": (
        "Broadcast the parameters once the model is made (torch.distributed.broadcast, or DistributedDataParallel), "
        "load the same state_dict, or call torch.manual_seed with the same seed on every rank first."
    ),
    "buffers": "Broadcast the buffers as well as the parameters, or load the same state_dict on every rank.",
    "batch": "Give every rank the same batch: the ranks share the evaluations of one J.",
}
"""What ranks are compared by, in the order in which differences are told, and what to do about each."""

SAME_J = (
    "Parameters, buffers, batch and options are the same, so the loss depends on something else there: the number of "
    "the rank, a random draw of its own, a collective, a tensor that only one rank has."
)


class Fact(NamedTuple):
    """One thing that a rank was given.

    Attributes:
        told: it in words.
        digest: of what is too long for words.
    """

    told: str
    digest: int = 0


@dataclass(frozen=True)
class Facts:
    """What a rank was given.

    Attributes:
        loss: J(θ).
        roundoff: what two right ways to compute J may differ by.
        topics: keys of `ADVICE` → name of a thing → fact.
    """

    loss: float
    roundoff: float
    topics: Mapping[str, Mapping[str, Fact]] = field(default_factory=dict)


def spread_of(ranks: Sequence[Facts]) -> float:
    """The largest difference between the J(θ) of two ranks, which is that of rounding on different processors.

    Raises:
        UnequalRanksError: the ranks were not given the same, or J(θ) differs by more than rounding.
    """
    first = ranks[0]
    for topic in ADVICE:
        for rank, facts in enumerate(ranks):
            told = _difference(first.topics.get(topic, {}), facts.topics.get(topic, {}), rank)
            if told:
                raise UnequalRanksError(
                    f"the ranks were given different things: {told}{_losses(ranks)}. {ADVICE[topic]}"
                )
    losses = [facts.loss for facts in ranks]
    if max(losses) - min(losses) > first.roundoff:
        raise UnequalRanksError(f"the ranks do not compute the same J{_losses(ranks)}. {SAME_J}")
    return max(losses) - min(losses)


def _losses(ranks: Sequence[Facts]) -> str:
    """Words on the first two ranks whose J(θ) differ by more than rounding; "" where there are none."""
    first = ranks[0]
    for rank, facts in enumerate(ranks):
        if abs(facts.loss - first.loss) > first.roundoff:
            return f" (J(θ) = {first.loss:.9g} on rank 0, {facts.loss:.9g} on rank {rank})"
    return ""


def _difference(first: Mapping[str, Fact], other: Mapping[str, Fact], rank: int) -> str:
    """Words on the first thing that differs; "" where nothing does."""
    for name in [*first, *other]:
        one, two = first.get(name), other.get(name)
        if one is None or two is None:
            has, lacks = (0, rank) if two is None else (rank, 0)
            return f"{name} is there on rank {has} and not on rank {lacks}"
        if one.told != two.told:
            return f"{name} is {one.told} on rank 0, {two.told} on rank {rank}"
        if one.digest != two.digest:
            return (
                f"{name} holds other numbers on rank {rank} than on rank 0, if only in a last bit ({one.told} on both)"
            )
    return ""


def fact_of(tensor: torch.Tensor) -> Fact:
    """Form and numbers of a tensor: shape, kind and mean in words, and a checksum of the bits."""
    tensor, form = tensor.detach(), form_of(tensor)
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return form
    numbers = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    mean = (numbers if numbers.is_complex() else numbers.to(torch.float64)).mean().item()
    return Fact(f"{form.told} and mean {mean:.9g}", zlib.crc32(numbers.view(torch.uint8).numpy(force=True).data))


def form_of(tensor: torch.Tensor) -> Fact:
    """Shape of a tensor, and of what numbers it is; floating-point numbers are lent in the dtype of the check."""
    shape = f"of shape {tuple(tensor.shape)}"
    if tensor.is_floating_point():
        return Fact(shape)
    return Fact(f"{shape}, {'complex' if tensor.is_complex() else tensor.dtype}")
