"""Records one run of J call by call: the arguments, outputs and gradients of modules and custom autograd.Functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.diagnosis.culprit.argument_copies import Snapshots, replaced, tensors_of
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.torch_internals.autograd import in_backward
from torch_gradcheck.torch_internals.custom_ops import custom_op_of
from torch_gradcheck.torch_internals.dispatch import transforms_in_force
from torch_gradcheck.torch_internals.modules import Calls, current_calls, set_calls

Owner = nn.Module | type[Function]

MEMORY_LIMIT = 2**30
"""Limit on the inputs of all calls, in bytes (1 GiB); above it, no culprit is searched."""


@dataclass(eq=False)
class RecordedCall:
    """One call of a module or of a custom autograd.Function.

    Attributes:
        owner: the module, or the Function's class.
        parent: the call that made this one; None for the loss function or closure itself.
        children: the calls that this one made.
        arguments: copies of (args, kwargs) as they were at the start, tensors detached.
        inputs: the tensors in `arguments`.
        differentiable: for each of them, whether it required a gradient.
        grad_enabled: whether autograd was on.
        in_backward: whether a backward made the call, as a checkpoint that recomputes does.
        random: the state of the random generators at the start.
        outputs: `summary` of each tensor in the result: shape, sum and sum of absolute values.
        cotangents: the gradient that arrived for each output, None where none did.
        returned: the gradient that left the call for a tensor in `arguments`, by the tensor's position, where a tap saw
            it. A tensor that is given twice has one, at its first position.
        leaks: whether a graph leaves the module by an attribute, besides its outputs.
    """

    owner: Owner
    parent: RecordedCall | None
    arguments: tuple[Any, Any]
    inputs: list[torch.Tensor]
    differentiable: list[bool]
    grad_enabled: bool
    in_backward: bool
    random: RandomState
    children: list[RecordedCall] = field(default_factory=list)
    outputs: list[tuple[tuple[int, ...], float, float]] = field(default_factory=list)
    cotangents: list[torch.Tensor | None] = field(default_factory=list)
    returned: dict[int, torch.Tensor] = field(default_factory=dict)
    leaks: bool = False

    @property
    def receives(self) -> bool:
        """Whether a gradient arrived for any output."""
        return any(cotangent is not None for cotangent in self.cotangents)

    def inside(self) -> Iterator[RecordedCall]:
        """All calls made inside of this one, at any depth."""
        for child in self.children:
            yield child
            yield from child.inside()

    def run(self, arguments: tuple[Any, Any]) -> Any:
        """Calls the owner once more, with the given (args, kwargs)."""
        function: Callable[..., Any] = self.owner if isinstance(self.owner, nn.Module) else self.owner.apply
        return function(*arguments[0], **arguments[1])


@dataclass(frozen=True)
class GradientTaps:
    """Which tensors a recording replaces by copies, whose hooks record gradients; J must keep its value.

    Attributes:
        outputs: those of every call, to record the gradient that arrives.
        inputs: those of every call, to record the gradient that leaves. Changes J where a module writes to its input
            for others to see.
        rooted: outputs without a graph become leaves, so that calls downstream of a detach() still receive gradients.
    """

    outputs: bool = True
    inputs: bool = True
    rooted: bool = True


NO_TAPS = GradientTaps(outputs=False, inputs=False, rooted=False)
"""Records calls and arguments only."""


class Recording:
    """Records every call that this thread makes inside the block.

    Patches `nn.Module.__call__` and what `Function.apply` ends in. `__exit__` restores both, and so does `Loan` if
    that is cut off.

    Args:
        random_state: gives the present state of the generators that J draws from.
        taps: the tensors that are replaced by copies to record gradients.
        outputs: whether to record `outputs` and `leaks` of every call; else only what the call was given is.

    Attributes:
        calls: every call, in the order of their starts.
        leaves: the new leaves that stand for outputs without a graph.
        full: whether the inputs of all calls exceed `MEMORY_LIMIT`; later calls are missing then.
    """

    def __init__(
        self, random_state: Callable[[], RandomState], taps: GradientTaps = NO_TAPS, *, outputs: bool = True
    ) -> None:
        self._random_state = random_state
        self.calls: list[RecordedCall] = []
        self.leaves: list[torch.Tensor] = []
        self.full = False
        self._thread = threading.get_ident()
        self._taps, self._outputs, self._stack = taps, outputs, list[RecordedCall]()
        self._snapshots = Snapshots()
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Recording:
        calls = current_calls()
        self._undo = [lambda: set_calls(calls)]

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._around(module, lambda a, k: calls.module(module, *a, **k), args, kwargs)

        def recorded_apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
            bound = calls.applying(function)
            if function.__module__.startswith("torch.") and custom_op_of(function) is None:
                return bound(*args, **kwargs)
            return self._around(function, lambda a, k: bound(*a, **k), args, kwargs)

        set_calls(Calls(recorded_call, classmethod(recorded_apply)))
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()

    @property
    def roots(self) -> list[RecordedCall]:
        """Calls made by the loss function or closure itself."""
        return [call for call in self.calls if call.parent is None and not call.in_backward]

    def running(self) -> RecordedCall | None:
        """The innermost call that is running; None in the loss function or closure itself."""
        return self._stack[-1] if self._stack else None

    def forget_gradients(self) -> None:
        """Forgets all gradients recorded so far, as if no backward had run."""
        for call in self.calls:
            call.cotangents = [None for _ in call.outputs]
            call.returned.clear()

    def _around(self, owner: Owner, run: Callable[[Any, Any], Any], args: Any, kwargs: Any) -> Any:
        self.full = self.full or self._snapshots.bytes > MEMORY_LIMIT
        elsewhere = threading.get_ident() != self._thread  # the patches reach other threads' models too
        if self.full or elsewhere or transforms_in_force():  # what a vmap works with are no tensors outside of it
            return run(args, kwargs)
        call = self._begin(owner, args, kwargs)
        try:
            result = run(*self._inputs_tapped(call, args, kwargs))
        finally:
            while self._stack.pop() is not call:
                pass
        return self._finished(call, result)

    def _begin(self, owner: Owner, args: Any, kwargs: Any) -> RecordedCall:
        parent = self.running()
        inputs, differentiable = list[torch.Tensor](), list[bool]()

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            inputs.append(self._snapshots.of(tensor))
            differentiable.append(tensor.requires_grad)
            return inputs[-1]

        call = RecordedCall(
            owner,
            parent,
            replaced((args, kwargs), copied),
            inputs,
            differentiable,
            torch.is_grad_enabled(),
            in_backward(),
            self._random_state(),
        )
        self.calls.append(call)
        self._stack.append(call)
        if parent is not None:
            parent.children.append(call)
        return call

    def _inputs_tapped(self, call: RecordedCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments for the callee: tensors with a graph are replaced by copies, whose hooks record `returned`."""
        if not (self._taps.inputs and torch.is_grad_enabled()):
            return args, kwargs
        positions = {id(tensor): k for k, tensor in reversed(list(enumerate(tensors_of((args, kwargs)))))}
        copies: dict[int, torch.Tensor] = {}  # a tensor given twice stays one tensor

        def copy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or value.grad_fn is None:
                return value
            if id(value) not in copies:
                position = positions[id(value)]
                copies[id(value)] = value.clone()
                copies[id(value)].register_hook(lambda gradient: _left(call, position, gradient))
            return copies[id(value)]

        return (
            tuple(copy(value) for value in args),
            {name: copy(value) for name, value in kwargs.items()},
        )

    def _finished(self, call: RecordedCall, result: Any) -> Any:
        if not self._outputs:
            return result
        call.outputs = [summary(tensor) for tensor in tensors_of(result)]
        call.cotangents = [None for _ in call.outputs]
        call.leaks = isinstance(call.owner, nn.Module) and _keeps_a_graph(call.owner)
        if not self._taps.outputs:
            return result
        positions = iter(range(len(call.outputs)))
        return rebuilt(result, lambda tensor: self._tapped(call, next(positions), tensor))

    def _tapped(self, call: RecordedCall, position: int, tensor: torch.Tensor) -> torch.Tensor:
        """The output for the caller: a copy, whose hook records the cotangent."""
        inexact = tensor.is_floating_point() or tensor.is_complex()
        if not torch.is_grad_enabled():
            return tensor
        if tensor.grad_fn is None and inexact and self._taps.rooted:
            tensor = tensor.detach().requires_grad_()
            self.leaves.append(tensor)
        elif tensor.grad_fn is None:
            return tensor
        copy = tensor.clone()
        copy.register_hook(lambda gradient: _arrived(call, position, gradient))
        return copy


