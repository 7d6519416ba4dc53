"""A function as a row of the table: how it is called, and what a check of it must say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A function on trial.

    Attributes:
        id: what it shows.
        function: what is called.
        inputs: its arguments, or, where they are to be made anew for each check, what makes them.
        wrong: exactly the rows that are a mismatch.
        failed: exactly the entries of the contract that fail.
        entries: the status of other entries that are characteristic of it.
        rows: the status of rows that are neither match nor mismatch.
        options: of the check.
    """

    id: str
    function: Callable[..., Any]
    inputs: Any
    wrong: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """True where nothing is wrong with it."""
        return not self.wrong and not self.failed


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positive(*shape: int, seed: int = 0) -> Tensor:
    """Numbers between ½ and 1½, the same at every call."""
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def complex_normal(*shape: int, seed: int = 0) -> Tensor:
    """Complex normal numbers, the same at every call."""
    return normal(*shape, seed=seed, dtype=torch.complex64)
