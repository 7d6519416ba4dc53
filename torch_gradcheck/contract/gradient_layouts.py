"""The gradients of the outputs in other layouts: whether the backward gives what contiguous ones give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from torch_gradcheck.contract.memory_layouts import (
    SAME_NUMBERS,
    Layout,
    expanded,
    expanded_in_the_last,
    in_words,
    of_a_sum,
)
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.precision.dtypes import is_inexact
from torch_gradcheck.reporting.words import listed

LAYOUTS: Mapping[str, Layout] = {
    "expanded from one number, as .sum().backward() sends it": of_a_sum,
    **SAME_NUMBERS,
    "expanded in its first dimension, as .sum(0) sends it": lambda v: expanded(v) if v.dim() > 1 else None,
    "expanded in its last dimension, as .sum(-1) sends it": expanded_in_the_last,
}


def gradient_layouts(trial: Trial) -> list[str]:
    """What is wrong in each layout that a gradient has; "" for nothing."""
    return [found for word, layout in LAYOUTS.items() for found in _tried(trial, word, layout)]


def _tried(trial: Trial, word: str, layout: Layout) -> list[str]:
    laid = _laid_out(trial, layout)
    if not laid:
        return []
    found = _given(trial, layout, [*laid])
    if not found:
        return [""]
    alone = [position for position in laid if len(laid) > 1 and _given(trial, layout, [position])]
    names = listed([trial.first.names[position] for position in alone or laid])
    first = laid[(alone or [*laid])[0]]
    return [f"with the gradient of {names} {word} ({in_words(first)}): {found}{trial.backwards}"]


def _laid_out(trial: Trial, layout: Layout) -> dict[int, torch.Tensor]:
    """Position of each output whose gradient has such a layout → v in it, in memory of its own."""
    vs = enumerate(_vs(trial))
    return {position: each for position, v in vs if is_inexact(v) and (each := layout(v)) is not None}


def _given(trial: Trial, layout: Layout, at: Sequence[int]) -> str:
    """What is wrong where the outputs at these positions are given gradients in a layout; "" for nothing."""
    laid = _laid_out(trial, layout)
    chosen = [laid[position] if position in at else v for position, v in enumerate(_vs(trial))]
    plain = [v.clone(memory_format=torch.contiguous_format) for v in chosen]  # before a backward writes to them
    same = all(torch.equal(v, each) for v, each in zip(_vs(trial), plain, strict=True))
    run = attempted(lambda: trial.run(cotangents=chosen))
    if isinstance(run, Raised):
        return f"the backward raises {run}; with a contiguous copy it does not"
    expected = trial.first if same else trial.run(cotangents=plain)
    wrong = trial.gradient_difference(run.gradients, expected.gradients)
    return wrong and f"{wrong}, as with a contiguous copy"


def _vs(trial: Trial) -> list[torch.Tensor]:
    return trial.cotangents(trial.first.outputs)
