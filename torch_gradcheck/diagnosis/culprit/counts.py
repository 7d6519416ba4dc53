"""Counts that gradients are often off by in this run, each with its meaning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import nn

from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, count_meanings


def meanings_of(calls: Sequence[RecordedCall]) -> tuple[FactorMeaning, ...]:
    """Counts that gradients are often off by: rows of the batch, entries of the output and of its rows, shared uses."""
    counts: list[tuple[int, str]] = []
    if calls:
        inputs = [tensor for tensor in calls[0].inputs if tensor.dim()]
        rows = len(inputs[0]) if inputs else 0
        counts.append((rows, "rows of the batch"))
        for shape, *_ in calls[0].outputs[:1]:
            counts.append((math.prod(shape), "entries of the output"))
            if shape and shape[0] == rows:
                counts.append((math.prod(shape[1:]), "entries of a row of the output"))
    uses = Counter(
        call.owner for call in calls if isinstance(call.owner, nn.Module) and list(call.owner.parameters(recurse=False))
    )
    counts += [(count, "uses of a shared module") for count in sorted(set(uses.values()))]
    return tuple(meaning for count, of_what in counts for meaning in count_meanings(count, of_what))


def _has_parameters(owner: object) -> bool:
    """Whether `owner` is a module with parameters of its own."""
    return isinstance(owner, nn.Module) and bool(list(owner.parameters(recurse=False)))
