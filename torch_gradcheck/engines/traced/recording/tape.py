"""The record of one evaluation of J: operations on numbered values, each value written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class Ref(NamedTuple):
    """Stands for a numbered value among the arguments of an operation."""

    id: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: `outputs[i]` is the number given to the i-th tensor it returns.

    Attributes:
        func: an aten overload, or a function of the tape's own, free of side effects.
        args, kwargs: what it is called with, tensors replaced by `Ref`s.
        outputs: a number for every tensor returned, None for what nobody reads.
        module: the innermost module running at the time.
        frozen: the results themselves, of a draw of random numbers whose law depends on a parameter.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    module: nn.Module | None = None
    frozen: tuple[Tensor, ...] | None = None

    @property
    def name(self) -> str:
        """What the operation is called, for messages."""
        return str(getattr(self.func, "__name__", self.func))

    def inputs(self) -> Iterator[int]:
        """Numbers of the values this operation reads."""
        return refs((self.args, tuple(self.kwargs.values())))


@dataclass(slots=True)
class Tape:
    """Operations in the order they ran, and the values that were there without one.

    Attributes:
        operations: in order.
        constants: values that no operation made: parameters, buffers, the batch, random numbers.
        depends: of every value, whether some parameter can move it.
    """

    operations: list[Operation] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    depends: list[bool] = field(default_factory=list)

    def constant(self, tensor: Tensor, depends: bool = False) -> int:
        """Number a value that is simply there."""
        number = self._number(depends)
        self.constants[number] = tensor.detach()
        return number

    def record(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        count: int = 1,
        module: nn.Module | None = None,
        frozen: tuple[Tensor, ...] | None = None,
    ) -> tuple[int, ...]:
        """Add one operation with `count` results and return their numbers."""
        kwargs = kwargs or {}
        depends = any(self.depends[i] for i in refs((args, tuple(kwargs.values()))))
        outputs = tuple(self._number(depends) for _ in range(count))
        self.operations.append(Operation(func, args, kwargs, outputs, module, frozen))
        return outputs

    def _number(self, depends: bool) -> int:
        self.depends.append(depends)
        return len(self.depends) - 1


def refs(tree: Any) -> Iterator[int]:
    """Numbers of all values referred to in nested tuples and lists."""
    if isinstance(tree, Ref):
        yield tree.id
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from refs(item)


def substitute(tree: Any, value: Callable[[int], Any]) -> Any:
    """The same nesting with every `Ref` replaced by value(number)."""
    if isinstance(tree, Ref):
        return value(tree.id)
    if type(tree) is tuple or type(tree) is list:
        return type(tree)(substitute(item, value) for item in tree)
    if type(tree) is dict:
        return {key: substitute(item, value) for key, item in tree.items()}
    return tree
