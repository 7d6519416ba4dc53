"""A graph of an earlier evaluation of J that a later one goes backward through: told with the module that keeps it."""

from __future__ import annotations

import torch
from torch import nn

from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.refused_places import named_module
from torch_gradcheck.torch_internals.autograd import leaf_of, next_number, nodes_from, number_of
from torch_gradcheck.torch_internals.modules import module_at


class KeptGraphs:
    """Sees inside of the block which module first returns what was computed, in part, before it.

    Args:
        model: the lent model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._first, self.name = model, next_number(), ""
        self._hooks = forward_hooks(model, self._looked_at)

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(None, None, None)

    def _looked_at(self, name: str, tensors: list[torch.Tensor]) -> None:
        if not self.name and [node for node in nodes_from([each.grad_fn for each in tensors]) if self._is_old(node)]:
            self.name = named_module(name, module_at(self._model, name))

    def _is_old(self, node: object) -> bool:
        return leaf_of(node) is None and number_of(node) < self._first

    @property
    def said(self) -> str:
        """What is wrong, and what to do."""
        return (
            f"{self.name or 'J'} computes with what an earlier call has left, as a cache or a hidden state, and the "
            "graph of that is gone (torch says: Trying to backward through the graph a second time). Keep it detached, "
            "by .detach(), or compute it anew in each call."
        )
