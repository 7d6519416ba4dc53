"""A kernel as a row of the table: its plain reference, its right twins, its wrong ones and the rows they spoil."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32

ALL = (BFLOAT16, FLOAT16, FLOAT32)
"""The dtypes that kernels are written for."""


class Draws:
    """Makes the arguments of a kernel, anew for every seed.

    Args:
        seed: same seed, same numbers.
        dtype: of what is drawn, unless another is asked for.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers."""
        return (scale * torch.randn(shape, generator=self._generator)).to(dtype or self.dtype)

    def uniform(self, low: float, high: float, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers between two others."""
        return (low + (high - low) * torch.rand(shape, generator=self._generator)).to(dtype or self.dtype)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Integers from 0."""
        return torch.randint(below, shape, generator=self._generator)


@dataclass(frozen=True)
class Wrong:
    """A kernel with a mistake.

    Attributes:
        function: what is called.
        rows: exactly the rows that are a mismatch.
        dtypes: in which the mistake is one; in others it is of the size of what rounding does.
        inputs: other arguments, at which the mistake shows; None for those of the right kernel.
    """

    function: Callable[..., Any]
    rows: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = ALL
    inputs: Callable[[Draws], tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class Kernel:
    """An operation with all that is written for it.

    Attributes:
        id: the operation.
        reference: a plain function of torch.
        inputs: makes the arguments.
        right: by what is different in them, kernels that compute the same.
        wrong: by their mistake.
        dtypes: in which it is run.
        breaks: entries of the contract that fail for a right one, by its name in `right`.
        seeds: how many inputs it is tried on in bfloat16, fewer where a trial is dear.
    """

    id: str
    reference: Callable[..., Any]
    inputs: Callable[[Draws], tuple[Any, ...]]
    right: Mapping[str, Callable[..., Any]]
    wrong: Mapping[str, Wrong] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = (BFLOAT16, FLOAT32)
    breaks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int = 20


def fused(forward: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a hand-written forward and backward, as `apply` of an autograd.Function that has them."""
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    apply: Callable[..., Any] = type("Fused", (Function,), members).apply
    return apply


def in_float32(*tensors: Tensor) -> list[Tensor]:
    """As a kernel loads what it computes with."""
    return [tensor.float() for tensor in tensors]


def blocks(size: int, block: int) -> list[slice]:
    """The blocks of an axis; the last one is shorter where the size is no multiple."""
    return [slice(start, min(start + block, size)) for start in range(0, size, block)]