def summary(tensor: torch.Tensor) -> tuple[tuple[int, ...], float, float]:
    """Shape, sum and sum of absolute values of a tensor, to compare the outputs of two runs by."""
    values = tensor.detach()
    size = values.abs().double() if values.dtype != torch.bool else values.double()
    total = values.real if values.is_complex() else values
    return tuple(values.shape), float(total.double().sum()), float(size.sum())


def _left(call: RecordedCall, position: int, gradient: torch.Tensor | None) -> None:
    if gradient is not None:
        before, now = call.returned.get(position), gradient.detach().clone()
        call.returned[position] = now if before is None else before + now


def _arrived(call: RecordedCall, position: int, gradient: torch.Tensor | None) -> None:
    if gradient is not None:
        before, now = call.cotangents[position], gradient.detach().clone()
        call.cotangents[position] = now if before is None else before + now


def _keeps_a_graph(module: nn.Module) -> bool:
    """Whether an attribute of the module holds a tensor with a graph, which others may use."""
    held = [value for value in vars(module).values() if not isinstance(value, nn.Module)]
    return any(tensor.grad_fn is not None for tensor in tensors_of(held))


def paired_with_recomputed(calls: list[RecordedCall]) -> None:
    """Pairs checkpointed calls with their recomputation in the backward, and copies its gradients to them."""
    waiting = [call for call in calls if call.in_backward and call.receives]
    for call in calls:
        if call.in_backward or call.grad_enabled:
            continue
        again = next((other for other in waiting if _same_call(call, other)), None)
        if again is not None:
            waiting.remove(again)
            call.cotangents, call.returned = again.cotangents, again.returned
            call.differentiable, call.grad_enabled = again.differentiable, True


def alike(one: RecordedCall, other: RecordedCall) -> bool:
    """Whether calls of two runs have one owner, or owners of one class name: a forward may create modules anew."""
    first, second = (owner if isinstance(owner, type) else type(owner) for owner in (one.owner, other.owner))
    return one.owner is other.owner or first.__qualname__ == second.__qualname__


def _same_call(one: RecordedCall, other: RecordedCall) -> bool:
    if not alike(one, other):
        return False
    return len(one.inputs) == len(other.inputs) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one.inputs, other.inputs, strict=True)
    )
