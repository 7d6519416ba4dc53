"""Records a run of J and its backward: a fingerprint of each gradient that reaches or leaves a node of the graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.gradients.watched_backwards import Place, WatchedBackwards
from torch_gradcheck.torch_internals.autograd import (
    function_of,
    is_of_backward_hooks,
    number_of,
)
from torch_gradcheck.torch_internals.dispatch import below_modes
from torch_gradcheck.torch_internals.modules import has_backward_hooks, module_at

BLOCK = 4096
"""Long gradients are projected a block of so many entries at a time: the weights fit into the cache."""

WEIGHTS = np.random.default_rng(0).normal(size=(BLOCK, 4))
"""The weights of four projections. That all of them miss nine tenths of a difference has odds of 4e-5."""


AMPLIFIED = 100.0
"""A Function starts a difference if what it gives is a hundred times as far apart as what it is given, relative to the
norm; a hook, if what it makes of a gradient is a hundred times as far apart as anything before it."""

Fingerprint = tuple[torch.Tensor, torch.Tensor]
"""The norm of a gradient and its projections on the weights, shapes () and (4,), on its device still."""


class Event(NamedTuple):
    """Gradients that reach a node, or that leave it.

    Attributes:
        node: its number among the nodes of the run.
        leaves: False for the gradients that the node is given, True for those that it gives.
        prints: a fingerprint of each, None where there is no gradient or none of it.
    """

    node: int
    leaves: bool
    prints: tuple[Fingerprint | None, ...]


class BackwardRecord(WatchedBackwards):
    """Records every backward that this thread runs inside the block, and the modules in which its nodes were made.

    What is kept of a gradient is five numbers, so that a record takes no memory to speak of. Numbers, not bits, since
    runs may differ everywhere by rounding and in one place by more.

    Args:
        model: the modules to name.

    Attributes:
        events: in the order in which they happened.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.events: list[Event] = []
        self._model = model
        self._weights: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}
        self._places: list[tuple[str, type[torch.autograd.Function] | None, int]] = []

    def place(self, node: int) -> Place:
        """Where the node of this number is."""
        name, function, number = self._places[node]
        hooked = self._hooked_behind(number) if is_of_backward_hooks(function) else None
        return Place(name, function, self._modules.of_node(number) if hooked is None else hooked)

    def _hooked_behind(self, number: int) -> str | None:
        """The module with backward hooks behind whose output they have made the node of this number, after its call."""
        ended = self._modules.ended_at(number)
        return next((name for name in ended if has_backward_hooks(module_at(self._model, name))), None)

    def _see(self, node: Any) -> None:
        self._hook_into(node, len(self._places))
        self._places.append((node.name(), function_of(node), number_of(node)))

    def _hook_into(self, node: Any, number: int) -> None:
        def arrive(gradients: Any) -> None:
            self._note(number, False, gradients)

        def leave(gradients: Any, _: Any) -> None:
            self._note(number, True, gradients)

        for handle in (node.register_prehook(arrive), node.register_hook(leave)):
            self._undo.append(handle.remove)

    def _note(self, node: int, leaves: bool, gradients: Any) -> None:
        together = gradients if isinstance(gradients, tuple) else (gradients,)
        self.events.append(Event(node, leaves, tuple(self._print_of(each) for each in together)))

    def _print_of(self, gradient: Any) -> Fingerprint | None:
        """The fingerprint of a gradient; None where it has none."""
        try:
            if type(gradient) is not torch.Tensor:
                return self._print_of_any(gradient)
            with below_modes():  # one in Python takes longer over these small operations than they do
                return self._print_of_any(gradient)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError):  # a kind of tensor that has no numbers
            return None

    def _print_of_any(self, gradient: Any) -> Fingerprint:
        values = _flat(gradient)
        kind = values.device, values.dtype
        if kind not in self._weights:
            self._weights[kind] = torch.from_numpy(WEIGHTS).to(device=values.device, dtype=values.dtype)
        return torch.linalg.vector_norm(values), _projected(values, self._weights[kind])


