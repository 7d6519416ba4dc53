"""A batch that is none: a loader, a dataset, an iterator or nothing, refused before anything runs or is consumed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.given import in_words, of_value
from torch_gradcheck.objective.nested import children_of, tensors_in

WITH_NUMBERS = "give a tensor that has some, on the device of the model."

DEPTH, LONG = 3, 64
"""How deep containers are searched, and from which length on they are not."""

FORM = "a tensor, (inputs, *targets), or a mapping of keyword arguments"


def refuse_no_batch(batch: Any) -> None:
    """Raises InvalidRequestError, with what to do, where `batch`, or an entry of it, cannot be one."""
    if isinstance(batch, tuple | list) and not batch:
        raise InvalidRequestError(
            "batch is empty; give (inputs, *targets), a mapping of keyword arguments, or a tensor."
        )
    if batch is None:
        raise InvalidRequestError(f"batch is None: give {FORM}. Where the loss needs no batch, use check_closure.")
    for why in [_why_no_batch(batch), *[_why_many(name, value) for name, value in _places("batch", batch, DEPTH)]]:
        if why:
            raise InvalidRequestError(why)


def refuse_without_numbers(batch: Any) -> None:
    """Raises InvalidRequestError where a batch holds a tensor that has no numbers to compute with."""
    for place, tensor in tensors_in(batch, objects=True):
        if tensor.is_meta:
            raise InvalidRequestError(f"batch{place} is on the meta device, which has no numbers: {WITH_NUMBERS}")


def _places(name: str, value: Any, depth: int) -> list[tuple[str, Any]]:
    """The value and what it holds, as far as `depth`, each with its place. Long lists hold data: they are not read."""
    inside = children_of(value) if depth and type(value) in (tuple, list, dict) and len(value) <= LONG else []
    return [(name, value), *[found for path, each in inside for found in _places(name + path, each, depth - 1)]]


def _why_many(name: str, value: Any) -> str:
    """Why a value is no part of one batch, and what to give for it; "" where it may be."""
    what = f"{name} is {of_value(value)}"
    if isinstance(value, DataLoader):
        return f"{what}, which holds many batches: give one, as next(iter(loader))."
    if isinstance(value, Dataset):
        return f"{what}, which holds many samples: give one batch of them, as next(iter(DataLoader(dataset)))."
    if isinstance(value, Iterator):
        return f"{what}, which can be read only once: give one batch of it, next(...), or list(...) of all it gives."
    return ""


def _why_no_batch(batch: Any) -> str:
    """Why something that is called, or trains, is no batch; "" of anything else."""
    if inspect.isroutine(batch):
        what = in_words(batch)
    elif isinstance(batch, nn.Module | torch.optim.Optimizer | type | ModuleType):
        what = of_value(batch)
    else:
        return ""
    return f"batch is {what}, and must be {FORM}: the order is check_module(model, loss_fn, batch)."
