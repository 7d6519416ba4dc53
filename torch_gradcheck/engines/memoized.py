"""The plain engine with a memory: modules that the moved coordinate cannot reach are not run again."""

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

PROBES = 2
"""Samples of every parameter that are taken both ways before the memory is trusted."""


PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, slice)

UNKNOWN = object()


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module at θ.

    Attributes:
        given: the tensors of its arguments, with the path to each, and their versions.
        rest: what stood among its arguments beside tensors.
        output: what it gave.
        versions: of the tensors in the output; one that was written to afterwards is no longer what was given.
    """

    given: list[tuple[str, torch.Tensor, int]]
    rest: Any
    output: Any
    versions: list[int]

    @property
    def is_intact(self) -> bool:
        """Whether nobody has written to what came in and what went out."""
        now = [tensor._version for _, tensor in tensors_in(self.output)]
        return now == self.versions and all(tensor._version == version for _, tensor, version in self.given)

    def is_of(self, arguments: Any) -> bool:
        """Whether a call with these arguments is the same call: equal numbers in equal places."""
        tensors = tensors_in(arguments)
        if len(tensors) != len(self.given) or _rest(arguments) != self.rest:
            return False
        pairs = zip(tensors, self.given, strict=True)
        return all(path == known and _equal(tensor, value) for (path, tensor), (known, value, _) in pairs)


class MemoizedEngine:
    """Evaluates any J that runs without autograd, and answers calls upstream of the moved parameter from memory.

    A module is a function of its arguments where it holds no moved parameter, draws nothing at random and is not
    training a statistic; calls of such modules whose arguments are those of θ, number by number, give what they gave
    at θ. Whoever reads parameters of others behind the back of all this is found out by `PROBES` samples.

    Args:
        plain: evaluates J.
        model: the modules that J calls.
        value: J(θ).
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
                first = self._eager.sample(parameter, coordinates[:PROBES], steps[:PROBES])
                same = (first.values == samples.values[:PROBES]) | (first.values != first.values)
                self._trusted[parameter] = bool(same.all())
            if self._trusted.get(parameter, True):
                return samples
        return self._eager.sample(parameter, coordinates, steps)

    def _answer(self, parameter: int, stack: ExitStack) -> None:
        """Until `stack` ends, modules without the parameter answer calls that they know."""
        if self._calls is None:
            self._calls = calls_at_theta(self._modules, self._value)
        moved = self._parameters[parameter]
        for module, calls in self._calls.items():
            if not any(held is moved for held in module.parameters()):
                stack.callback(_replaced(module, answering_from_memory(module.forward, calls)))


def calls_at_theta(modules: list[nn.Module], value: Callable[[], float]) -> dict[nn.Module, list[ModuleCall]]:
    """The calls at θ of every module that is a function of its arguments."""
    calls: dict[nn.Module, list[ModuleCall]] = {module: [] for module in modules}
    impure: set[nn.Module] = set()

    def recording(module: nn.Module) -> Callable[..., Any]:
        forward = module.forward

        def record(*args: Any, **kwargs: Any) -> Any:
            random = RandomState.of_everything()
            given = [(path, tensor, tensor._version) for path, tensor in tensors_in((args, kwargs))]
            output = forward(*args, **kwargs)
            versions = [tensor._version for _, tensor in tensors_in(output)]
            calls[module].append(ModuleCall(given, _rest((args, kwargs)), output, versions))
            if random.has_moved() or not versions or calls[module][-1].rest is UNKNOWN:
                impure.add(module)
            return output

        return record

    with ExitStack() as stack:
        for module in modules:
            stack.callback(_replaced(module, recording(module)))
        value()
    pure = [module for module in modules if calls[module] and module not in impure and not _trains(module)]
    return {module: calls[module] for module in pure if all(call.is_intact for call in calls[module])}


def answering_from_memory(forward: Callable[..., Any], calls: list[ModuleCall]) -> Callable[..., Any]:
    """`forward`, asked only for what is not among the known calls."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        for call in calls:
            if call.is_of((args, kwargs)) and call.is_intact:
                return call.output
        return forward(*args, **kwargs)

    return answer


def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Gives a module another forward; returns what takes it away again."""
    own = vars(module).get("forward")
    module.forward = forward

    def put_back() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return put_back


def _trains(module: nn.Module) -> bool:
    """Whether its calls may update a statistic."""
    return any(part.training and next(part.buffers(recurse=False), None) is not None for part in module.modules())


def _rest(value: Any) -> Any:
    """What stands among nested arguments beside tensors, to compare by ==; `UNKNOWN` where that is no plain value."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, tuple | list):
        return _all_known([_rest(item) for item in value])
    if isinstance(value, dict):
        return _all_known([*value, *(_rest(item) for item in value.values())])
    return value if isinstance(value, PLAIN) else UNKNOWN


def _all_known(rests: list[Any]) -> Any:
    return UNKNOWN if any(rest is UNKNOWN for rest in rests) else rests


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
