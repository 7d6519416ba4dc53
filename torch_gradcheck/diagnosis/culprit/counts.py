"""Counts that gradients are often off by in this run, each with its meaning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import nn

from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.kind.factors import FactorMeaning, count_meanings


def meanings_of(calls: Sequence[RecordedCall]) -> tuple[FactorMeaning, ...]:
    """Counts that gradients are often off by: rows of the batch, entries of the output and of its rows, shared uses.

    The batch is what the first call that is given a tensor is given.
    """
    counts: list[tuple[int, str]] = []
    first = next((call for call in calls if any(tensor.dim() for tensor in call.inputs)), None)
    if first is not None:
        lengths = [len(tensor) for tensor in first.inputs if tensor.dim()]
        out = next((shape for shape, *_ in first.outputs if shape), ())
        rows = out[0] if out and out[0] in lengths else lengths[0]  # weights may come before the batch
        counts.append((rows, "rows of the batch"))
        counts += [(math.prod(shape), "entries of the output") for shape, *_ in first.outputs[:1]]
        if out and out[0] == rows:
            counts.append((math.prod(out[1:]), "entries of a row of the output"))
    uses = Counter(
        call.owner for call in calls if isinstance(call.owner, nn.Module) and list(call.owner.parameters(recurse=False))
    )
    counts += [(count, "uses of a shared module") for count in sorted(set(uses.values()))]
    return tuple(meaning for count, of_what in counts for meaning in count_meanings(count, of_what))
