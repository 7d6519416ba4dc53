"""The gradients of the outputs transposed, sliced or expanded: whether the backward gives what contiguous ones give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from torch_gradcheck.contract.memory_layouts import SAME_NUMBERS, Layout, in_words, of_a_sum
from torch_gradcheck.contract.outcome import Raised, attempted
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.reporting.words import listed

LAYOUTS: Mapping[str, Layout] = {
    "expanded from one number, as .sum().backward() sends it": of_a_sum,
    **SAME_NUMBERS,
}

Tensors = Sequence[torch.Tensor]


def gradient_layouts(trial: Trial) -> list[str]:
    """What is wrong in each layout that a gradient has; "" for nothing."""
    vs = trial.cotangents(trial.first.outputs)
    used = [position for position, v in enumerate(vs) if v.is_floating_point() or v.is_complex()]
    return [found for word, layout in LAYOUTS.items() for found in _tried(trial, vs, used, word, layout)]


def _tried(trial: Trial, vs: Tensors, used: Sequence[int], word: str, layout: Layout) -> list[str]:
    laid = [position for position in used if layout(vs[position]) is not None]
    if not laid:
        return []
    found = _given(trial, vs, laid, layout)
    if not found:
        return [""]
    alone = [position for position in laid if len(laid) > 1 and _given(trial, vs, [position], layout)]
    names = listed([trial.first.names[position] for position in alone or laid])
    first = _laid(vs[(alone or laid)[0]], layout)
    return [f"with the gradient of {names} {word} ({in_words(first)}): {found}{trial.backwards}"]


def _given(trial: Trial, vs: Tensors, laid: Sequence[int], layout: Layout) -> str:
    """What is wrong where these outputs are given gradients in this layout; "" for nothing."""
    chosen = [_laid(v, layout) if position in laid else v.clone() for position, v in enumerate(vs)]
    plain = [v.clone(memory_format=torch.contiguous_format) for v in chosen]  # now: the backward may write to its own
    same = all(torch.equal(v, each) for v, each in zip(vs, plain, strict=True))
    run = attempted(lambda: trial.run(cotangents=chosen))
    if isinstance(run, Raised):
        return f"the backward raises {run}; with a contiguous copy it does not"
    expected = trial.first if same else trial.run(cotangents=plain)
    wrong = trial.gradient_difference(run.gradients, expected.gradients)
    return wrong and f"{wrong}, as with a contiguous copy"


def _laid(v: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The gradient in this layout, in memory of its own; as it is where it has no such layout."""
    found = layout(v.clone())
    return v.clone() if found is None else found
