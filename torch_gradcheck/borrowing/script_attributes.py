"""What modules of torch.jit keep in C++: pointed to lent tensors, reset between evaluations, put back in the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from torch_gradcheck.torch_internals.scripted import attributes_in_code, is_scripted, write_attribute


class ScriptAttributes:
    """The attributes of compiled modules: tensors, flags, counters, lists.

    The code of such a module does not go through the Python object of a parameter. Where that object stands for a copy,
    the code has to be told.

    Args:
        modules: the model's, of which those that torch.jit has compiled are looked at.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [module for module in modules if is_scripted(module)]
        self._first = [attributes_in_code(module) for module in self._modules]
        self._start = self._first

    def point_to_tensors(self) -> None:
        """Has the code read what the tensor objects stand for now."""
        for module, attributes in zip(self._modules, self._first, strict=True):
            for name, value in attributes.items():
                if isinstance(value, Tensor):
                    write_attribute(module, name, value)

    def start(self) -> None:
        """Takes the present values, in the mode of the check, for those that every evaluation starts from."""
        self._start = [attributes_in_code(module) for module in self._modules]

    def rewind(self) -> None:
        """Resets what an evaluation has assigned to."""
        self._write_changed(self._start)

    def restore(self) -> None:
        """Puts the first values back."""
        self.point_to_tensors()
        self._write_changed(self._first)

    def _write_changed(self, before: list[dict[str, Any]]) -> None:
        for module, attributes in zip(self._modules, before, strict=True):
            now = attributes_in_code(module)
            for name, value in attributes.items():
                if not _same(now.get(name), value):
                    write_attribute(module, name, value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(map(_same, one.values(), map(other.get, one)))
    return type(one) is type(other) and (one is other or (isinstance(one, bool | int | float | str) and one == other))
