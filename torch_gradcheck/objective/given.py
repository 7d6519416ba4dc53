"""What the caller gave to compute J, in the words of a refusal: the function by name and line, the batch by shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.signatures import callable_name
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.code_lines import at_line_of

SHOWN = 4
"""How many tensors of a batch a refusal tells of."""


@dataclass(frozen=True)
class Given:
    """The caller's function, and what it or the model is called with.

    Attributes:
        argument: the name of the argument that the function was given as: `"loss_fn"`, `"closure"`, `"function"`.
        function: itself; None where nobody knows.
        values: names and values of what is handed over: `batch[0]`, an argument's name.
    """

    argument: str = "the loss function"
    function: Callable[..., Any] | None = None
    values: Sequence[tuple[str, Any]] = ()

    @property
    def named(self) -> str:
        """The function, as "loss_fn (compute_loss at train.py:12)"."""
        if self.function is None:
            return self.argument
        return f"{self.argument} ({in_words(self.function)})"

    @property
    def shapes(self) -> str:
        """The tensors that were handed over, as "batch[0] of shape (32, 7), batch[1] of shape (32,) int64"."""
        return listed(self.tensors, SHOWN, lambda found: f"{found[0]} of shape {of_tensor(found[1])}")

    @property
    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """The tensors that were handed over, each with its place."""
        return [(name + path, each) for name, value in self.values for path, each in tensors_in(value, objects=True)]

    @property
    def foreign(self) -> list[tuple[str, Any]]:
        """The values that are strings or arrays, which most models cannot take, each with its place."""
        inside = [each for name, value in self.values for each in _entries(name, value)]
        return [(name, value) for name, value in inside if isinstance(value, str | bytes | np.ndarray)]


UNKNOWN = Given()
"""Stands for what is not known, as of a J that was made by hand."""


def of_batch(function: Callable[..., Any], batch: Any) -> Given:
    """That of `loss_fn(model(inputs), *targets)`."""
    is_listed = isinstance(batch, tuple | list) and not isinstance(batch, nn.utils.rnn.PackedSequence)
    values = [(f"batch[{k}]", each) for k, each in enumerate(batch)] if is_listed else [("batch", batch)]
    return Given("loss_fn", function, values)


def in_words(function: Callable[..., Any]) -> str:
    """A function by its name and line, as "compute_loss at train.py:12", "lambda at train.py:3", "MSELoss"."""
    return callable_name(function).strip("<>") + at_line_of(function)


def of_tensor(tensor: torch.Tensor) -> str:
    """A tensor by its shape, with its dtype where that is not floating, and its device where that is not the CPU."""
    shape = "(nested)" if tensor.is_nested else str(tuple(tensor.shape))
    dtype = "" if tensor.is_floating_point() else f" {str(tensor.dtype).removeprefix('torch.')}"
    return f"{shape}{dtype}{'' if tensor.device.type == 'cpu' else f' on {tensor.device}'}"


def of_value(value: Any) -> str:
    """A value by what it is, as "a tensor of shape (5, 2)", "a float", "None"."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {of_tensor(value)}"
    if value is None or isinstance(value, bytes):
        return "None" if value is None else "bytes"
    kind = type(value).__name__
    if isinstance(value, np.ndarray | np.generic):
        return f"a numpy array of shape {value.shape}" if isinstance(value, np.ndarray) else f"a numpy {kind}"
    return f"{'an' if kind[0] in 'aeioAEIO' else 'a'} {kind}"


def _entries(name: str, value: Any) -> list[tuple[str, Any]]:
    """The value itself, or the entries of a list, tuple or mapping."""
    if isinstance(value, Mapping):
        return [(f"{name}[{key!r}]", each) for key, each in value.items()]
    if isinstance(value, tuple | list):
        return [(f"{name}[{k}]", each) for k, each in enumerate(value)]
    return [(name, value)]
