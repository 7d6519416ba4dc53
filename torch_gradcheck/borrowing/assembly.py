"""Sharded models made whole for a check: parameters gathered, hooks of sharding asleep; and sharded again after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_gradcheck.borrowing.builtin_content import refill
from torch_gradcheck.borrowing.captures import Captures, captures_of
from torch_gradcheck.borrowing.way_back import Steps, go_back
from torch_gradcheck.errors import GradcheckError, InvalidRequestError, MisfitError
from torch_gradcheck.processes.groups import team_of
from torch_gradcheck.processes.signals import HeldSignals
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.torch_internals.autograd import connect_hooks, restore_hooks, tensor_hooks
from torch_gradcheck.torch_internals.modules import FORWARD_HOOKS, named_parameters
from torch_gradcheck.torch_internals.parallel_wrappers import (
    full_precision_of,
    functions_behind,
    has_own_forward,
    is_ddp,
    is_fsdp1,
    is_of_sharding,
    is_partitioned_elsewhere,
    passed_on,
    sharding_methods,
)
from torch_gradcheck.torch_internals.sharded import (
    FullyShardedParameter,
    full_tensor,
    fully_sharded,
    is_sharded,
    layout_of,
    local_tensor,
    mesh_groups,
    process_groups_exist,
    shards_of,
    stand_for,
)
from torch_gradcheck.torch_internals.tensors import storage_key, swapped


class Whole(NamedTuple):
    """A tensor of the caller's, and the plain one with all its numbers that its object will stand for."""

    tensor: torch.Tensor
    plain: torch.Tensor


class Assembly:
    """A block in which what the caller handed over is whole: every rank has all numbers, and nothing talks to others.

    Tensor objects stay the same: whoever holds one (a module, an optimizer, a closure) sees the gathered numbers.
    Inside of another such block there is nothing left to do. A class and not a generator, which an interrupt could
    leave behind.

    Args:
        holders: the model, functions, batch: whatever the check reaches.

    Attributes:
        notes: what a report should say of it.
    """

    def __init__(self, *holders: Any) -> None:
        self.notes: list[str] = []
        self._holders = holders
        self._undo: Steps = []
        self._signals = HeldSignals(frozenset({Assembly.__enter__.__code__, Assembly.__exit__.__code__}))
        self._is_parallel = False

    def __enter__(self) -> Assembly:
        if not process_groups_exist():
            return self
        _refuse_others([each for holder in self._holders if isinstance(holder, nn.Module) for each in holder.modules()])
        found = captures_of(*self._holders)
        modules = list(found.modules.values())
        fully = fully_sharded(modules)
        wholes = _gathered(found, fully)
        of_fsdp = {id(each.sharded) for each in fully}
        self._is_parallel = bool(
            [each for each in wholes if id(each.tensor) not in of_fsdp and is_sharded(each.tensor)]
        )
        try:
            self._signals.install()
            self._take(modules, fully, wholes)
        except BaseException:
            self._give_back()
            raise
        if self._signals.waiting:
            self._give_back()  # delivers the interrupt
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        is_of_the_forward = isinstance(error, MisfitError) or not isinstance(error, GradcheckError)
        if self._is_parallel and isinstance(error, Exception) and is_of_the_forward:
            error.add_note(
                "In the check every rank has parameters of full size, and the hooks that shard inputs and outputs do "
                "not run: a forward that counts on the shapes of shards (n_heads // ranks) has to take them from its "
                "parameters."
            )
        self._give_back()

    def told(self, report: Report) -> Report:
        """The report, with the notes."""
        return replace(report, notes=[*report.notes, *self.notes]) if self.notes else report

    def _take(self, modules: Sequence[nn.Module], fully: Sequence[FullyShardedParameter], wholes: list[Whole]) -> None:
        """Puts what is whole in place; each step registers its way back first."""
        for each in fully:
            if not each.is_registered:
                self._undo.append(each.register())
        for whole in wholes:
            self._swap(whole)
        for module in modules:
            self._put_hooks_to_sleep(module)
            if is_ddp(module):
                self._replace(module, {"forward": passed_on(module)})
            self._replace(module, sharding_methods(module))

    def _swap(self, whole: Whole) -> None:
        tensor, plain = whole
        hooks = tensor_hooks(tensor)
        back = stand_for(tensor, plain) if is_sharded(tensor) else swapped(tensor, plain)
        self._undo += [lambda: restore_hooks(tensor, hooks), back]
        connect_hooks(tensor)

    def _put_hooks_to_sleep(self, module: nn.Module) -> None:
        for attribute in FORWARD_HOOKS:
            hooks = vars(module)[attribute]
            asleep = [hook for hook in hooks.values() if is_of_sharding(hook)]
            if asleep:
                self._undo.append(lambda hooks=hooks, before=dict(hooks): refill(hooks, before))  # type: ignore[misc]
                refill(hooks, {key: hook for key, hook in hooks.items() if not is_of_sharding(hook)})
                self._tell_of(module, asleep)

    def _tell_of(self, module: nn.Module, hooks: Iterable[Any]) -> None:
        """Notes functions of the caller's that are asleep with a hook of torch's."""
        for function in [function for hook in hooks for function in functions_behind(hook)]:
            name = getattr(function, "__qualname__", type(function).__name__)
            self.notes.append(
                f"not run in the check, like all that shards: {name}, which distribute_module was given for a "
                f"{type(module).__name__}"
            )

    def _replace(self, module: nn.Module, methods: Mapping[str, Callable[..., Any]]) -> None:
        """Has a module call these in place of its own methods of these names, unless that has been done."""
        for name in methods.keys() - vars(module).keys():
            self._undo.append(lambda name=name: vars(module).pop(name, None))  # type: ignore[misc]
            vars(module)[name] = methods[name]

    def _give_back(self) -> None:
        try:
            go_back(self._undo)
        finally:
            self._signals.release()


