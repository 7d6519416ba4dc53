"""The record of one evaluation of J: operations on numbered values, each value written once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from torch_gradcheck.engines.traced.untraceable import Strayed


class Ref(NamedTuple):
    """Stands for a numbered value among the arguments of an operation."""

    id: int


class Guard:
    """Stands among the operations for a value that J has read: where it is another than at θ, the record is not J.

    Args:
        reader: the name of the operation that took the value to Python.
        slack: by how much of itself the value may differ.
    """

    def __init__(self, reader: str, slack: float = 0.0) -> None:
        self.__name__ = reader
        self._slack = slack

    def __call__(self, _: Tensor) -> tuple[()]:
        """It makes no value."""
        return ()

    def differs(self, found: Tensor, at_theta: Tensor) -> Tensor:
        """Where a value is another than at θ, entry by entry."""
        if not self._slack:
            return found != at_theta
        return ~((found - at_theta).abs() <= self._slack * at_theta.abs())


@dataclass(frozen=True, slots=True)
class Operation:
    """One call: `outputs[i]` is the number given to the i-th tensor it returns.

    Attributes:
        func: an overload of aten, or a function of the tape's own; either is free of side effects. Or a `Guard`.
        args, kwargs: the arguments, with a `Ref` in the place of every tensor.
        outputs: a number for every tensor that it returns.
        module: the innermost module that was running.
        frozen: the results at θ of a random draw whose law depends on a parameter; None of any other operation.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    module: nn.Module | None = None
    frozen: tuple[Tensor, ...] | None = None

    @property
    def name(self) -> str:
        """The name of the operation, for messages."""
        return str(getattr(self.func, "__name__", self.func))

    @property
    def is_guard(self) -> bool:
        """Whether it makes no value, and says where the record holds."""
        return isinstance(self.func, Guard)

    def strayed(self, where: str) -> Strayed:
        """The answer "this guard does not hold" at a point that `where` describes."""
        return Strayed(f"{self.name} takes another value to Python {where}", op=self.name, module=self.module)

    def inputs(self) -> Iterator[int]:
        """Numbers of the values that this operation reads."""
        return refs((self.args, tuple(self.kwargs.values())))


@dataclass(slots=True)
class Tape:
    """Operations in the order in which they ran, and the values that no operation made.

    Attributes:
        operations: the operations, in order.
        constants: number → a value that no operation made: a parameter, a buffer, the batch, random numbers.
        depends: whether the value with this number depends on some parameter.
    """

    operations: list[Operation] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    depends: list[bool] = field(default_factory=list)

    def constant(self, tensor: Tensor, depends: bool = False) -> int:
        """Number a value that no operation made."""
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
        """Add one operation with `count` results; gives their numbers."""
        kwargs = kwargs or {}
        depends = any(self.depends[i] for i in refs((args, tuple(kwargs.values()))))
        outputs = tuple(self._number(depends) for _ in range(count))
        self.operations.append(Operation(func, args, kwargs, outputs, module, frozen))
        return outputs

    def guard(self, number: int, reader: str, module: nn.Module | None, slack: float = 0.0) -> None:
        """Have the record hold only where a value is what it is at θ.

        Args:
            number: of the value.
            reader: the name of the operation that took it to Python.
            module: the innermost module that was running.
            slack: by how much of itself the value may differ.
        """
        if self.depends[number]:
            self.operations.append(Operation(Guard(reader, slack), (Ref(number),), {}, (), module))

    def _number(self, depends: bool) -> int:
        self.depends.append(depends)
        return len(self.depends) - 1


def refs(tree: Any) -> Iterator[int]:
    """Numbers of all `Ref`s in nested tuples and lists."""
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
