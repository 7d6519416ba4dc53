"""Memory that nobody has written to yet, as `torch.empty` gives it: zeros, while the inputs of calls are compared.

A solver may hand such memory to a Function, to be filled. What it happens to hold differs from run to run, which would
look like a motion along θ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

UNWRITTEN = frozenset(
    {
        torch.empty,
        torch.empty_like,
        torch.empty_strided,
        torch.empty_permuted,
        torch.Tensor.new_empty,
        torch.Tensor.new_empty_strided,
    }
)
"""The functions that give it."""


class ZeroedMemory(TorchFunctionMode):
    """These functions give zeros inside the block."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in UNWRITTEN:
            with torch.no_grad():
                result.zero_()
        return result
