"""The calls of modules in one evaluation of J at θ: of those whose calls leave nothing behind but their output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.borrowing.reach import Reach, is_ordinary
from torch_gradcheck.borrowing.reached_code import Reaches
from torch_gradcheck.objective.nested import PLAIN, rebuilt, tensors_in
from torch_gradcheck.torch_internals.dispatch import (
    DispatchMode,
    current_modes,
    dispatch_modes_in_force,
    function_modes_in_force,
    transforms_in_force,
)
from torch_gradcheck.torch_internals.functional_forms import mutated_arguments
from torch_gradcheck.torch_internals.modules import Calls, current_calls, has_hooks_on_all_modules, set_calls
from torch_gradcheck.torch_internals.operations import OpOverload
from torch_gradcheck.torch_internals.tensors import storage_key, version_of

MEMORY_LIMIT = 2**30
"""Limit on the copies of arguments and outputs, in bytes (1 GiB); modules that are called later are not remembered."""

COMPARABLE_TYPES = (*PLAIN, slice)
"""Types of arguments that == compares by content."""

CONTAINERS = (tuple, list, dict)
"""Types of outputs that can be given anew, with the same tensors."""

UNKNOWN = object()
"""Stands for arguments of any other type."""

Call = Callable[..., Any]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module at θ.

    Attributes:
        given: path and copy of every tensor among its arguments.
        rest: its arguments beside tensors, see `rest_of`.
        settings: those of torch at the call, see `settings_now`.
        output: what it returned, all tensors copied.
        memory: the `storage_key` of every tensor among its arguments.
    """

    given: list[tuple[str, torch.Tensor]]
    rest: Any
    settings: tuple[Any, ...]
    output: Any
    memory: frozenset[int]


@dataclass(frozen=True)
class KnownModule:
    """A module whose calls leave nothing behind but their output.

    Attributes:
        reach: what else its code can get at.
        memory: the `storage_key` of all tensors that it reads, those of its arguments included.
        calls: those of one evaluation, in order.
    """

    reach: Reach
    memory: frozenset[int]
    calls: list[ModuleCall]


class Calling:
    """Inside the block, `instead(run, module, args, kwargs)` takes the place of every call of a module.

    A class and not a generator, which an interrupt could leave suspended.

    Args:
        instead: may call `run(module, *args, **kwargs)`, as would have been done without it.
    """

    def __init__(self, instead: Callable[[Call, nn.Module, tuple[Any, ...], dict[str, Any]], Any]) -> None:
        self._instead = instead
        self._before: Calls | None = None

    def __enter__(self) -> None:
        self._before = calls = current_calls()

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._instead(calls.module, module, args, kwargs)

        set_calls(Calls(call, calls.function))

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            set_calls(self._before)


def known_modules(modules: Iterable[nn.Module], value: Callable[[], float]) -> dict[nn.Module, KnownModule]:
    """The modules whose calls can be answered from memory, with their calls at θ.

    It is all one to the rest of J whether such a module runs: it writes to nothing that it reaches, draws no random
    numbers, has no hooks, and returns new tensors. And all that it reaches besides its arguments stays what it is.

    Args:
        modules: those that J may call.
        value: J(θ), from the same state each time; evaluated twice.
    """
    if has_hooks_on_all_modules():
        return {}
    reaches = Reaches(modules)
    with WrittenMemory() as written:
        value()
    reaches.learn_tallies()
    recording = _Recording(
        {module: reach for module, reach in reaches.known.items() if not reach.storages & written.storages}
    )
    with Calling(recording.call):
        value()
    return recording.known()


