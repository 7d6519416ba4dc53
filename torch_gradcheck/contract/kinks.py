"""Whether what a function gives depends on how it breaks a tie: entries of the contract are tried beside kinks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torch_gradcheck.contract.comparison import difference, largest
from torch_gradcheck.contract.run import Run
from torch_gradcheck.contract.trial import Trial, gradient_of
from torch_gradcheck.objective.perturbation import Direction, real_view, sizes
from torch_gradcheck.precision.dtypes import epsilon

MOVED = 10.0
"""Points beside θ are ten times the square root of machine epsilon away, 1.5e-7 of the largest entry in float64."""

CHANGED = 1e-3
"""Results that change by more than this share of their largest entry so close to θ are at a kink, or a pole."""

STEEP = 30.0
"""The same, in relative steps: a smooth function may change by this many; more than `CHANGED` in float32 only."""

FURTHEST = 0.03
"""In bfloat16 and float16 points beside θ are no further away than this, which is four units in the last place."""

MOST = 0.3
"""There, too, a result that changes by this share is at a kink."""


def beside(tensors: Sequence[torch.Tensor], seed: int, step: float = 0.0) -> list[torch.Tensor]:
    """Contiguous leaves, each entry moved by a small random amount, so that no two are tied.

    Args:
        tensors: those that require a gradient do so there, too.
        seed: of the amounts.
        step: twice the largest of them, relative to the largest entry; 0: just enough to be beside a kink.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return [_moved(tensor.detach(), generator, step).requires_grad_(tensor.requires_grad) for tensor in tensors]


def parting(tensors: Sequence[torch.Tensor], seed: int) -> Direction:
    """A direction in which each number moves by an amount of its own, half its size to all of it: no two stay tied.

    Args:
        tensors: the lent ones, which the direction moves in place.
        seed: of the amounts.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return Direction(tensors, [_velocity(real_view(tensor.data), generator) for tensor in tensors])


def _velocity(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    draws = torch.rand((2, *tensor.shape), generator=generator, dtype=torch.float64, device="cpu")
    signs = torch.where(draws[0] < 0.5, -1.0, 1.0)
    return sizes(tensor) * (signs * (1 + draws[1]) / 2).to(tensor)


def is_at_a_kink(trial: Trial, run: Run, tensors: Sequence[torch.Tensor]) -> bool:
    """Whether the results of a run on these tensors are others right beside them.

    Args:
        trial: what is run.
        run: on the tensors.
        tensors: the arguments on trial.
    """
    others = [trial.run(beside(tensors, seed)) for seed in (1, 2)]
    return any(_jumps(trial, run, other) for other in others)


def _moved(tensor: torch.Tensor, generator: torch.Generator, share: float) -> torch.Tensor:
    step = (share or nearness(tensor.dtype)) * (largest(tensor) or 1.0)
    shape = (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape)
    draws = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu") - 0.5
    noise = torch.view_as_complex(draws) if tensor.is_complex() else draws
    return (tensor + step * noise.to(device=tensor.device, dtype=tensor.dtype)).contiguous()


def nearness(dtype: torch.dtype) -> float:
    """How far beside θ is, relative to the largest entry."""
    return float(min(MOVED * epsilon(dtype) ** 0.5, FURTHEST))


def _jumps(trial: Trial, here: Run, there: Run) -> bool:
    share = min(max(CHANGED, STEEP * nearness(trial.dtype)), MOST)
    names = [*here.names, *map(gradient_of, trial.all_names)]
    pairs = [*zip(here.outputs, there.outputs, strict=False), *zip(here.gradients, there.gradients, strict=False)]
    named = zip(names, pairs, strict=False)
    allowed = [max(share * largest(one), trial.allowance.of(one, name=name)) for name, (one, _) in named]
    return any(bool(difference(other, one, most)) for most, (one, other) in zip(allowed, pairs, strict=False))
