"""What a loss function has returned: one real number, as a 0-dim tensor, or refused by what it is instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from torch_gradcheck.errors import NonScalarLossError
from torch_gradcheck.objective.given import UNKNOWN, Given, of_value

ADVICE = "The loss must be one real number: reduce it, for example with .mean() or .sum()."


def scalar(loss: object, given: Given = UNKNOWN) -> torch.Tensor:
    """`loss` as a 0-dim tensor; raises `NonScalarLossError` unless it is one real number.

    Args:
        loss: what was returned.
        given: what has returned it.
    """
    why = _no_tensor(loss) if not isinstance(loss, torch.Tensor) else _no_real_number(loss)
    if why:
        raise NonScalarLossError(f"{given.named} returned {why}")
    assert isinstance(loss, torch.Tensor)
    return loss.reshape(())


def _no_real_number(loss: torch.Tensor) -> str:
    """What is wrong with a tensor as a loss, and what to do; "" where it is one real number."""
    if loss.is_nested or loss.is_meta or loss.layout is not torch.strided:
        return f"no ordinary tensor ({loss.layout}, device {loss.device}). {ADVICE}"
    if loss.numel() != 1:
        reduced = " Was it made with reduction='none'?" if loss.dim() else ""
        return f"a tensor of shape {tuple(loss.shape)} with {loss.numel()} entries. {ADVICE}{reduced}"
    if loss.is_complex():
        return f"a complex number ({loss.dtype}). {ADVICE} Take .abs() or .real first."
    if not loss.dtype.is_floating_point:
        return (
            f"a tensor of dtype {loss.dtype}, which has no gradient: a loss is computed in floating point. A count, an "
            "index (argmax) or a comparison has no gradient either."
        )
    return ""


def _no_tensor(loss: object) -> str:
    """What was returned instead of a tensor, and what to do."""
    if loss is None:
        return "None (a NoneType), not a tensor: is its `return` missing?"
    if isinstance(loss, bool | int | float | complex | np.generic | np.ndarray):
        return (
            f"{of_value(loss)}, not a tensor, so it has no gradient: return the tensor that it was taken from, without "
            ".item() or .numpy()."
        )
    if isinstance(loss, Mapping) or isinstance(getattr(loss, "loss", None), torch.Tensor):
        return _several_named(loss)
    if isinstance(loss, tuple | list):
        return _several(loss)
    if inspect.isgenerator(loss) or inspect.iscoroutine(loss):
        return f"{of_value(loss)}, not a tensor: a function with `yield` or `async` does not run when it is called."
    if callable(loss):
        return f"{of_value(loss)}, not a tensor: call it, and return what it returns."
    return f"{of_value(loss)}, not a tensor. {ADVICE}"


def _several(loss: tuple[Any, ...] | list[Any]) -> str:
    """What to do with a tuple such as (loss, logits)."""
    inside = ", ".join(map(of_value, loss[:4])) + (", ..." if len(loss) > 4 else "")
    at = next((k for k, each in enumerate(loss) if isinstance(each, torch.Tensor) and each.numel() == 1), None)
    which = "" if at is None else f", which is its item [{at}]"
    return f"a {type(loss).__name__} ({inside}), not a tensor: return the loss alone{which}."


def _several_named(loss: Any) -> str:
    """What to do with a mapping or an object that has the loss under a name, as outputs of transformers do."""
    held = getattr(loss, "loss", None)
    if isinstance(held, torch.Tensor):
        return f"{of_value(loss)}, not a tensor: return the loss alone, as `lambda out, ...: out.loss` does."
    keys = list(loss)
    name = next((key for key in keys if "loss" in str(key)), None)
    how = f": return the loss alone, {type(loss).__name__}[{name!r}]." if name is not None else f". {ADVICE}"
    return f"{of_value(loss)} with the keys {keys}, not a tensor{how}"