class WrittenMemory(DispatchMode):
    """Notes the memory that operations write to, by whatever view; also where no version counter tells of it."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        written = mutated_arguments(func, args, dict(kwargs or {})) if isinstance(func, OpOverload) else []
        if "batch_norm" in str(func) and True in [each for each in args if isinstance(each, bool)]:
            written += [each for each in args if isinstance(each, torch.Tensor)]  # its schema does not say so
        self.storages |= {storage_key(each) for each in written if each.layout is torch.strided and not each.is_meta}
        return func(*args, **(kwargs or {}))


class _Recording:
    """Records the calls of modules, and drops those modules of which a call has, or may have, left something behind."""

    def __init__(self, reaches: dict[nn.Module, Reach]) -> None:
        self._reaches = reaches
        self._calls: dict[nn.Module, list[ModuleCall]] = {module: [] for module in reaches}
        self._thread, self._bytes = threading.get_ident(), 0
        self._modes, self._function_modes = len(current_modes()), function_modes_in_force()

    def known(self) -> dict[nn.Module, KnownModule]:
        """The modules that are left, and were called."""
        found = {}
        for module, calls in self._calls.items():
            memory = self._reaches[module].storages.union(*[call.memory for call in calls])
            if calls:
                found[module] = KnownModule(self._reaches[module], frozenset(memory), calls)
        return found

    def call(self, run: Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What takes the place of a call; for `Calling`."""
        if module not in self._calls:
            return run(module, *args, **kwargs)
        noted = self._before(module, args, kwargs)
        if noted is None:
            self._calls.pop(module, None)
            return run(module, *args, **kwargs)
        output = run(module, *args, **kwargs)
        call = self._after(module, noted, args, kwargs, output)
        if call is None:
            self._calls.pop(module, None)
        elif module in self._calls:
            self._calls[module].append(call)
        return output

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> _Begun | None:
        """What is known of a call that begins; None where it is none that could be answered."""
        tensors = tensors_in((args, kwargs))
        if not self._is_undisturbed() or not all(map(_is_plain, [each for _, each in tensors])):
            return None
        if rest_of((args, kwargs)) is UNKNOWN or not self._reaches[module].is_as_before():
            return None
        self._bytes += sum([each.numel() * each.element_size() for _, each in tensors])
        return _Begun(
            [(path, each.detach().clone()) for path, each in tensors],
            [(each, version_of(each), each.requires_grad) for _, each in tensors],
            rest_of((args, kwargs)),
            settings_now(),
            RandomState.of_everything(),
        )

    def _after(self, module: nn.Module, begun: _Begun, args: Any, kwargs: Any, output: Any) -> ModuleCall | None:
        """The call that has ended; None where it left something behind, or its output cannot be given a second time."""
        made = [each for _, each in tensors_in(output)]
        copies = [each.detach().clone() for each in made if _is_plain(each)]
        self._bytes += sum([each.numel() * each.element_size() for each in copies])
        if begun.random.has_moved() or settings_now() != begun.settings or self._bytes > MEMORY_LIMIT:
            return None
        if not self._reaches[module].is_as_before() or not begun.is_unchanged(args, kwargs):
            return None
        read = {storage_key(each) for each, _, _ in begun.tensors} | self._reaches[module].storages
        if len(copies) != len(made) or not made or not _are_new(made, copies, read) or not _can_be_given(output):
            return None
        again = iter(copies)
        memory = frozenset([storage_key(each) for each, _, _ in begun.tensors])
        return ModuleCall(begun.given, begun.rest, begun.settings, rebuilt(output, lambda _: next(again)), memory)

    def _is_undisturbed(self) -> bool:
        """Whether J calls the module in this thread, in no mode of its own, and under no transform."""
        foreign = [mode for mode in current_modes()[self._modes :] if not isinstance(mode, DispatchMode)]
        return (
            threading.get_ident() == self._thread
            and not foreign
            and function_modes_in_force() == self._function_modes
            and not transforms_in_force()
        )


@dataclass(frozen=True)
class _Begun:
    """What is known of a call when it begins.

    Attributes:
        given, rest, settings: as in `ModuleCall`.
        tensors: among the arguments, with their versions, and whether they require a gradient.
        random: the state of all generators.
    """

    given: list[tuple[str, torch.Tensor]]
    tensors: list[tuple[torch.Tensor, int, bool]]
    rest: Any
    settings: tuple[Any, ...]
    random: RandomState

    def is_unchanged(self, args: Any, kwargs: Any) -> bool:
        """Whether the arguments are what they were."""
        now = [each for _, each in tensors_in((args, kwargs))]
        if len(now) != len(self.tensors) or rest_of((args, kwargs)) != self.rest:
            return False
        pairs = zip(now, self.tensors, strict=True)
        return False not in [one is each and version_of(one) == version for one, (each, version, _) in pairs]


def settings_now() -> tuple[Any, ...]:
    """The settings of torch on which the output of a module may depend."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        dispatch_modes_in_force(),
        function_modes_in_force(),
        transforms_in_force(),
    )


def rest_of(value: Any) -> Any:
    """Nested arguments without their tensors, to compare by ==; `UNKNOWN` where a type is not comparable."""
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if type(value) in (tuple, list):
        return _all_known([type(value), *[rest_of(item) for item in value]])
    if type(value) is dict:
        return _all_known([*value, *[rest_of(item) for item in value.values()]])
    return (type(value), value) if type(value) in COMPARABLE_TYPES else UNKNOWN


def _all_known(rests: list[Any]) -> Any:
    return UNKNOWN if UNKNOWN in rests else rests


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is its numbers and nothing else."""
    return is_ordinary(tensor) and not vars(tensor)


def _are_new(made: list[torch.Tensor], copies: list[torch.Tensor], read: set[int]) -> bool:
    """Whether tensors were made by the call, each apart, without a graph, and as copies of them would be."""
    keys = {storage_key(each) for each in made}
    apart = len(keys) == len(made) and not keys & read
    pairs = zip(made, copies, strict=True)
    return apart and False not in [
        type(each) is torch.Tensor and not each.requires_grad and each.stride() == copy.stride() for each, copy in pairs
    ]


def _can_be_given(output: Any) -> bool:
    """Whether an output consists of tensors, plain values and containers of them, which can be made anew."""
    if isinstance(output, torch.Tensor) or type(output) in PLAIN:
        return True
    if type(output) is dict:
        return all(map(_can_be_given, (*output, *output.values())))
    return type(output) in CONTAINERS and all(map(_can_be_given, output))
