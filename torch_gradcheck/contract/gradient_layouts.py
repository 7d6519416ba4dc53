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
    laid = {position: each for position in used if (each := layout(vs[position])) is not None}
    if not laid:
        return []
    found = _given(trial, vs, laid)
    if not found:
        return [""]
    alone = [position for position in laid if len(laid) > 1 and _given(trial, vs, {position: laid[position]})]
    names = listed([trial.first.names[position] for position in alone or laid])
    first = laid[(alone or [*laid])[0]]
    return [f"with the gradient of {names} {word} ({in_words(first)}): {found}{trial.backwards}"]


def _given(trial: Trial, vs: Tensors, laid: Mapping[int, torch.Tensor]) -> str:
    """What is wrong where these outputs are given these gradients; "" for nothing."""
    chosen = [laid.get(position, v) for position, v in enumerate(vs)]
    run = attempted(lambda: trial.run(cotangents=chosen))
    if isinstance(run, Raised):
        return f"the backward raises {run}; with a contiguous copy it does not"
    plain = [v.clone(memory_format=torch.contiguous_format) for v in chosen]
    same = all(torch.equal(v, each) for v, each in zip(vs, plain, strict=True))
    expected = trial.first if same else trial.run(cotangents=plain)
    wrong = trial.gradient_difference(run.gradients, expected.gradients)
    return wrong and f"{wrong}, as with a contiguous copy"
