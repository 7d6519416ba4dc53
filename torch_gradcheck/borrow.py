"""The model is borrowed: what the caller owns is set aside, stand-ins take its place, and it comes back bit for bit.

Swap, never write. `torch._C._swap_tensor_impl` exchanges what two tensor objects stand for. The caller's Parameter
objects stay the same Python objects, so that optimizers, tied weights, captured lists and closures all see the
stand-ins; what they stood for before lies untouched aside, with its storage, `.grad`, hooks, version counter and the
graphs that were built on it, and is swapped back in the end.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_gradcheck.captures import Captures, captures_of
from torch_gradcheck.deliberate import PowerIterations
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.global_state import RandomState, SwitchState, seed_everything
from torch_gradcheck.interrupts import HeldSignals
from torch_gradcheck.precision import in_precision
from torch_gradcheck.request import Mode

ONE_AT_A_TIME = RLock()
"""Random state and switches belong to the whole process: checks in several threads wait for each other.

A forward that itself waits for a check in another thread would wait for ever.
"""


ABSENT = object()
"""Stands for the value of a name that is not there."""

SETTLING = 3
"""How many evaluations it takes to see what J does to its surroundings: with a graph, without, with one again."""


class Borrowed:
    """The stand-ins while they are lent, and the way back to their first state around each evaluation of J."""

    def __init__(self, tensors: _StandIns, holders: _HolderStates, generators: Sequence[Any], seed: int) -> None:
        self._tensors = tensors
        self._holders = holders
        self._collects_gradients = True
        self._settling = SETTLING
        seed_everything(seed)
        self._random = RandomState.of_everything(generators)

    def before_evaluation(self) -> None:
        """The random state of the first evaluation."""
        self._random.restore()

    def after_evaluation(self) -> None:
        """Buffers and whatever else the model wrote to hold their first values again."""
        if self._settling:
            self._settling -= 1
            self._holders.learn_what_is_filled()
        self._tensors.rewind()
        self._holders.rewind()
        if self._collects_gradients:
            self._tensors.drop_gradients()

    def has_gradients(self) -> bool:
        """Whether the evaluation left something in `.grad`: it ran a backward of its own."""
        return self._tensors.have_gradients()

    def learn_from_evaluation(self) -> None:
        """After the first evaluation: what it did not touch need not be put back after each of the others."""
        self._random.narrow_to_moved()
        self._tensors.learn_what_changes()
        self._collects_gradients = self.has_gradients()


class Loan:
    """Lends a model in `mode`, everything it and `functions` hold in `dtype`; takes it back whatever happens.

    A class and not a generator: between a `with` and a generator's `finally` lie frames of contextlib's, where Ctrl-C
    could land and leave the stand-ins in place.

    Args:
        model: what is lent.
        functions: what is called to compute J: loss or closure.
        batch: what they are called on; copied by others, only its random generators are of interest here.
        mode, dtype, seed: as the request has them.
    """

    def __init__(
        self,
        model: nn.Module,
        functions: Sequence[Callable[..., Any]],
        batch: Any,
        mode: Mode,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self._model, self._mode, self._dtype, self._seed = model, mode, dtype, seed
        self._captures = captures_of(model, *functions)
        self._generators = [*self._captures.generators.values(), *captures_of(batch).generators.values()]
        self._signals = HeldSignals(frozenset({Loan.__enter__.__code__, Loan.__exit__.__code__}))
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Borrowed:
        ONE_AT_A_TIME.acquire()  # before signals are held back: Ctrl-C ends the waiting
        try:
            self._undo.append(ONE_AT_A_TIME.release)
            self._signals.install()
            borrowed = self._take()
        except BaseException:
            self._give_back()
            raise
        if self._signals.waiting:
            self._give_back()  # delivers the interrupt
        return borrowed

    def __exit__(self, *exception: object) -> None:
        self._give_back()

    def _take(self) -> Borrowed:
        """Sets everything aside; each step registers its way back before it changes anything."""
        _check_numbers(self._model, self._captures)
        inference = torch.inference_mode(False)
        inference.__enter__()
        self._undo.append(lambda: inference.__exit__(None, None, None))
        switches, random = SwitchState(), RandomState.of_everything(self._generators)
        holders, iterations = _HolderStates(self._captures), PowerIterations(self._captures.modules.values())
        tensors = _StandIns(list(self._captures.tensors.values()), self._dtype)
        self._undo += [switches.restore, random.restore, iterations.restore, holders.restore, tensors.swap_back]
        tensors.swap_in()
        iterations.hold()
        switches.settle(self._dtype, coordinates=sum(parameter.numel() for parameter in self._model.parameters()))
        if self._mode != "keep":
            self._model.train(self._mode == "train")
            holders.start()
        return Borrowed(tensors, holders, self._generators, self._seed)

    def _give_back(self) -> None:
        try:
            while self._undo:
                self._undo.pop()()
        finally:
            if self._undo:
                self._give_back()  # whatever went wrong with one thing, the others come back
            self._signals.release()


class _StandIns:
    """Copies of tensors in the precision of the check, and the swap that puts them in place."""

    def __init__(self, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        self._tensors = [tensor for tensor in dict.fromkeys(tensors) if _can_stand_in(tensor)]
        with torch.no_grad():
            self._others = _stand_ins(self._tensors, dtype)
            self._pristine = [other.detach().clone() for other in self._others]
        self._hooks = [_copied(tensor._backward_hooks) for tensor in self._tensors]
        self._swapped = 0
        self._versions: list[int] = []
        self._restless = set(range(len(self._tensors)))

    def swap_in(self) -> None:
        for tensor, other in zip(self._tensors, self._others, strict=True):
            torch._C._swap_tensor_impl(tensor, other)
            self._swapped += 1
            if tensor.requires_grad and tensor._backward_hooks:
                tensor._backward_hooks = tensor._backward_hooks  # the caller's tensor hooks, on the stand-in too
        self._versions = [tensor._version for tensor in self._tensors]

    def swap_back(self) -> None:
        while self._swapped:
            self._swapped -= 1
            tensor, other = self._tensors[self._swapped], self._others[self._swapped]
            torch._C._swap_tensor_impl(tensor, other)
            _restore_hooks(tensor, self._hooks[self._swapped])

    def have_gradients(self) -> bool:
        return any(tensor.grad is not None for tensor in self._tensors if tensor.is_leaf)

    def drop_gradients(self) -> None:
        for tensor in self._tensors:
            tensor.grad = None

    def learn_what_changes(self) -> None:
        """After the first evaluation; torch's batch norms write to their statistics and leave the version as it was."""
        pairs = zip(self._tensors, self._pristine, strict=True)
        self._restless = {position for position, (now, first) in enumerate(pairs) if not torch.equal(now, first)}

    def rewind(self) -> None:
        """Stand-ins that an evaluation wrote to hold their first values again."""
        for position, tensor in enumerate(self._tensors):
            if position in self._restless or tensor._version != self._versions[position]:
                with torch.no_grad():
                    tensor.data.copy_(self._pristine[position])
                self._versions[position] = tensor._version


