"""The model is borrowed: what the caller owns is set aside, stand-ins take its place, and it comes back bit for bit.

Swap, never write. `torch._C._swap_tensor_impl` exchanges what two tensor objects stand for. The caller's Parameter
objects stay the same Python objects, so that optimizers, tied weights, captured lists and closures all see the
stand-ins; what they stood for before lies untouched aside, with its storage, `.grad`, hooks, version counter and the
graphs that were built on it, and is swapped back in the end.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torch_gradcheck.captures import captures_of
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.global_state import RandomState, SwitchState, is_generator, seed_everything
from torch_gradcheck.interrupts import HeldSignals
from torch_gradcheck.precision import in_precision
from torch_gradcheck.request import Mode

CONTAINERS = (dict, list, set, deque)


@dataclass(frozen=True)
class Start:
    """What an evaluation of J starts from, where that is not a seed and what the model holds now.

    Attributes:
        random: the state of the random generators.
        values: buffer → what it is to hold.
    """

    random: RandomState
    values: Mapping[torch.Tensor, torch.Tensor] = field(default_factory=dict)


class Borrowed:
    """The stand-ins while they are lent, and the way back to their first state around each evaluation of J."""

    def __init__(self, tensors: _StandIns, modules: _ModuleStates, generators: Sequence[Any]) -> None:
        self._tensors = tensors
        self._modules = modules
        self._collects_gradients = True
        self._random = RandomState.of_everything(generators)

    def before_evaluation(self) -> None:
        """The random state of the first evaluation."""
        self._random.restore()

    def after_evaluation(self) -> None:
        """Buffers and whatever else the model wrote to hold their first values again."""
        self._tensors.rewind()
        self._modules.rewind_tensors()
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

    `dtype` None leaves every tensor in its own. The random state is seeded with `seed`, or that of `start`.

    A class and not a generator: between a `with` and a generator's `finally` lie frames of contextlib's, where Ctrl-C
    could land and leave the stand-ins in place.
    """

    def __init__(
        self,
        model: nn.Module,
        functions: Sequence[Callable[..., Any]],
        mode: Mode,
        dtype: torch.dtype | None,
        seed: int,
        start: Start | None = None,
    ) -> None:
        self._model, self._mode, self._dtype, self._seed, self._start = model, mode, dtype, seed, start
        captures = [captures_of(function) for function in functions]
        roots = [model, *(module for capture in captures for module in capture.modules.values())]
        self._holders = list(dict.fromkeys(module for root in roots for module in root.modules()))
        self._captured = [tensor for capture in captures for tensor in capture.tensors.values()]
        self._signals = HeldSignals(frozenset({Loan.__enter__.__code__, Loan.__exit__.__code__}))
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Borrowed:
        try:
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
        generators = [value for module in self._holders for value in vars(module).values() if is_generator(value)]
        _check_buffers(self._model)
        inference = torch.inference_mode(False)
        inference.__enter__()
        self._undo = [lambda: inference.__exit__(None, None, None), *_compiled_parts_run_eagerly()]
        switches, random = SwitchState(), RandomState.of_everything(generators)
        modules = _ModuleStates(self._holders)
        first_values = self._start.values if self._start else {}
        tensors = _StandIns([*modules.tensors(), *self._captured], self._dtype, first_values)
        self._undo += [switches.restore, random.restore, modules.restore, tensors.swap_back]
        tensors.swap_in()
        switches.settle(self._dtype, coordinates=sum(parameter.numel() for parameter in self._model.parameters()))
        if self._mode != "keep":
            self._model.train(self._mode == "train")
        if self._start is None:
            seed_everything(self._seed)
        else:
            self._start.random.restore()
        return Borrowed(tensors, modules, generators)

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

    def __init__(
        self,
        tensors: Sequence[torch.Tensor],
        dtype: torch.dtype | None,
        values: Mapping[torch.Tensor, torch.Tensor],
    ) -> None:
        self._tensors = [tensor for tensor in dict.fromkeys(tensors) if _can_stand_in(tensor)]
        with torch.no_grad():
            self._others = [_stand_in(tensor, values.get(tensor, tensor), dtype) for tensor in self._tensors]
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


def _stand_in(tensor: torch.Tensor, value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    copy = value.detach().to(in_precision(tensor.dtype, dtype), copy=True)
    return copy.requires_grad_(tensor.requires_grad)


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


class _ModuleStates:
    """The attributes of modules (flags, buffers' and parameters' names, hooks, whatever they keep), shallowly.

    Containers among the attributes are remembered by their content too: `self.history.append(...)` is undone.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._attributes = [(module, dict(vars(module))) for module in modules]
        held = [value for _, attributes in self._attributes for value in attributes.values()]
        self._contents = [(value, _content(value)) for value in held if isinstance(value, CONTAINERS)]
        dicts = [vars(module) for module in modules] + [value for value in held if isinstance(value, dict)]
        self._tensor_names = [
            (names, name, value) for names in dicts for name, value in names.items() if isinstance(value, torch.Tensor)
        ]

    def tensors(self) -> list[torch.Tensor]:
        """Parameters, buffers, and tensors kept as plain attributes or one container deep."""
        found = []
        for _, attributes in self._attributes:
            for value in attributes.values():
                inside = value.values() if isinstance(value, dict) else value
                candidates = inside if isinstance(value, (*CONTAINERS, tuple)) else (value,)
                found += [candidate for candidate in candidates if isinstance(candidate, torch.Tensor)]
        return found

    def restore(self) -> None:
        for module, attributes in self._attributes:
            if not _same_items(vars(module), attributes):
                _refill(vars(module), attributes)
        for container, content in self._contents:
            if not _same_items(container, content):
                _refill(container, content)

    def rewind_tensors(self) -> None:
        """Attributes and registered names that held a tensor hold that same tensor again."""
        for names, name, tensor in self._tensor_names:
            if names.get(name) is not tensor:
                names[name] = tensor


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


def _compiled_parts_run_eagerly() -> list[Callable[[], None]]:
    """What torch.compile has compiled would be compiled again, with the check's own modes in it; the way back."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes two seconds
        return []
    stance = torch.compiler.set_stance("force_eager")
    return [lambda: stance.__exit__(None, None, None)]


def _check_buffers(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise InvalidRequestError(
                f"buffer {name!r} is on the meta device and holds no numbers: materialise the model first."
            )
