"""Records one run of J call by call: the arguments, outputs and gradients of modules and custom autograd.Functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.diagnosis.culprit.argument_copies import Snapshots, laid_out_alike, replaced, tensors_of
from torch_gradcheck.diagnosis.culprit.recorded_call import Owner, RecordedCall, summary
from torch_gradcheck.objective.nested import rebuilt
from torch_gradcheck.torch_internals.autograd import (
    current_function_backward,
    function_of,
    in_backward,
    set_function_backward,
)
from torch_gradcheck.torch_internals.custom_ops import users_function
from torch_gradcheck.torch_internals.dispatch import transforms_in_force
from torch_gradcheck.torch_internals.modules import Calls, current_calls, set_calls

MEMORY_LIMIT = 2**30
"""Limit on the inputs of all calls, in bytes (1 GiB); above it, no culprit is searched."""


@dataclass(frozen=True)
class GradientTaps:
    """Which tensors a recording replaces by copies, whose hooks record gradients; J must keep its value.

    Attributes:
        outputs: those of every call, to record the gradient that arrives.
        inputs: those of every call, to record the gradient that leaves. Changes J where a module writes to its input
            for others to see.
        rooted: outputs without a graph become leaves, so that calls downstream of a detach() still receive gradients.
        moving: which of them: those known to depend on θ, by the number of the call and the position; None for all.
            Others have no gradient in the real run, and a backward may do something else where one is asked for.
        aliases: the copies are other objects for the same memory. What writes to a tensor past autograd, by `.data`,
            then writes to what others see, as in the real run.
    """

    outputs: bool = True
    inputs: bool = True
    rooted: bool = True
    moving: frozenset[tuple[int, int]] | None = None
    aliases: bool = False

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor with a graph."""
        return tensor.view_as(tensor) if self.aliases else tensor.clone()


NO_TAPS = GradientTaps(outputs=False, inputs=False, rooted=False)
"""Records calls and arguments only."""


