"""The eager engine with a memory: modules upstream of the perturbed parameter are not run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.module_calls import (
    Call,
    Calling,
    KnownModule,
    ModuleCall,
    known_modules,
    rest_of,
    settings_now,
)
from torch_gradcheck.objective.nested import rebuilt, tensors_in
from torch_gradcheck.torch_internals.tensors import storage_key
from torch_gradcheck.torch_internals.transforms import is_wrapped

COMPARED = 2
"""Samples of every parameter that are taken with and without the memory before it is trusted."""

WORTHWHILE = 0.5
"""A module answers from memory if it can in half of its calls: a look-up takes as long as many a module runs."""

GLANCED = 8
"""Entries of a tensor that calls are looked up by; only calls in which these agree are compared as a whole."""


class MemoizedEngine:
    """Evaluates any J that runs without autograd, and answers calls upstream of the perturbed parameter from memory.

    A module is skipped where that provably changes nothing: its calls leave nothing behind but their output
    (`known_modules`), it does not get at the perturbed parameter, and its arguments, the settings of torch and all else
    that it reaches are what they were in a call at θ. `COMPARED` samples of each parameter, taken both ways, are a
    second guard. Where an exception is raised with the memory, the samples are taken without it, and so are all later
    ones of that parameter.

    Args:
        eager: evaluates J.
        model: holds the modules that J calls.
        value: J as a float.
        parameters: the tensors that J reads.
    """

    def __init__(
        self, eager: EagerEngine, model: nn.Module, value: Callable[[], float], parameters: list[torch.Tensor]
    ) -> None:
        self._eager, self._parameters = eager, parameters
        self._modules, self._value = list(model.modules()), value
        self._known: dict[nn.Module, KnownModule] | None = None
        self._answering: dict[int, list[nn.Module]] = {}  # by parameter; none where the memory cannot be trusted

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        if parameter in self._answering:
            return self._from_memory(parameter, coordinates, steps)
        if not len(steps):
            return self._eager.sample(parameter, coordinates, steps)
        first = self._first(parameter, coordinates[:COMPARED], steps[:COMPARED])
        rest = self.sample(parameter, coordinates[COMPARED:], steps[COMPARED:])
        return Samples(*(np.concatenate(pair) for pair in zip(first, rest, strict=True)))

    def _first(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """Samples taken both ways, which tell whether the memory can be trusted, and which modules have use of it."""
        perturbed, answered = storage_key(self._parameters[parameter]), Counter[nn.Module]()
        known = self._modules_known()
        candidates = [module for module in known if perturbed not in known[module].memory]
        self._answering[parameter] = candidates
        found = self._from_memory(parameter, coordinates, steps, answered)
        expected = self._eager.sample(parameter, coordinates, steps)
        same = (expected.values == found.values) | (expected.values != expected.values)
        often = {module: WORTHWHILE * len(steps) * len(known[module].calls) for module in candidates}
        trusted = [module for module in self._answering[parameter] if answered[module] >= often[module]]
        self._answering[parameter] = trusted if same.all() else []
        return expected

    def _modules_known(self) -> dict[nn.Module, KnownModule]:
        """The modules that can be skipped; none where J cannot be recorded."""
        if self._known is None:
            try:
                self._known = known_modules(self._modules, self._value)
            except Exception:  # of the user's own code, which is not used to being watched
                self._known = {}
        return self._known

    def _from_memory(
        self, parameter: int, coordinates: Indices, steps: Floats, answered: Counter[nn.Module] | None = None
    ) -> Samples:
        """Samples in which modules answer known calls from memory; `answered` counts how often each does."""
        modules = self._answering[parameter]
        if modules:
            memory = _Memory(self._modules_known(), modules, Counter() if answered is None else answered)
            try:
                with Calling(memory.call):
                    return self._eager.sample(parameter, coordinates, steps)
            except Exception:  # J itself may raise it too, and then raises it once more
                self._answering[parameter] = []
        return self._eager.sample(parameter, coordinates, steps)


class _Memory:
    """Answers the calls of some modules that are known from θ; all others run.

    Args:
        known: what is known of each module.
        modules: those that answer.
        answered: counts how often each does.
    """

    def __init__(
        self, known: dict[nn.Module, KnownModule], modules: Sequence[nn.Module], answered: Counter[nn.Module]
    ) -> None:
        self._known, self._answered = {module: known[module] for module in modules}, answered
        self._by_glance: dict[nn.Module, dict[Hashable, list[ModuleCall]]] = {module: {} for module in modules}
        for module, calls in self._by_glance.items():
            for call in known[module].calls:
                calls.setdefault(_glance([tensor for _, tensor in call.given]), []).append(call)

    def call(self, run: Call, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What takes the place of a call; for `Calling`."""
        call = self._known_call(module, args, kwargs) if module in self._known else None
        if call is None:
            return run(module, *args, **kwargs)
        self._answered[module] += 1
        return call.output.clone() if type(call.output) is torch.Tensor else rebuilt(call.output, torch.Tensor.clone)

    def _known_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ModuleCall | None:
        """The call at θ that a call with these arguments repeats; None where it is another one."""
        settings, tensors = settings_now(), tensors_in((args, kwargs))
        calls = self._known[module].calls
        if len(calls) > 1:
            calls = self._by_glance[module].get(_glance([tensor for _, tensor in tensors]), [])
        for call in calls:
            same = (
                call.settings == settings and _are_equal(tensors, call.given) and rest_of((args, kwargs)) == call.rest
            )
            if same and self._known[module].reach.is_as_before():
                return call
        return None


def _are_equal(given: list[tuple[str, torch.Tensor]], known: list[tuple[str, torch.Tensor]]) -> bool:
    """Whether two calls are given equal values at equal paths."""
    if len(given) != len(known):
        return False
    for (path, tensor), (at_path, value) in zip(given, known, strict=True):
        if path != at_path or not _equal(tensor, value):
            return False
    return True


def _glance(tensors: Iterable[torch.Tensor]) -> Hashable:
    """What equal arguments have in common, to look a call up by: a cell in a loop has as many calls as steps."""
    return tuple([_few_entries(tensor) for tensor in tensors])


def _few_entries(tensor: torch.Tensor) -> Hashable:
    if is_wrapped(tensor) or tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return tuple(tensor.shape)
    if not tensor.is_contiguous():
        return tensor.detach()[tuple([size // 2 for size in tensor.shape])].item()
    return tuple(tensor.detach().view(-1)[:: -(-tensor.numel() // GLANCED)].tolist())


BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
"""Integers that are equal where the bits of floating numbers are: those of the zeros +0 and -0 are not."""


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same bits in the same layout."""
    if one.shape != other.shape or one.dtype != other.dtype or one.stride() != other.stride():
        return False
    if one.dtype not in BITS:
        return not one.is_complex() and torch.equal(one, other)
    return torch.equal(one.detach().view(BITS[one.dtype]), other.view(BITS[one.dtype]))
