"""The parts of a computation that torch.compile was given: what they are called, and what compiles them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.code_lines import defining_line
from torch_gradcheck.torch_internals.compiler import CompiledCall
from torch_gradcheck.torch_internals.modules import named_modules


@dataclass(frozen=True)
class CompiledPart:
    """A part of J that torch.compile was given.

    Attributes:
        name: of the module that was compiled; of a function, the module whose forward calls it, or see `LossWords`.
        words: what it is, for sentences.
        backend: the name of the backend.
        key: see `CompiledCall.key`.
        module: the module that was compiled; None for a function.
    """

    name: str
    words: str
    backend: str
    key: int
    module: nn.Module | None = field(compare=False, default=None)


class MetParts:
    """The parts of a model and of what calls it, in the order in which calls of them are met.

    Args:
        model: its modules have names.
        outside: the name of what is called outside of all modules.
    """

    def __init__(self, model: nn.Module, outside: str) -> None:
        self._names = {id(module): name for name, module in named_modules(model)}
        self._outside = outside
        self._met: dict[int, CompiledPart] = {}

    def meet(self, call: CompiledCall) -> None:
        """Takes in the part that is called."""
        if call.key not in self._met:
            self._met[call.key] = self._part(call)

    def __iter__(self) -> Iterator[CompiledPart]:
        return iter(self._met.values())

    def __len__(self) -> int:
        return len(self._met)

    def _part(self, call: CompiledCall) -> CompiledPart:
        if call.module is not None and id(call.module) in self._names:
            name = self._names[id(call.module)]
            words = f"{name or 'the model itself'} ({type(call.module).__name__})"
        else:
            name = self._names.get(id(call.caller), self._outside)
            words = f"{_described(call)}, called in {name or 'the model itself'}"
        return CompiledPart(name, words, call.backend, call.key, call.module)


def with_backends(parts: Sequence[CompiledPart]) -> str:
    """The parts in words, with what compiles them: "first (Inner) and second (Inner) by inductor"."""
    by_backend: dict[str, list[str]] = {}
    for part in parts:
        by_backend.setdefault(part.backend, []).append(part.words)
    return "; ".join(f"{listed(words)} by {backend}" for backend, words in by_backend.items())


def _described(call: CompiledCall) -> str:
    """The words for what is no module of the model."""
    if call.module is not None:
        return f"a {type(call.module).__name__}"
    line = defining_line(call.function)
    name = getattr(call.function, "__name__", type(call.function).__name__)
    return f"the function {name}{f' ({line})' if line else ''}"
