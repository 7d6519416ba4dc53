"""What a record makes of values that J takes out of torch, to decide by them: guards where they are discrete.

A Boolean, a count or an index comes out the same under most perturbations. The tape guards such a value: for every
perturbation it is computed again, and the record answers only where it is what it is at θ. From then on it is a
constant, and so is all that follows from it: the branch that is taken, the shape of a selection. A real number moves
with θ. One by itself is guarded as well, with some slack, if J only compares it (see `displaced`); more of them end the
recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from torch_gradcheck.engines.traced.recording.aliasing import AliasTracker
from torch_gradcheck.engines.traced.recording.displaced import SLACK
from torch_gradcheck.engines.traced.recording.tape import Ref
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.torch_internals.dispatch import modes_disabled
from torch_gradcheck.torch_internals.modules import running_module
from torch_gradcheck.torch_internals.operations import OpOverload, flatten, overload, overloads


def is_discrete(x: Tensor) -> bool:
    """Whether a tensor holds Booleans or integers."""
    return not (x.is_floating_point() or x.is_complex())


class Reads:
    """Guards the discrete values that J reads while it is recorded.

    Args:
        aliases: the tape and the values that its tensors hold.
        displacements: by how much of itself each real number that is read is displaced; 0 where none is given.

    Attributes:
        refusals: why each read of a real number would end the recording.
    """

    def __init__(self, aliases: AliasTracker, displacements: Sequence[float] = ()) -> None:
        self.refusals: list[Untraceable] = []
        self._aliases, self._displacements = aliases, displacements

    def number(self, func: OpOverload, x: Tensor) -> Any:
        """The only number of x for Python. A real one that depends on a parameter is guarded, and may be displaced.

        Raises:
            Untraceable: it is complex and depends on a parameter.
        """
        found = func(x)
        if not self._aliases.depends(x):
            return found
        refusal = Untraceable(f"{func} {_AS_NUMBER} {_TAKES}", op=str(func), module=running_module())
        if is_discrete(x):
            self.guard(x, str(func), "")
            return found
        if x.is_complex():
            raise refusal
        self._aliases.tape.guard(self._aliases.value(x), str(func), running_module(), SLACK)
        self.refusals.append(refusal)
        position = len(self.refusals) - 1
        return found * (1 + self._displacements[position]) if position < len(self._displacements) else found

    def guard_reads_of(self, func: OpOverload, args: tuple[Any, ...]) -> bool:
        """Guard what an operation on values that depend on a parameter takes out of torch.

        Returns:
            Whether its results can depend on a parameter where the guards hold.

        Raises:
            Untraceable: it reads a real number, or changes the memory under a tensor.
        """
        if func in _RESIZES:
            raise Untraceable(f"{func} changes the memory under a tensor", op=str(func), module=running_module())
        if func in _EQUALITIES:
            self._compared(func, args)
        elif torch.Tag.data_dependent_output in func.tags:
            self.guard(args[0], str(func), f"{func} {_AS_NUMBER} {_TAKES}")
        elif func is _NONZERO and not is_discrete(args[0]):
            self._guard_number(self._derived("ne.Scalar", Ref(self._aliases.value(args[0])), 0), str(func))
        elif torch.Tag.dynamic_output_shape in func.tags:
            for x in _deciding(func, args):
                self.guard(x, str(func), f"{func} has a shape that depends on values which depend on a parameter")
            return func is not _NONZERO
        else:
            return True
        return False

    def guard(self, x: Tensor, reader: str, reason: str) -> None:
        """Have the record hold only where x is what it is at θ; x is a constant of the record from now on.

        Args:
            x: what is read.
            reader: the name of the operation that reads it.
            reason: why the recording ends where x cannot be guarded.

        Raises:
            Untraceable: x holds real numbers that depend on a parameter.
        """
        if not self._aliases.depends(x):
            return
        if not is_discrete(x):
            raise Untraceable(reason, op=reader, module=running_module())
        self._guard_number(self._aliases.value(x), reader)
        self._aliases.bind(x, self._aliases.tape.constant(x.clone()))

    def shared(self, x: Tensor) -> None:
        """Take in that others than torch, who may write there too, share the memory of a constant."""
        self._aliases.share(x)

    def _compared(self, func: OpOverload, args: tuple[Any, ...]) -> None:
        """Guard the outcome of a comparison of two tensors as a whole."""
        if args[0].shape != args[1].shape:
            return
        compared = (Ref(self._aliases.value(args[0])), Ref(self._aliases.value(args[1])), *args[2:])
        equal = self._derived(_EQUALITIES[func], *compared)
        self._guard_number(self._derived("all.default", Ref(equal)), str(func))

    def _derived(self, operation: str, *args: Any) -> int:
        """The number of a value that is made of others for a guard."""
        func = overload(operation)
        assert func is not None, "as old as torch"
        (number,) = self._aliases.tape.record(func, args)
        return number

    def _guard_number(self, number: int, reader: str) -> None:
        self._aliases.tape.guard(number, reader, running_module())


class PythonReads(TorchFunctionMode):
    """Sees to values that J takes out of torch by no operation that a dispatch mode sees."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _METHODS and isinstance(args[0], Tensor):
            with modes_disabled():  # what it takes to guard a value is no part of J
                self._reads.guard(args[0], name, f"Tensor.{name} {_TAKES}")
                if name in _SHARING:
                    self._reads.shared(args[0])
        return func(*args, **(kwargs or {}))


def _deciding(func: OpOverload, args: tuple[Any, ...]) -> list[Tensor]:
    """The arguments that decide on the shape of an operation's results."""
    if func is _INDEX:  # x[mask] has a shape that follows from the mask alone
        return [index for index in flatten(args[1]) if index.dtype in (torch.bool, torch.uint8)]
    if func is _BINCOUNT:
        return flatten(args[0])
    return flatten(args[1:] if func in _SELECTIONS else args)


_AS_NUMBER = "(item, a condition or a comparison)"

_TAKES = "takes a value to Python that depends on a parameter"

_SHARING = frozenset({"numpy", "__array__", "__dlpack__"})
"""Methods of a tensor that share its memory with others than torch."""

_METHODS = _SHARING | {"tolist"}
"""Methods of a tensor that give its values to Python."""

_EQUALITIES = {
    found: name
    for found, name in ((overload("equal.default"), "eq.Tensor"), (overload("allclose.default"), "isclose.default"))
    if found
}
"""Comparison of two tensors as a whole → the elementwise one."""

_SELECTIONS = overloads("masked_select", "_ctc_loss")
"""Operations whose first argument has no say in the shape of the result."""

_RESIZES = overloads("resize_", "resize_as_")

_INDEX, _BINCOUNT, _NONZERO = overload("index.Tensor"), overload("bincount.default"), overload("nonzero.default")