def assembled(*holders: Any) -> Assembly:
    """The block in which these are whole; see `Assembly`. All ranks of the meshes enter it, or none."""
    return Assembly(*holders)


def shard_rows(model: nn.Module) -> dict[str, list[tuple[int, int]]]:
    """The entries of dim 0, from and to, that each rank holds of each sharded parameter, by its name."""
    fully = fully_sharded(list(model.modules()))
    sharded = {id(held): each.sharded for each in fully for held in (*each.registered, each.sharded)}
    named = [(name, sharded.get(id(parameter), parameter)) for name, parameter in named_parameters(model)]
    return {
        name: [(each.offset[0], each.offset[0] + each.shape[0]) for each in shards_of(parameter)]
        for name, parameter in named
        if is_sharded(parameter) and parameter.dim()
    }


def _refuse_others(modules: Sequence[nn.Module]) -> None:
    """Raises InvalidRequestError for a way to shard that a check cannot undo."""
    for module in modules:
        if is_ddp(module) and has_own_forward(module):
            raise InvalidRequestError(
                f"{type(module).__name__} is a DistributedDataParallel with a forward of its own, which may do more "
                "than call the module inside: check that module."
            )
        if is_fsdp1(module):
            raise InvalidRequestError(
                f"a {type(module.module).__name__} is wrapped in FullyShardedDataParallel, whose flat parameters "
                "cannot be told apart: shard it by torch.distributed.fsdp.fully_shard, or check it before it is "
                "wrapped."
            )
        for name, parameter in module.named_parameters(recurse=False):
            if is_partitioned_elsewhere(parameter):
                raise InvalidRequestError(
                    f"parameter {name!r} of a {type(module).__name__} is partitioned by DeepSpeed (ZeRO-3) and empty "
                    "here: check the model before deepspeed.initialize, or inside of deepspeed.zero.GatheredParameters."
                )


def _gathered(found: Captures, fully: Sequence[FullyShardedParameter]) -> list[Whole]:
    """What is not whole, and all its numbers; every rank of the meshes takes part."""
    unsharded = {
        id(held): each.places[0][1]
        for each in fully
        for held in each.registered
        if not each.is_registered and held is not each.sharded
    }
    candidates = [tensor for key, tensor in found.tensors.items() if key not in unsharded]
    tensors = [each for each in dict.fromkeys([*(each.sharded for each in fully), *candidates]) if is_sharded(each)]
    _agree_on(tensors, _refusal(found, tensors, unsharded))
    lowered = [Whole(tensor, full) for tensor in candidates if (full := full_precision_of(tensor)) is not None]
    return [*_whole(tensors), *lowered]


