"""The graph that autograd has recorded, hooks on its leaves, and whether a backward is running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def nodes_from(starts: Iterable[Any]) -> Iterator[Any]:
    """Every node that can be reached from these, each once and as soon as it is met; None among them is no node."""
    waiting, seen = list(starts), set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


@contextmanager
def before_hooks(parameter: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Collects the gradients of `parameter` inside the block as they are before the caller's hooks change them."""
    raw: list[torch.Tensor] = []
    if not parameter.requires_grad:
        yield raw
        return

    def keep(gradient: torch.Tensor | None) -> None:
        if gradient is not None:
            raw.append(gradient.detach().clone())

    handle = parameter.register_hook(keep)
    hooks = parameter._backward_hooks
    assert hooks is not None
    others = [(key, hook) for key, hook in hooks.items() if key != handle.id]
    for key, _ in others:
        del hooks[key]
    hooks.update(others)
    try:
        yield raw
    finally:
        handle.remove()


def in_backward() -> bool:
    """Whether a backward is running: a checkpoint calls the model again there."""
    return torch._C._current_graph_task_id() != -1