class Recording:
    """Records every call that this thread makes inside the block.

    Patches `nn.Module.__call__`, what `Function.apply` ends in and where the backward of a Function runs. `__exit__`
    restores them, and so does `Loan` if that is cut off.

    Args:
        random_state: gives the present state of the generators that J draws from.
        taps: the tensors that are replaced by copies to record gradients.
        outputs: whether to record `outputs` and `leaks` of every call; else `ungraphed`.
        watch: is called where a call begins or ends, with the call that was running until then; None for the loss
            function or closure, or a backward.

    Attributes:
        calls: every call, in the order of their starts.
        nodes: the node of the graph that each call of a Function has made.
        leaves: the new leaves that stand for outputs without a graph.
        full: whether the inputs of all calls exceed `MEMORY_LIMIT`; later calls are missing then.
    """

    def __init__(
        self,
        random_state: Callable[[], RandomState],
        taps: GradientTaps = NO_TAPS,
        *,
        outputs: bool = True,
        watch: Callable[[RecordedCall | None], None] = lambda _: None,
    ) -> None:
        self._random_state = random_state
        self.calls: list[RecordedCall] = []
        self.leaves: list[torch.Tensor] = []
        self.full = False
        self._thread = threading.get_ident()
        self._taps, self._outputs, self._stack = taps, outputs, list[RecordedCall]()
        self._snapshots, self._watch = Snapshots(), watch
        self.nodes: dict[Any, RecordedCall] = {}
        self._backwards: list[RecordedCall] = []
        self._count = 0
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Recording:
        calls, backward = current_calls(), current_function_backward()
        self._undo = [lambda: set_calls(calls), lambda: set_function_backward(backward)]

        def recorded_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._around(module, lambda a, k: calls.module(module, *a, **k), args, kwargs)

        def recorded_apply(function: type[Function], *args: Any, **kwargs: Any) -> Any:
            bound = calls.applying(function)
            if users_function(function) is None:
                return bound(*args, **kwargs)
            return self._around(function, lambda a, k: bound(*a, **k), args, kwargs)

        def recorded_backward(node: Any, *gradients: Any) -> Any:
            return self._in_backward(node, backward, gradients)

        set_calls(Calls(recorded_call, classmethod(recorded_apply)))
        set_function_backward(recorded_backward)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._undo:
            self._undo.pop()()
        self.nodes.clear()  # they hold on to what was saved for the backward

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
            self._end(call)
        self._note_node(call, result)
        return self._finished(call, result)

    def _in_backward(self, node: Any, run: Callable[..., Any], gradients: tuple[Any, ...]) -> Any:
        """Runs the backward of a Function: as a call where J differentiates it, else watched for the calls it makes."""
        forward = self.nodes.get(node)
        if forward is None or self.full or threading.get_ident() != self._thread:
            return run(node, *gradients)
        if torch.is_grad_enabled():
            return self._differentiated(forward, lambda: run(node, *gradients), gradients)
        self._watch(None)
        self._backwards.append(forward)
        try:
            return run(node, *gradients)
        finally:
            self._backwards.pop()
            self._watch(forward)

    def _differentiated(self, forward: RecordedCall, run: Callable[[], Any], gradients: tuple[Any, ...]) -> Any:
        call = self._begin(forward.owner, gradients, {}, forward)
        try:
            result = run()
        finally:
            self._end(call)
        results = list(result) if isinstance(result, tuple) else [result]
        there = [k for k in forward.asked if k < len(results) and results[k] is not None]
        for k, tensor in zip(there, self._finished(call, [results[k] for k in there]), strict=True):
            results[k] = tensor
        return tuple(results)

    def _note_node(self, call: RecordedCall, result: Any) -> None:
        """Notes which node of the graph a call of a Function has made."""
        if isinstance(call.owner, type):
            nodes = [tensor.grad_fn for tensor in tensors_of(result)]
            self.nodes |= {node: call for node in nodes if node is not None and function_of(node) is call.owner}

    def _begin(self, owner: Owner, args: Any, kwargs: Any, differentiates: RecordedCall | None = None) -> RecordedCall:
        parent = self.running()
        self._watch(parent)
        within_j = differentiates is not None or any(each.differentiates is not None for each in self._stack)
        inputs, differentiable = list[torch.Tensor](), list[bool]()

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            inputs.append(tensor if isinstance(tensor, nn.Parameter) else self._snapshots.of(tensor))
            differentiable.append(tensor.requires_grad)
            return inputs[-1]

        call = RecordedCall(
            owner,
            parent,
            replaced((args, kwargs), copied),
            inputs,
            differentiable,
            torch.is_grad_enabled(),
            in_backward() and not within_j,
            self._random_state(),
            made_by=self._backwards[-1] if self._backwards else None,
        )
        if differentiates is not None:
            call.arguments = (*call.arguments[0], *differentiates.arguments[0]), {}
            call.inputs += differentiates.inputs
            call.differentiable += differentiates.differentiable
            call.differentiates, call.random = differentiates, differentiates.random
        self._add(call)
        return call

    def _add(self, call: RecordedCall) -> None:
        if not call.in_backward:
            call.number, self._count = self._count, self._count + 1
        self.calls.append(call)
        self._stack.append(call)
        if call.parent is not None and (call.parent.in_backward or not call.in_backward):
            call.parent.children.append(call)

    def _end(self, call: RecordedCall) -> None:
        self._watch(call)
        while self._stack.pop() is not call:
            pass

    def _inputs_tapped(self, call: RecordedCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments for the callee: copies take the place of tensors whose gradient is asked for, to record it.

        Parameters stay: a Function may know them, and what it leaves in their `.grad` is on trial itself. So do leaves
        that a backward has made for calls of its own, whose `.grad` it reads.
        """
        if not (self._taps.inputs and torch.is_grad_enabled()):
            return args, kwargs
        positions = {id(tensor): k for k, tensor in reversed(list(enumerate(tensors_of((args, kwargs)))))}
        copies: dict[int, torch.Tensor] = {}  # a tensor given twice stays one tensor

        def copy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.requires_grad or isinstance(value, nn.Parameter):
                return value
            if call.in_backward and value.is_leaf:
                return value
            if id(value) not in copies:
                position = positions[id(value)]
                copies[id(value)] = self._taps.copy(value)
                call.tapped.append(position)
                self._tap_input(call, position, copies[id(value)])
            return copies[id(value)]

        return (
            tuple(copy(value) for value in args),
            {name: copy(value) for name, value in kwargs.items()},
        )

    def _tap_input(self, call: RecordedCall, position: int, copy: torch.Tensor) -> None:
        """Does what a tap does to the copy that the callee is given in place of an input with a graph."""
        copy.register_hook(lambda gradient: _left(call, position, gradient))

    def _finished(self, call: RecordedCall, result: Any) -> Any:
        if not self._outputs:
            tensors = enumerate(tensors_of(result))
            call.ungraphed = {k: self._snapshots.of(tensor) for k, tensor in tensors if _lacks_a_graph(tensor)}
            return result
        call.outputs = [summary(tensor) for tensor in tensors_of(result)]
        call.cotangents = [None for _ in call.outputs]
        call.leaks = isinstance(call.owner, nn.Module) and _keeps_a_graph(call.owner)
        if not self._taps.outputs:
            return result
        positions = iter(range(len(call.outputs)))
        return rebuilt(result, lambda tensor: self._tapped(call, next(positions), tensor), functions=True)

    def _tapped(self, call: RecordedCall, position: int, tensor: torch.Tensor) -> torch.Tensor:
        """The output for the caller: a copy, whose hook records the cotangent."""
        if not torch.is_grad_enabled():
            return tensor
        moving = self._taps.moving is None or (call.number, position) in self._taps.moving
        if self._taps.rooted and moving and _lacks_a_graph(tensor):
            tensor = tensor.detach().requires_grad_()
            self.leaves.append(tensor)
        elif not tensor.requires_grad:
            return tensor
        copy = self._taps.copy(tensor)
        copy.register_hook(lambda gradient: _arrived(call, position, gradient))
        return copy


def _lacks_a_graph(tensor: torch.Tensor) -> bool:
    """Whether autograd is on, and a tensor that could have a graph has none."""
    inexact = tensor.is_floating_point() or tensor.is_complex()
    return inexact and not tensor.requires_grad and torch.is_grad_enabled()


def _left(call: RecordedCall, position: int, gradient: torch.Tensor | None) -> None:
    if torch.is_grad_enabled():  # a backward that J differentiates: part of J's forward
        call.differentiated = True
    elif gradient is not None:
        before, now = call.returned.get(position), laid_out_alike(gradient.detach())
        call.returned[position] = now if before is None else before + now


def _arrived(call: RecordedCall, position: int, gradient: torch.Tensor | None) -> None:
    if torch.is_grad_enabled():  # as above
        call.differentiated = True
    elif gradient is not None:
        before, now = call.cotangents[position], laid_out_alike(gradient.detach())
        call.cotangents[position] = now if before is None else before + now


def _keeps_a_graph(module: nn.Module) -> bool:
    """Whether an attribute of the module holds a tensor with a graph, which others may use."""
    held = [value for value in vars(module).values() if not isinstance(value, nn.Module)]
    return any(tensor.grad_fn is not None for tensor in tensors_of(held))
