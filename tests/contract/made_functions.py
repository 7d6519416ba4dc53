"""Functions made of a forward and a backward, and what one entry of the contract says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from tests.contract.entry import entry
from torch_gradcheck.reporting.facts import ContractEntry


def tried(name: str, function: Callable[..., Any], *inputs: Any, **options: Any) -> ContractEntry:
    """The entry with this name, of a function with these inputs; the options are those of `on_trial`."""
    return entry(name, function, inputs, **options)


def function(name: str, forward: Any, backward: Any, **members: Any) -> Any:
    """The `apply` of a Function made of these."""
    made: Any = {"forward": forward, "backward": backward, **members}
    statics = {key: staticmethod(value) if callable(value) else value for key, value in made.items()}
    return type(name, (Function,), statics).apply  # type: ignore[attr-defined]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers in float32, of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
