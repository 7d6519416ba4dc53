"""Sees every backward that a thread starts, with all its nodes, and the modules in which these were made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from torch_gradcheck.objective.module_hooks import ModuleStack, forward_hooks
from torch_gradcheck.torch_internals.autograd import (
    current_backward,
    leaf_of,
    next_number,
    node_of,
    nodes_from,
    set_backward,
)


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

    def ended_at(self, number: int) -> list[str]:
        """The modules whose call ended when the node of this number was the next, the outermost first."""
        return [call.name for call in self._calls if call.end == number]


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


class WatchedBackwards:
    """Sees the nodes of every backward that this thread starts inside the block, before they run.

    `__exit__` puts back what sees the backwards, and so does `Loan` if that is cut off.

    Args:
        model: the modules to name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = CalledModules()
        self._hooks = forward_hooks(model, stack=self._modules)
        self._thread = threading.get_ident()
        self._watched: set[Any] = set()
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Self:
        run = current_backward()
        self._undo.append(lambda: set_backward(run))

        def recorded(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._watch(outputs)
            return run(outputs, *args, **kwargs)

        set_backward(recorded)
        self._hooks.__enter__()
        self._undo.append(lambda: self._hooks.__exit__(None, None, None))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()
        self._watched.clear()  # nodes hold on to what was saved for the backward

    def _watch(self, outputs: Sequence[Any]) -> None:
        """Sees every node that a backward from these tensors, or gradient edges, may run."""
        for node in list(nodes_from(map(node_of, outputs))):
            if node not in self._watched and leaf_of(node) is None:
                self._watched.add(node)
                self._see(node)

    def _see(self, node: Any) -> None:
        """Hooks into a node; what undoes that goes to `_undo`."""
        raise NotImplementedError
