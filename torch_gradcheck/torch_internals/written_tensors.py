"""The writes to tensors while code runs, each with the function of torch that wrote and the line that called it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from torch_gradcheck.torch_internals.code_lines import CodeLine, calling_frame, calling_line

OVERWRITTEN = re.compile(
    r"^one of the variables needed for gradient computation has been modified by an inplace operation: "
    r"\[torch\.[\w.]*?Tensor \[([\d, ]*)\]\](?:, which is output \d+ of (\w+?)(?:Backward\d+)?,)? is at version (\d+); "
    r"expected version (\d+) instead"
)
"""What autograd says of a tensor that was written to after it was saved: its shape, where it comes from, its writes.

torch 2.6 and 2.10 say ExpBackward0 where 2.13 says Exp."""


class Overwritten(NamedTuple):
    """What a backward needs, and was written to.

    Attributes:
        shape: of the tensor.
        node: the name of the operation that has made it, as `"Exp"`; "" for one without a graph.
        before, after: the number of writes to it when it was saved, and now.
    """

    shape: tuple[int, ...]
    node: str
    before: int
    after: int


class Write(NamedTuple):
    """A write to a tensor.

    Attributes:
        function: what has written, as `"torch.Tensor.add_"`.
        line: the line of the user's that called it.
        place: what `where` said then.
        shape: that of the tensor.
        node: the name of the node that had made it.
        version: the number of writes to it then, with this one.
    """

    function: str
    line: CodeLine | None
    place: Any
    shape: tuple[int, ...]
    node: str
    version: int


def overwritten_in(error: BaseException) -> Overwritten | None:
    """What a backward has missed, where an exception says that it was written to; else None."""
    found = OVERWRITTEN.match(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    shape = tuple(int(size) for size in found[1].split(",") if size.strip())
    return Overwritten(shape, found[2] or "", int(found[4]), int(found[3]))


class WriteWatch(TorchFunctionMode):
    """Notes every write to a tensor inside of the block.

    Args:
        where: asked at every write.
    """

    def __init__(self, where: Any) -> None:
        super().__init__()
        self._where = where
        self._writes: list[Write] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        before = [(tensor, _version(tensor), _node(tensor)) for tensor in _written_by(args, kwargs or {})]
        result = func(*args, **(kwargs or {}))
        line = calling_line(calling_frame())
        for tensor, version, node in before:
            if _version(tensor) > version:
                name = resolve_name(func) or getattr(func, "__name__", "torch")
                shape = tuple(tensor.shape)
                self._writes.append(Write(name, line, self._where(), shape, node, _version(tensor)))
        return result

    def of(self, overwritten: Overwritten) -> list[Write]:
        """The writes that may be those to a tensor: of its shape and number, and of its node where there is one."""
        numbers = range(overwritten.before + 1, overwritten.after + 1)
        found = [each for each in self._writes if each.shape == overwritten.shape and each.version in numbers]
        of_node = [each for each in found if overwritten.node and each.node.startswith(overwritten.node)]
        return of_node or found


def _written_by(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensors that a function of torch may write to, each once: the first argument, or those in it, and `out`."""
    given = [*args[:1], kwargs.get("out")]
    flat = [inner for each in given for inner in (each if isinstance(each, tuple | list) else [each])]
    return list({id(each): each for each in flat if isinstance(each, torch.Tensor)}.values())


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _node(tensor: torch.Tensor) -> str:
    node = tensor.grad_fn
    return "" if node is None else node.name()
