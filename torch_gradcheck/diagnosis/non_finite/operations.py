"""Records one run of J and its backward operation by operation: lines, modules, and gradients that turn non-finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any

import torch

from torch_gradcheck.diagnosis.non_finite.reasons import Reason, operation_name, reason_of
from torch_gradcheck.objective.module_hooks import ModuleStack
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.overflow import Call, OverflowWatch, all_finite
from torch_gradcheck.torch_internals.autograd import function_of, saved_by
from torch_gradcheck.torch_internals.code_lines import CodeLine
from torch_gradcheck.torch_internals.dispatch import function_modes_in_force, pop_function_modes_down_to

Gradients = Sequence[torch.Tensor | None]

MOST_ORIGINS = 4
"""How many operations that make non-finite gradients are looked at, the first of the backward."""


@dataclass(eq=False)
class Operation:
    """One node of autograd's graph.

    Attributes:
        node: the node itself.
        line: of the user's, that made it; None where none did.
        module: the innermost module that was running, by its qualified name; None in the loss function or closure.
        makes_zeros: whether its backward put zeros into gradients, as that of `where` does.
        passes_zeros: whether zeros left its backward.
        mask: the condition of `where`, the mask of `masked_fill`; None for other operations.
    """

    node: Any
    line: CodeLine | None
    module: str | None
    makes_zeros: bool = False
    passes_zeros: bool = False
    mask: torch.Tensor | None = None

    def hides(self, node: Any) -> bool:
        """Whether its backward gives a gradient of 0 to a node, which it has its input from, whatever arrives."""
        if self.mask is None:
            return self.makes_zeros
        first = self.node.next_functions[0][0] is node
        replaced = ~self.mask if operation_name(self.node) == "where" and first else self.mask
        return bool(replaced.any())


@dataclass(frozen=True)
class Origin:
    """An operation that was given finite gradients and gave others, or a hook before it.

    Attributes:
        operation: the operation.
        given: the gradients that arrived.
        made: those that left.
        reason: where its derivative is singular, as its saved tensors say; None for a Function, a hook, or where they
            do not say.
        hooks: on the tensor that it put out, where one of these spoils what arrives.
    """

    operation: Operation
    given: Gradients
    made: Gradients
    reason: Reason | None
    hooks: tuple[TensorHook, ...] = ()


@dataclass(frozen=True)
class TensorHook:
    """A hook that J puts on a tensor, and the line that does."""

    hook: Callable[..., Any]
    line: CodeLine | None


class OperationRecording(OverflowWatch):
    """Notes every operation of J inside the block, and those whose backward makes non-finite gradients.

    Attributes:
        operations: by node.
        origins: in the order of the backward, at most `MOST_ORIGINS`.
    """

    def __init__(self, modules: ModuleStack, inside: CodeType) -> None:
        super().__init__(modules, inside)
        self.operations: dict[Any, Operation] = {}
        self.origins: list[Origin] = []
        self._hooks: dict[Any, list[TensorHook]] = {}
        self._handles: list[Any] = []
        self._poisoned: set[Any] = set()  # nodes that are given what an operation has spoilt
        self._looking = False
        self._running_functions: list[tuple[Operation, int]] = []  # whose backward is running; the origins before it

    def __enter__(self) -> OperationRecording:
        self._below = function_modes_in_force()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        pop_function_modes_down_to(self._below + 1)  # a backward that raised may have left some; torch ends them itself
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def watched(self, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """As of the base; notes the nodes of the call too, and the hooks that it puts on tensors."""
        if self._looking:
            return func(*args, **kwargs)
        if func is torch.Tensor.register_hook and args[0].grad_fn is not None:
            self._hooks.setdefault(args[0].grad_fn, []).append(TensorHook(args[1], call.line))
        result = super().watched(call, func, args, kwargs)
        self.note([*_tensors(result), *_tensors(args)], call.line, call.module)  # in place, an argument has a new node
        return result

    def note(self, tensors: Sequence[torch.Tensor], line: CodeLine | None, module: str | None) -> None:
        """Notes the nodes that these tensors have and that were not there before."""
        waiting = [tensor.grad_fn for tensor in tensors]
        while waiting:
            node = waiting.pop()
            if node is None or node in self.operations:
                continue
            self.operations[node] = Operation(node, line, module)
            self._handles += self._hooked(self.operations[node])
            waiting += [following for following, _ in node.next_functions]

    @cached_property
    def users(self) -> Mapping[Any, Sequence[Operation]]:
        """For each node the operations that were given what it put out: gradients come from them. After the block."""
        found: dict[Any, list[Operation]] = {node: [] for node in self.operations}
        for operation in self.operations.values():
            for following, _ in operation.node.next_functions:
                found.setdefault(following, []).append(operation)
        return found

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """What is computed inside the block is no part of J."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def _hooked(self, operation: Operation) -> list[Any]:
        """Handles of hooks on a node, which watch its backward; that of a Function runs under this mode, as J does.

        torch puts a function mode aside while `backward` runs, and a Function may call J again, as a checkpoint does.
        """
        calls_python = function_of(operation.node) is not None

        def before(_: Gradients) -> None:
            self._enter(operation)

        def after(made: Gradients, given: Gradients) -> None:
            inner = self._leave() if calls_python else False
            with self._unseen():
                self._after_backward(operation, made, given, inner)

        handles = [operation.node.register_hook(after)]
        return [*handles, operation.node.register_prehook(before)] if calls_python else handles

    def _enter(self, operation: Operation) -> None:
        self._running_functions.append((operation, len(self.origins)))
        super().__enter__()  # type: ignore[no-untyped-call]

    def _leave(self) -> bool:
        """Whether an operation inside of the Function that ends has turned out to be an origin."""
        super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return len(self.origins) > self._running_functions.pop()[1]

    def _running(self) -> str | None:
        found = super()._running()
        return self._running_functions[-1][0].module if found is None and self._running_functions else found

    def _after_backward(self, operation: Operation, made: Gradients, given: Gradients, inner: bool) -> None:
        arrived_finite, left_finite = all_finite(given), all_finite(made)
        operation.passes_zeros = _zeros(made) > 0
        operation.makes_zeros = _zeros(made) > _zeros(given)
        if operation_name(operation.node) in ("where", "masked_fill"):
            saved = saved_by(operation.node)
            operation.mask = saved.get("condition", saved.get("mask"))
        if not left_finite:
            self._poisoned |= {
                following
                for (following, _), gradient in zip(operation.node.next_functions, made, strict=False)
                if gradient is not None and not all_finite(gradient)
            }
        hooks = tuple(self._hooks.get(operation.node, ()))
        by_hook = not arrived_finite and operation.node not in self._poisoned and bool(hooks)
        starts = by_hook or (arrived_finite and not left_finite and not inner)
        if starts and len(self.origins) < MOST_ORIGINS:
            reason = None if by_hook or function_of(operation.node) else reason_of(operation.node)
            self.origins.append(Origin(operation, given, made, reason, hooks if by_hook else ()))


def _tensors(value: Any) -> list[torch.Tensor]:
    return [tensor for _, tensor in tensors_in(value)]


def _zeros(gradients: Gradients) -> float:
    """The largest share of exact zeros in one of the gradients."""
    shares = [float((each == 0).double().mean()) for each in gradients if each is not None and each.numel()]
    return max(shares, default=0.0)
