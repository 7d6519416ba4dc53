"""The eager engine with a memory: modules upstream of the perturbed parameter are not run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.torch_internals.tensors import version_of

COMPARED = 2
"""Samples of every parameter that are taken with and without the memory before it is trusted."""

COMPARABLE_TYPES = (bool, int, float, str, type(None), torch.dtype, torch.device, slice)
"""Types of arguments that == compares by content."""

WORTHWHILE = 0.5
"""A module answers from memory if it can in half of its calls: a look-up takes as long as many a module runs."""

GLANCED = 8
"""Entries of a tensor that calls are looked up by; only calls in which these agree are compared as a whole."""

UNKNOWN = object()
"""Stands for arguments of any other type."""


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module at θ.

    Attributes:
        given: path, tensor and version of every tensor among its arguments.
        rest: its arguments beside tensors, see `_rest`.
        output: the module's output.
        versions: the versions of the tensors in the output. A later write to one of them changes its version.
    """

    given: list[tuple[str, torch.Tensor, int]]
    rest: Any
    output: Any
    versions: list[int]

    @property
    def is_intact(self) -> bool:
        """Whether arguments and output hold what they held at the call."""
        now = [version_of(tensor) for _, tensor in tensors_in(self.output)]
        return now == self.versions and all(version_of(tensor) == version for _, tensor, version in self.given)

    def is_of(self, arguments: Any) -> bool:
        """Whether a call with these arguments is the same call: equal values at equal paths."""
        tensors = tensors_in(arguments)
        if len(tensors) != len(self.given) or _rest(arguments) != self.rest:
            return False
        pairs = zip(tensors, self.given, strict=True)
        return all(path == known and _equal(tensor, value) for (path, tensor), (known, value, _) in pairs)


class MemoizedEngine:
    """Evaluates any J that runs without autograd, and answers calls upstream of the perturbed parameter from memory.

    A module is a function of its arguments if it does not hold the perturbed parameter, draws no random numbers and
    trains no statistic. If the arguments of such a module equal those at θ, so does its output. A module that reads the
    parameters of another one is no such function: `COMPARED` samples, taken both ways, reveal it.

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
        self._modules = list(model.modules())
        self._calls: dict[nn.Module, list[ModuleCall]] | None = None
        self._value = value
        self._answering: dict[int, list[nn.Module]] = {}  # by parameter; none where the memory cannot be trusted

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        if parameter in self._answering:
            return self._from_memory(parameter, self._answering[parameter], coordinates, steps)
        if not len(steps):
            return self._eager.sample(parameter, coordinates, steps)
        first = self._first(parameter, coordinates[:COMPARED], steps[:COMPARED])
        rest = self.sample(parameter, coordinates[COMPARED:], steps[COMPARED:])
        return Samples(*(np.concatenate(pair) for pair in zip(first, rest, strict=True)))

    def _first(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """Samples taken both ways, which tell whether the memory can be trusted, and which modules have use of it."""
        if self._calls is None:
            self._calls = calls_at_theta(self._modules, self._value)
        perturbed, answered = self._parameters[parameter], Counter[nn.Module]()
        candidates = [m for m in self._calls if not any(own is perturbed for own in m.parameters())]
        found = self._from_memory(parameter, candidates, coordinates, steps, answered)
        expected = self._eager.sample(parameter, coordinates, steps)
        same = (expected.values == found.values) | (expected.values != expected.values)
        often = {module: WORTHWHILE * len(steps) * len(self._calls[module]) for module in candidates}
        self._answering[parameter] = [m for m in candidates if same.all() and answered[m] >= often[m]]
        return expected

    def _from_memory(
        self,
        parameter: int,
        modules: Sequence[nn.Module],
        coordinates: Indices,
        steps: Floats,
        answered: Counter[nn.Module] | None = None,
    ) -> Samples:
        """Samples in which these modules answer known calls from memory; `answered` counts how often each does."""
        assert self._calls is not None
        counted = Counter[nn.Module]() if answered is None else answered
        with ExitStack() as stack:
            for module in modules:
                answer = answering_from_memory(module.forward, self._calls[module], partial(counted.update, (module,)))
                stack.callback(_replaced(module, answer))
            return self._eager.sample(parameter, coordinates, steps)


def calls_at_theta(modules: list[nn.Module], value: Callable[[], float]) -> dict[nn.Module, list[ModuleCall]]:
    """The calls of one evaluation of J, by module, of those modules that are functions of their arguments."""
    calls: dict[nn.Module, list[ModuleCall]] = {module: [] for module in modules}
    impure: set[nn.Module] = set()

    def noting_calls(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def note(*args: Any, **kwargs: Any) -> Any:
            random = RandomState.of_everything()
            given = [(path, tensor, version_of(tensor)) for path, tensor in tensors_in((args, kwargs))]
            output = forward(*args, **kwargs)
            versions = [version_of(tensor) for _, tensor in tensors_in(output)]
            calls[module].append(ModuleCall(given, _rest((args, kwargs)), output, versions))
            if random.has_moved() or not versions or calls[module][-1].rest is UNKNOWN:
                impure.add(module)
            return output

        return note

    with ExitStack() as stack:
        for module in modules:
            stack.callback(_replaced(module, noting_calls(module)))
        value()
    pure = [module for module in modules if calls[module] and module not in impure and not _trains(module)]
    return {module: calls[module] for module in pure if all(call.is_intact for call in calls[module])}


def answering_from_memory(
    forward: Callable[..., Any], calls: list[ModuleCall], answered: Callable[[], None]
) -> Callable[..., Any]:
    """`forward`, which runs only for calls that are not among the known ones; `answered` is told of the others."""
    known: dict[Hashable, list[ModuleCall]] = {}
    for call in calls:
        known.setdefault(_glance(tensor for _, tensor, _ in call.given), []).append(call)

    def answer(*args: Any, **kwargs: Any) -> Any:
        for call in known.get(_glance(tensor for _, tensor in tensors_in((args, kwargs))), ()):
            if call.is_of((args, kwargs)) and call.is_intact:
                answered()
                return call.output
        return forward(*args, **kwargs)

    return answer


def _glance(tensors: Iterable[torch.Tensor]) -> Hashable:
    """What equal arguments have in common, to look a call up by: a cell in a loop has as many calls as steps."""
    return tuple(_few_entries(tensor) for tensor in tensors)


def _few_entries(tensor: torch.Tensor) -> Hashable:
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return tuple(tensor.shape)
    if not tensor.is_contiguous():
        return tensor.detach()[tuple(size // 2 for size in tensor.shape)].item()
    return tuple(tensor.detach().view(-1)[:: -(-tensor.numel() // GLANCED)].tolist())


def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Give a module another forward; calling the result puts its own back."""
    own = vars(module).get("forward")
    module.forward = forward

    def put_back() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return put_back


def _trains(module: nn.Module) -> bool:
    """Whether a call of this module may update a statistic."""
    return any(part.training and next(part.buffers(recurse=False), None) is not None for part in module.modules())


def _rest(value: Any) -> Any:
    """Nested arguments without their tensors, to compare by ==; `UNKNOWN` where a type is not comparable."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, tuple | list):
        return _all_known([_rest(item) for item in value])
    if isinstance(value, dict):
        return _all_known([*value, *(_rest(item) for item in value.values())])
    return value if isinstance(value, COMPARABLE_TYPES) else UNKNOWN


def _all_known(rests: list[Any]) -> Any:
    return UNKNOWN if any(rest is UNKNOWN for rest in rests) else rests


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
