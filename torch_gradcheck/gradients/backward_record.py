"""Records a run of J and its backward: a fingerprint of each gradient that reaches or leaves a node of the graph."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.objective.module_hooks import ModuleStack, forward_hooks
from torch_gradcheck.torch_internals.autograd import (
    current_backward,
    function_of,
    leaf_of,
    next_number,
    nodes_from,
    number_of,
    set_backward,
)

BLOCK = 4096
"""Long gradients are projected a block of so many entries at a time: the weights fit into the cache."""

WEIGHTS = np.random.default_rng(0).uniform(0.5, 1.5, BLOCK) * np.random.default_rng(1).choice([-1.0, 1.0], BLOCK)
"""The weights of a projection; no two entries have the same, so that entries that change places show."""


Fingerprint = tuple[torch.Tensor, torch.Tensor]
"""The norm of a gradient and its projection on the weights, on its device still."""


class CalledModules(ModuleStack):
    """The stack of modules being called, which remembers the nodes that each call made."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[_Call] = []
        self._open: list[_Call] = []

    def enter(self, name: str) -> None:
        """A call of module `name` begins."""
        super().enter(name)
        self._open.append(_Call(name, next_number()))
        self._calls.append(self._open[-1])

    def leave(self, name: str) -> None:
        """The call of module `name` ends, and those inside of it that an exception has cut off."""
        super().leave(name)
        while len(self._open) > len(self._stack):
            self._open.pop().end = next_number()

    def of_node(self, number: int) -> str | None:
        """The innermost module in whose call the node of this number was made; None where that was in none."""
        inside = [call for call in self._calls if call.start <= number < call.end]
        return max(reversed(inside), key=lambda call: call.start).name if inside else None  # the outermost came first


@dataclass
class _Call:
    name: str
    start: int
    end: int = 0


class Place(NamedTuple):
    """Where in the graph a gradient was seen.

    Attributes:
        node: the name of the node, such as `"MulBackward0"`.
        function: the autograd.Function of the user's whose backward it is; None for a node of torch's own.
        module: the qualified name of the innermost module in whose forward the node was made; None for none.
    """

    node: str
    function: type[torch.autograd.Function] | None
    module: str | None


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


class BackwardRecord:
    """Records every backward that this thread runs inside the block, and the modules in which its nodes were made.

    What is kept of a gradient is two numbers, so that a record takes no memory to speak of. Numbers, not bits, since
    runs may differ everywhere by rounding and in one place by more. `__exit__` puts back what sees the backwards, and
    so does `Loan` if that is cut off.

    Args:
        model: the modules to name.

    Attributes:
        events: in the order in which they happened.
    """

    def __init__(self, model: nn.Module) -> None:
        self.events: list[Event] = []
        self._modules = CalledModules()
        self._hooks = forward_hooks(model, stack=self._modules)
        self._weights = {torch.device("cpu"): torch.from_numpy(WEIGHTS)}
        self._thread = threading.get_ident()
        self._places: list[tuple[str, type[torch.autograd.Function] | None, int]] = []
        self._watched: set[Any] = set()
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> BackwardRecord:
        run = current_backward()
        self._undo.append(lambda: set_backward(run))

        def recorded(tensors: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._watch(tensors)
            return run(tensors, *args, **kwargs)

        set_backward(recorded)
        self._hooks.__enter__()
        self._undo.append(lambda: self._hooks.__exit__(None, None, None))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()
        self._watched.clear()  # nodes hold on to what was saved for the backward

    def place(self, node: int) -> Place:
        """Where the node of this number is."""
        name, function, number = self._places[node]
        return Place(name, function, self._modules.of_node(number))

    def _watch(self, tensors: Sequence[torch.Tensor]) -> None:
        """Hooks into every node that a backward from these tensors may run."""
        for node in list(nodes_from(tensor.grad_fn for tensor in tensors)):
            if node not in self._watched and leaf_of(node) is None:
                self._watched.add(node)
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
        """The norm of a gradient and its projection on fixed weights; None where it has none."""
        try:
            values = _flat(gradient)
            if values.device not in self._weights:
                self._weights[values.device] = self._weights[torch.device("cpu")].to(values.device)
            weights = self._weights[values.device]
            return torch.linalg.vector_norm(values), _projection(values, weights)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError):  # a kind of tensor that has no numbers
            return None


def _flat(gradient: torch.Tensor) -> torch.Tensor:
    """The entries in float64, in the order in which they lie in memory."""
    values = gradient.detach()
    if values.layout is not torch.strided:
        values = values.coalesce().values()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.is_contiguous():
        return values.reshape(-1).double()
    as_stored = sorted(range(values.dim()), key=values.stride, reverse=True)  # a transposed one need not be copied then
    return values.permute(as_stored).reshape(-1).double()


def _projection(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if len(values) <= BLOCK:
        return torch.dot(values, weights[: len(values)])
    whole = len(values) // BLOCK * BLOCK
    blocks, rest = values[:whole].view(-1, BLOCK) @ weights, values[whole:]
    return _projection(blocks, weights) + torch.dot(rest, weights[: len(rest)])


def first_difference(one: BackwardRecord, other: BackwardRecord, tolerance: float) -> Event | None:
    """The first event of one run whose gradients are others in the other run, by more than `tolerance` of their norm.

    None where there is none, or where the runs do not have the same nodes.
    """
    if len(one.events) != len(other.events):
        return None
    for event, twin in zip(one.events, other.events, strict=True):
        if event[:2] != twin[:2]:
            return None
        if not all(_alike(*pair, tolerance) for pair in zip(event.prints, twin.prints, strict=True)):
            return event
    return None


def _alike(one: Fingerprint | None, other: Fingerprint | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    (norm, projection), (other_norm, other_projection) = map(float, one), map(float, other)
    if (norm, projection) == (other_norm, other_projection) or (math.isnan(norm) and math.isnan(other_norm)):
        return True
    off = max(abs(norm - other_norm), abs(projection - other_projection))
    return bool(off <= tolerance * max(norm, other_norm))
