"""A batch that is none: a loader, a dataset, an iterator or nothing, refused before anything runs or is consumed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.given import in_words, of_value

FORM = "a tensor, (inputs, *targets), or a mapping of keyword arguments"


def refuse_no_batch(batch: Any) -> None:
    """Raises InvalidRequestError, with what to do, where `batch`, or an entry of it, cannot be one."""
    if isinstance(batch, tuple | list) and not batch and not hasattr(batch, "_fields"):
        raise InvalidRequestError(
            "batch is empty; give (inputs, *targets), a mapping of keyword arguments, or a tensor."
        )
    if batch is None:
        raise InvalidRequestError(f"batch is None: give {FORM}. Where the loss needs no batch, use check_closure.")
    is_plain = type(batch) in (tuple, list)
    named = [("batch", batch), *[(f"batch[{k}]", each) for k, each in enumerate(batch if is_plain else ())]]
    for name, value in named:
        why = _why_none(name, value)
        if why:
            raise InvalidRequestError(why)


def _why_none(name: str, value: Any) -> str:
    """Why a value can be no batch, or entry of one, and what to do; "" where it can."""
    what = f"{name} is {of_value(value)}"
    if isinstance(value, DataLoader):
        return f"{what}, which holds many batches: give one, as next(iter(loader))."
    if isinstance(value, Dataset):
        return f"{what}, which holds many samples: give one batch of them, as next(iter(DataLoader(dataset)))."
    if isinstance(value, Iterator):
        return f"{what}, which can be read only once: give one batch of it, next(...), or list(...) of all it gives."
    if isinstance(value, nn.Module | torch.optim.Optimizer | type) or inspect.isroutine(value):
        kind = f"{name} is {in_words(value)}" if inspect.isroutine(value) else what
        return f"{kind}, and must be {FORM}: the order is check_module(model, loss_fn, batch)."
    return ""