def _can_stand_in(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized


def _stand_ins(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor]:
    """A copy of each; one that sees a parameter change (a buffer made of `weight.data`) sees its copy change, too."""
    together = _seen_by_others(tensors)
    storages: dict[tuple[Any, ...], torch.Tensor] = {}
    copies = []
    for tensor in tensors:
        memory, lent_in = _memory(tensor), in_precision(tensor.dtype, dtype)
        if id(tensor) not in together:
            copy = tensor.detach().to(lent_in, copy=True)
        else:
            if memory not in storages:
                storages[memory] = _at(tensor, tensor.untyped_storage()).to(lent_in, copy=True)
            place = (tensor.storage_offset(), tensor.shape, tensor.stride())
            copy = _at(storages[memory], storages[memory].untyped_storage(), *place)
        copies.append(copy.requires_grad_(tensor.requires_grad))
    return copies


def _seen_by_others(tensors: Sequence[torch.Tensor]) -> set[int]:
    """The ids of parameters whose memory other tensors see, and of these.

    Two parameters on the same numbers stay two: each has a gradient of its own.
    """
    owners: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for tensor in tensors:
        if tensor.requires_grad and tensor.is_leaf:
            group = owners.setdefault(_memory(tensor), [])
            if not any(_overlap(tensor, other) for other in group):
                group.append(tensor)
    seen = [tensor for tensor in tensors if not tensor.requires_grad and _memory(tensor) in owners]
    return {id(tensor) for tensor in seen} | {id(owner) for tensor in seen for owner in owners[_memory(tensor)]}


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    (start, end), (other_start, other_end) = _extent(one), _extent(other)
    return start < other_end and other_start < end


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Where in its storage a tensor begins, and where it ends."""
    length = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    start = int(tensor.storage_offset())
    return start, start + (int(length) if tensor.numel() else 0)


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that may see each other's values change."""
    address = tensor.untyped_storage().data_ptr()
    as_it_is = not (tensor.is_conj() or tensor.is_neg())
    return (tensor.device, tensor.dtype, address if address and as_it_is else id(tensor))


def _at(like: torch.Tensor, storage: torch.UntypedStorage, *place: Any) -> torch.Tensor:
    """A tensor of its own, no view, on a storage: at offset, shape and stride, or all of it one after the other."""
    return torch.empty(0, dtype=like.dtype, device=like.device).set_(storage, *place)


def _copied(hooks: Any) -> Any:
    return None if hooks is None else OrderedDict(hooks)


def _restore_hooks(tensor: torch.Tensor, hooks: Any) -> None:
    """Hooks that the model itself added to the stand-in during an evaluation go with it."""
    if hooks is None:
        if tensor._backward_hooks is not None:
            tensor._backward_hooks = None
    elif tensor._backward_hooks is not None and tensor._backward_hooks != hooks:
        tensor._backward_hooks.clear()
        tensor._backward_hooks.update(hooks)


class _HolderStates:
    """What modules and objects keep in their attributes (flags, hooks, counters, ...), containers and arrays hold."""

    def __init__(self, captures: Captures) -> None:
        attributes = [vars(holder) for holder in (*captures.modules.values(), *captures.objects.values())]
        self._held = [*attributes, *captures.containers.values()]
        self._first = [_content(held) for held in self._held]
        self._arrays = [(array, array.copy()) for array in captures.arrays.values() if array.flags.writeable]
        self.start()

    def start(self) -> None:
        """What is held now, in the mode of the check, is what every evaluation starts from."""
        self._start = [_content(held) for held in self._held]
        self._last = self._start
        self._tensor_names = [
            (names, name, value)
            for names in self._held
            if isinstance(names, dict)
            for name, value in names.items()
            if isinstance(value, torch.Tensor)
        ]
        self._filled: list[tuple[dict[Any, Any], Any, Any]] = []
        self._settled: list[tuple[dict[Any, Any], Any, Any]] = []
        self._grown: list[tuple[Any, Any]] = []

    def learn_what_is_filled(self) -> None:
        """After each of the first evaluations: state, caches, and whatever says that they are filled.

        These are names that changed once and not again, and names that hold another tensor every time. What changes
        every time without tensors, a counter, stays changed: a J that depends on it is not one function.
        """
        now = [_content(held) for held in self._held]
        for held, start, last, new in zip(self._held, self._start, self._last, now, strict=True):
            if isinstance(held, dict):
                self._learn_names(held, start, last, new)
            elif not _same_items(held, start) and any(isinstance(value, torch.Tensor) for value in (*new, *start)):
                self._grown.append((held, start))
        self._last = now
        if any(isinstance(held.get(name), torch.Tensor) for held, name, _ in self._settled):
            self._filled += self._settled
        self._settled = []

    def _learn_names(
        self, held: dict[Any, Any], start: dict[Any, Any], last: dict[Any, Any], new: dict[Any, Any]
    ) -> None:
        for name, value in new.items():
            before, first = last.get(name, ABSENT), start.get(name, ABSENT)
            if value is before and value is not first:
                self._settled.append((held, name, first))
            elif value is not before and before is not first and isinstance(value, torch.Tensor):
                self._filled.append((held, name, first))

    def restore(self) -> None:
        """All that was held is held again, the same objects under the same names."""
        _refill_changed(zip(self._held, self._first, strict=True))
        for array, first in self._arrays:
            if array.tobytes() != first.tobytes():
                array[...] = first

    def rewind(self) -> None:
        """Names that held a tensor hold that same tensor again, and caches are as empty as they were."""
        for names, name, tensor in self._tensor_names:
            if names.get(name) is not tensor:
                names[name] = tensor
        for names, name, value in self._filled:
            if value is ABSENT:
                names.pop(name, None)
            else:
                names[name] = value
        _refill_changed(self._grown)


def _refill_changed(contents: Iterable[tuple[Any, Any]]) -> None:
    for container, content in contents:
        if not _same_items(container, content):
            _refill(container, content)


def _content(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _same_items(container: Any, content: Any) -> bool:
    now = _content(container)
    if isinstance(content, dict):
        return list(now) == list(content) and all(now[key] is content[key] for key in content)
    return len(now) == len(content) and all(one is other for one, other in zip(now, content, strict=True))


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _check_numbers(model: nn.Module, captures: Captures) -> None:
    """Raises where a module holds a tensor without numbers to compute with."""
    for name, buffer in model.named_buffers():
        _check_has_numbers(f"buffer {name!r}", buffer)
    for module in captures.modules.values():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            _check_has_numbers(f"{name!r} of a {type(module).__name__}", tensor)


def _check_has_numbers(what: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise InvalidRequestError(f"{what} is not initialised yet (a lazy module): call it once on a batch first.")
    if tensor.is_meta:
        raise InvalidRequestError(
            f"{what} is on the meta device and holds no numbers: materialise the module first, "
            "for example with to_empty(device='cpu') and an initialisation."
        )
