"""What stands in the way of a double backward: nodes that refuse, and intermediates that are kept as constants.

A Function may keep what it needs for its backward. Its inputs and outputs have a graph there. A tensor that its forward
has computed on the way has none, nor has a number: a double backward takes it for a constant. Source: "Double Backward
with Custom Functions", in the tutorials of torch: intermediates have to be outputs of the Function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_gradcheck.gradients.watched_backwards import Place, WatchedBackwards
from torch_gradcheck.torch_internals.autograd import (
    function_of,
    node_of,
    nodes_from,
    number_of,
)
from torch_gradcheck.torch_internals.double_backward import (
    is_of_operation,
    is_once_differentiable,
    kept_without_graph,
)

MOVES = 1e-9
"""What a Function keeps depends on its inputs where it differs by more than this share of its size: less may be how
threads add up."""


class DoubleBackwardRecord(WatchedBackwards):
    """Records what leaves the nodes of the backwards with a graph that this thread runs inside the block.

    Args:
        model: the modules to name.

    Attributes:
        left: the nodes in the order in which they run, each with the gradients that leave it, None for no gradient.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.left: list[tuple[Any, list[Any]]] = []

    def once_differentiable(self) -> Place | None:
        """The first node that runs whose Function is marked so; None where none is.

        Its gradients are constants, and raise nothing, where the gradient that it is given is one.
        """
        marked = [node for node, _ in self.left if (function := function_of(node)) and is_once_differentiable(function)]
        return self.place(marked[0]) if marked else None

    def runs(self, operation: str) -> Place | None:
        """The first node that runs this operation of torch's backward, see `is_of_operation`; None where none is."""
        made = [node for node, gradients in self.left if any(is_of_operation(each, operation) for each in gradients)]
        return self.place(made[0]) if made else None

    def place(self, node: Any) -> Place:
        """Where a node is."""
        return Place(node.name(), function_of(node), self._modules.of_node(number_of(node)))

    def _see(self, node: Any) -> None:
        self._undo.append(node.register_hook(self._hook_of(node)).remove)

    def _hook_of(self, node: Any) -> Callable[..., None]:
        def left(gradients: Any, _: Any) -> None:
            if torch.is_grad_enabled():
                self.left.append((node, list(gradients) if isinstance(gradients, tuple) else [gradients]))

        return left


class Intermediate(NamedTuple):
    """Something that a Function computes in its forward, keeps, and that autograd takes for a constant.

    Attributes:
        function: the Function, or that of an operator.
        name: what it is to the user, such as `"ctx.saved_tensors[1]"` or `"ctx.scale"`.
    """

    function: type[torch.autograd.Function]
    name: str


def kept_intermediates(
    here: Iterable[torch.Tensor], there: Iterable[torch.Tensor], frozen: Iterable[torch.Tensor] = ()
) -> list[Intermediate]:
    """What the Functions behind some outputs keep without a graph, though it depends on their inputs.

    Args:
        here: the outputs of a run, with a graph that has not been freed.
        there: those of another run of the same, some inputs moved by a little.
        frozen: the moved inputs of that run that require no gradient: one that a Function keeps as it is given it is
            rightly a constant.
    """
    rightly = {(tensor.data_ptr(), tensor.numel()) for tensor in frozen}
    found: list[Intermediate] = []
    for (function, node), (other, moved) in zip(_function_nodes(here), _function_nodes(there), strict=False):
        if function is not other:  # the runs are made of other calls
            break
        kept, then = kept_without_graph(node), kept_without_graph(moved)
        names = [name for name in kept if name in then and _differ(kept[name], then[name], rightly)]
        found += [Intermediate(function, name) for name in names]
    return found


def _function_nodes(outputs: Iterable[torch.Tensor]) -> list[tuple[type[torch.autograd.Function], Any]]:
    """The nodes of Functions behind some outputs, with these, in the order in which they were made."""
    nodes = [(function, node) for node in nodes_from(map(node_of, outputs)) if (function := function_of(node))]
    return sorted(nodes, key=lambda each: number_of(each[1]))


def _differ(kept: Any, then: Any, rightly: Collection[tuple[int, int]]) -> bool:
    """Whether what was kept in one run is something else in the other, by more than rounding."""
    if not (isinstance(kept, torch.Tensor) and isinstance(then, torch.Tensor)):
        return type(kept) is type(then) and abs(then - kept) > MOVES * abs(kept)
    if kept.shape != then.shape or not kept.numel() or (then.data_ptr(), then.numel()) in rightly:
        return False
    return bool((then - kept).abs().max() > MOVES * kept.abs().max())
