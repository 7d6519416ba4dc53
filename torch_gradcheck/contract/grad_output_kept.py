"""`grad_output_kept`: the backward does not write to the gradient that it is given, which others may hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from torch_gradcheck.contract.kept_tensors import KeptTensors, WriteWatch
from torch_gradcheck.contract.memory_layouts import Layout, transposed
from torch_gradcheck.contract.outcome import Raised, attempted, failed, passed
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.upstream import gradients_under
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.torch_internals.autograd import function_of, node_of, nodes_from

NAME = "grad_output_kept"


def grad_output_kept(trial: Trial) -> ContractEntry:
    """A backward under contiguous and one under transposed gradients, which are compared with what they were.

    So are the gradients that it hands on to the Functions of the user's inside of the function.
    """
    layouts: list[Layout] = [torch.Tensor.contiguous, transposed]
    if all(transposed(v) is None for v in trial.cotangents(trial.first.outputs)):
        layouts = layouts[:1]
    for layout in layouts:
        written = _written(trial, layout)
        if written:
            return failed(NAME, written)
    return passed(NAME)


def _written(trial: Trial, layout: Layout) -> str:
    """Which gradient a backward writes to, what and where; "" for none. The outputs are given v in a layout."""
    written = attempted(lambda: _backward(trial, layout, KeptTensors(), None))
    if not written or isinstance(written, Raised):  # `layouts` tells of what raises
        return ""
    (name, words), *_ = written.items()
    watch = WriteWatch(again := KeptTensors(), name, _backward.__code__)
    _backward(trial, layout, again, watch)
    return f"the backward writes to {name}: it {words}{watch.where or trial.backwards}"


def _backward(trial: Trial, layout: Layout, kept: KeptTensors, watch: WriteWatch | None) -> dict[str, str]:
    """The gradients that a backward has written to; `kept` takes them down before, and `watch` looks on."""
    with torch.enable_grad(), trial.regime():
        leaves = trial.fresh()
        outputs = trial.outputs(leaves)
        vs = [v if (laid := layout(v)) is None else laid for v in trial.cotangents(outputs)]
        for name, v in zip(trial.first.names, vs, strict=True):
            kept.keep(f"the gradient of {name}", v)
        for node in nodes_from([node_of(output) for output in outputs]):
            if function_of(node) is not None:
                node.register_prehook(_keeping(kept, function_of(node)))
        with nullcontext() if watch is None else watch:
            gradients_under(outputs, vs, [*leaves, *objects_of(trial.parameters)])
            return kept.written()


def _keeping(kept: KeptTensors, function: Any) -> Callable[[Sequence[torch.Tensor | None]], None]:
    """A hook that takes down the gradients that a Function is given."""

    def keep(gradients: Sequence[torch.Tensor | None]) -> None:
        for gradient in gradients:
            if gradient is not None:
                kept.keep(f"the gradient given to {function.__name__}", gradient)

    return keep