def _refusal(found: Captures, tensors: Sequence[torch.Tensor], unsharded: Mapping[int, str]) -> Exception | None:
    """Why this rank cannot go on: the others wait to be told."""
    try:
        _refuse_others(list(found.modules.values()))
        _refuse_unsharded([(found.names[key], name) for key, name in unsharded.items() if key in found.names])
        _refuse_shards(tensors, found)
    except Exception as error:
        return error
    return None


def _refuse_unsharded(held: Sequence[tuple[str, str]]) -> None:
    """Raises InvalidRequestError where the loss or closure holds what FSDP2 will soon let go."""
    if held:
        raise InvalidRequestError(
            f"{held[0][0]} is the unsharded {held[0][1]!r} of a module that fully_shard was applied to, and not the "
            "parameter that is trained: call reshard() before parameters are collected."
        )


def _refuse_shards(tensors: Sequence[torch.Tensor], found: Captures) -> None:
    """Raises InvalidRequestError where the loss or closure holds a plain tensor on the memory of a shard."""
    memories = {storage_key(local_tensor(tensor)) for tensor in tensors}
    for key, tensor in found.tensors.items() if memories else ():
        is_plain = tensor.layout is torch.strided and not is_sharded(tensor) and not tensor.is_meta
        if is_plain and storage_key(tensor) in memories:
            name = found.names.get(key, "an attribute of a module")
            raise InvalidRequestError(
                f"{name} is this rank's shard of a parameter, as to_local() gives it, and would not move with it: hold "
                "the parameter itself."
            )


def _agree_on(tensors: Sequence[torch.Tensor], refusal: Exception | None) -> None:
    """Waits until all ranks of the meshes are here; raises where one refuses, or where they hold different tensors."""
    layouts = [(layout_of(each), _layout_of_grad(each)) for each in tensors]
    groups = list(dict.fromkeys(group for each in tensors for group in mesh_groups(each)))
    against = None if refusal is None else str(refusal)
    for group in groups:  # a rank of each other group is in this one: what one has seen, all come to know
        told = team_of(group).exchanged((layouts, against))
        seen = [other for _, other in told if other is not None]
        against = seen[0] if seen else _difference([each for each, _ in told])
    if refusal is not None or against is not None:
        raise refusal or InvalidRequestError(str(against))


def _layout_of_grad(tensor: torch.Tensor) -> str | None:
    return layout_of(tensor.grad) if tensor.grad is not None and is_sharded(tensor.grad) else None


Layouts = list[tuple[str, str | None]]
"""How tensors, and their `.grad`, lie on their meshes."""


def _difference(told: Sequence[Layouts]) -> str | None:
    """The sentence on the first thing that two ranks say otherwise; None where all say the same."""
    for rank, other in enumerate(told):
        if other != told[0]:
            return (
                "the ranks of the model's mesh have called the check with different tensors: "
                f"{_first_difference(told[0], other)} (ranks 0 and {rank} of a group). All of them have to call it "
                "with the same model at the same step."
            )
    return None


def _first_difference(one: Layouts, other: Layouts) -> str:
    if len(one) != len(other):
        return f"{len(one)} sharded ones and {len(other)}"
    (layout, grad), (another, its_grad) = next((a, b) for a, b in zip(one, other, strict=True) if a != b)
    return f"{layout} and {another}" if layout != another else f"as .grad of {layout} {grad} and {its_grad}"


def _whole(tensors: Sequence[torch.Tensor]) -> list[Whole]:
    """Each sharded tensor and all its numbers; of two on the same shard, such as x and x.detach(), on one memory."""
    known: dict[tuple[Any, ...], torch.Tensor] = {}
    wholes = []
    for tensor in tensors:
        local = local_tensor(tensor)
        same: object = storage_key(local) if local.numel() else id(tensor)
        key = (same, local.storage_offset(), local.stride(), layout_of(tensor))
        full = full_tensor(tensor)  # of each, since all ranks have to ask as often
        plain = known.setdefault(key, full).detach().requires_grad_(tensor.requires_grad)
        if tensor.grad is not None:
            plain.grad = full_tensor(tensor.grad) if is_sharded(tensor.grad) else tensor.grad
        wholes.append(Whole(tensor, plain))
    return wholes
