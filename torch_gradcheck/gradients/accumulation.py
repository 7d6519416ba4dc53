"""What a backward accumulates in `.grad`, from None on, with everything that `.grad` held put back afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_gradcheck.objective.refusals import raise_any, refused_backward
from torch_gradcheck.precision.dtypes import is_lower
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.autograd import (
    current_backward,
    leaf_of,
    node_of,
    nodes_from,
    put_post_accumulate_hooks_to_sleep,
    set_backward,
)
from torch_gradcheck.torch_internals.dispatch import current_modes


def gradients_of(
    outputs: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
    cotangents: Sequence[torch.Tensor] | None = None,
    *,
    keep_graph: bool = False,
    unwanted: Sequence[torch.Tensor] = (),
    seen: Callable[[torch.Tensor], None] = lambda _: None,
) -> list[torch.Tensor | None]:
    """What the backward of Σ ⟨cotangent, output⟩ leaves in the `.grad` of every leaf in `inputs`, None for nothing.

    It is what `loss.backward()` leaves, whichever way it gets there: a Function's backward may run backwards of its
    own, as checkpoints and reversible layers do, whose gradients nobody can ask for, only accumulate.
    Hooks on tensors take part, those of `register_post_accumulate_grad_hook` do not.

    Args:
        outputs: each has a graph, or is a leaf.
        inputs: leaves; they have the `.grad` that they had before, when this returns or raises.
        cotangents: of the shapes of the outputs; None for scalars. Without them torch need not import sympy, half a
            second.
        keep_graph: for another backward through it.
        unwanted: those of the inputs whose gradient goes as soon as it is there, to save its memory.
        seen: called with each gradient that goes.

    Raises:
        MisfitError: torch has no backward of some operation for such tensors, as of many for sparse ones.
    """
    asked = [each for each in inputs if each.requires_grad]  # no generator: to end one early would swallow a Ctrl-C
    if not (outputs and asked):
        return [None for _ in inputs]
    with Accumulation(inputs, unwanted, seen):
        try:
            torch.autograd.backward(outputs, cotangents, keep_graph, inputs=_only_these(outputs, inputs))
        except RuntimeError as error:
            raise_any(refused_backward(error), error)
            raise
        return [each.grad for each in inputs]


def _only_these(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor] | None:
    """The leaves that the backward has to stop at; None for all, where every leaf can have a gradient.

    One of a lower precision that the loan has not found cannot: where casts are raised, autograd cannot cast to it.
    """
    precisions = [mode.precision for mode in current_modes() if isinstance(mode, PrecisionMode)]
    if not precisions:
        return None
    leaves = _leaves_behind(outputs)
    return [each for each in inputs if each.requires_grad] if _any_lower(leaves, precisions[-1]) else None


def _any_lower(leaves: Sequence[torch.Tensor], precision: torch.dtype) -> bool:
    return any(is_lower(leaf.dtype, precision) for leaf in leaves)


def _leaves_behind(outputs: Sequence[Any]) -> list[torch.Tensor]:
    """Every leaf that a backward from these tensors, or gradient edges, may reach."""
    reached = [leaf_of(node) for node in nodes_from(map(node_of, outputs))]
    return [leaf for leaf in [*outputs, *reached] if isinstance(leaf, torch.Tensor) and leaf.is_leaf]


class Accumulation:
    """Sets `.grad` aside, inside the block, of some leaves and of every other one that a backward may reach.

    Backwards that a backward runs itself are seen as well, where they run in this thread. A class and not a generator,
    as `Loan` is. `Loan` puts back what sees the backwards if `__exit__` is cut off.

    Args:
        leaves: set aside from the start, even if a Function's backward writes to `.grad` without a graph.
        unwanted: those of them whose `.grad` is None again as soon as something was accumulated there.
        seen: called with what was accumulated in these.
    """

    def __init__(
        self,
        leaves: Sequence[torch.Tensor],
        unwanted: Sequence[torch.Tensor] = (),
        seen: Callable[[torch.Tensor], None] = lambda _: None,
    ) -> None:
        self._thread = threading.get_ident()
        self._leaves, self._unwanted, self._seen = leaves, unwanted, seen
        self._aside: set[torch.Tensor] = set()
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> None:
        run = current_backward()
        self._undo.append(lambda: set_backward(run))
        for leaf in self._leaves:
            self._set_aside(leaf)
        for leaf in self._unwanted:
            self._undo.append(leaf.register_post_accumulate_grad_hook(self._let_go).remove)

        def seen(outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == self._thread:
                self._set_aside_from(outputs)
            return run(outputs, *args, **kwargs)

        set_backward(seen)

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _set_aside_from(self, outputs: Sequence[Any]) -> None:
        """Sets aside every leaf that a backward from these outputs may reach, and that none has reached before."""
        for leaf in _leaves_behind(outputs):
            if leaf not in self._aside:
                self._set_aside(leaf)

    def _set_aside(self, leaf: torch.Tensor) -> None:
        held = leaf.grad
        self._aside.add(leaf)
        self._undo += [put_post_accumulate_hooks_to_sleep(leaf), lambda: setattr(leaf, "grad", held)]
        leaf.grad = None

    def _let_go(self, leaf: torch.Tensor) -> None:
        if leaf.grad is not None:
            self._seen(leaf.grad)
        leaf.grad = None