def _flat(gradient: torch.Tensor) -> torch.Tensor:
    """The entries in float32 or float64, in the order in which they lie in memory."""
    values = gradient.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    if values.is_contiguous():
        return values.reshape(-1)
    as_stored = sorted(range(values.dim()), key=values.stride, reverse=True)  # a transposed one need not be copied then
    return values.permute(as_stored).reshape(-1)


def _projected(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ values[i] · weights[i mod BLOCK], a weight changed from block to block; shape (4,)."""
    if len(values) <= BLOCK:
        return values @ weights[: len(values)]
    whole = len(values) // BLOCK * BLOCK
    of_blocks = _summed(values[:whole].view(-1, BLOCK) @ weights, weights)
    return of_blocks + values[whole:] @ weights[: len(values) - whole] if whole < len(values) else of_blocks


def _summed(blocks: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ blocks[i] · weights[i mod BLOCK], the latter changed in the same way; shape (4,), as that of a block."""
    if len(blocks) <= BLOCK:
        return (blocks * weights[: len(blocks)]).sum(0)
    whole = len(blocks) // BLOCK * BLOCK
    of_blocks = _summed((blocks[:whole].view(-1, BLOCK, 4) * weights).sum(1), weights)
    return of_blocks + _summed(blocks[whole:], weights)


class Apart(NamedTuple):
    """How far the gradients of an event lie apart in two runs, and how far relative to their norm."""

    by: float
    relative: float


def start_of_difference(one: BackwardRecord, other: BackwardRecord, level: float) -> Event | None:
    """The event of one run at which the gradients of another run begin to differ; None where they never do.

    It is the first whose gradients differ by more than `level` of their norm, where more than rounding. If that only
    amplifies what comes before it, or no event differs so much, it is the first that differs at all. None as well where
    the runs do not have the same nodes.
    """
    twins = list(zip(one.events, other.events, strict=False))
    if len(one.events) != len(other.events) or any(event[:2] != twin[:2] for event, twin in twins):
        return None
    apart = [_apart(event, twin) for event, twin in twins]
    first = next((k for k, found in enumerate(apart) if found.by), None)
    if first is None:
        return None
    large = next((k for k, found in enumerate(apart) if found.relative > level), first)
    return one.events[first if _amplifies(one, apart, large) else large]


def _amplifies(record: BackwardRecord, apart: Sequence[Apart], k: int) -> bool:
    """Whether the k-th event of a run does no more than to amplify differences that it is given."""
    event, before = record.events[k], list(zip(record.events, apart, strict=True))[:k]
    if not event.leaves:  # a sum of gradients that may cancel
        return apart[k].by < AMPLIFIED * max((found.by for _, found in before), default=0.0)
    given = max((found.relative for earlier, found in before if earlier.node == event.node), default=0.0)
    # Operations of torch give the same for the same, and terms may cancel in them, too.
    return given > 0 if record.place(event.node).function is None else apart[k].relative < AMPLIFIED * given


def _apart(event: Event, twin: Event) -> Apart:
    """The largest differences of the fingerprints of two events."""
    found = [_prints_apart(*pair) for pair in zip(event.prints, twin.prints, strict=True)]
    return Apart(max((each.by for each in found), default=0.0), max((each.relative for each in found), default=0.0))


def _prints_apart(one: Fingerprint | None, other: Fingerprint | None) -> Apart:
    if one is None or other is None:
        return Apart(0.0, 0.0) if one is other else Apart(math.inf, math.inf)
    numbers, others = ([float(norm), *projections.tolist()] for norm, projections in (one, other))
    off = max(0.0 if a == b or (a != a and b != b) else abs(a - b) for a, b in zip(numbers, others, strict=True))
    size = max(numbers[0], others[0])
    if not math.isfinite(off):
        return Apart(math.inf, math.inf)
    return Apart(off, off / size if off else 0.0)
