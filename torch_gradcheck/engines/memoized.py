"""The eager engine with a memory: modules upstream of the perturbed parameter are not run again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

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
        self._trusted: dict[int, bool] = {}

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        if self._trusted.get(parameter, True):
            with ExitStack() as stack:
                self._answer(parameter, stack)
                samples = self._eager.sample(parameter, coordinates, steps)
            if parameter not in self._trusted and len(steps):
                first = self._eager.sample(parameter, coordinates[:COMPARED], steps[:COMPARED])
                same = (first.values == samples.values[:COMPARED]) | (first.values != first.values)
                self._trusted[parameter] = bool(same.all())
            if self._trusted.get(parameter, True):
                return samples
        return self._eager.sample(parameter, coordinates, steps)

    def _answer(self, parameter: int, stack: ExitStack) -> None:
        """Until `stack` ends, modules without the parameter answer known calls from memory."""
        if self._calls is None:
            self._calls = calls_at_theta(self._modules, self._value)
        perturbed = self._parameters[parameter]
        for module, calls in self._calls.items():
            if not any(own is perturbed for own in module.parameters()):
                stack.callback(_replaced(module, answering_from_memory(module.forward, calls)))


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


def answering_from_memory(forward: Callable[..., Any], calls: list[ModuleCall]) -> Callable[..., Any]:
    """`forward`, which runs only for calls that are not among the known ones."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        for call in calls:
            if call.is_of((args, kwargs)) and call.is_intact:
                return call.output
        return forward(*args, **kwargs)

    return answer


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
