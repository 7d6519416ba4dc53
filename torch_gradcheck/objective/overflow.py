"""Watches the calls of J for the first that makes NaN or infinity of finite numbers: its name, its line, its module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from torch_gradcheck.objective.module_hooks import ModuleStack
from torch_gradcheck.torch_internals.autograd import in_backward
from torch_gradcheck.torch_internals.code_lines import CodeLine, calling_line
from torch_gradcheck.torch_internals.transforms import numbers_in


@dataclass(frozen=True)
class Call:
    """A call of a function of torch.

    Attributes:
        name: the function's.
        line: of the user's, that called it; None where none did.
        module: the innermost module that was running, by its qualified name; None in the loss function or closure.
    """

    name: str
    line: CodeLine | None
    module: str | None

    def __str__(self) -> str:
        """The call and its line, as "log at net.py:12"."""
        return self.name if self.line is None else f"{self.name} at {self.line}"


class OverflowWatch(TorchFunctionMode):
    """Notes the first call that makes numbers which are not finite, and the first that makes NaN.

    Args:
        modules: follows the model's modules.
        inside: the function of this package whose frames bound the lines looked at.

    Attributes:
        overflow: the first call that made NaN or infinity of finite numbers.
        nan: the first that made NaN of numbers without one.
    """

    def __init__(self, modules: ModuleStack, inside: CodeType) -> None:
        super().__init__()
        self.overflow: Call | None = None
        self.nan: Call | None = None
        self._modules, self._inside = modules, inside

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute is read, such as `shape`
            return func(*args, **(kwargs or {}))
        name = name.strip("_").replace("truediv", "div")
        return self.watched(Call(name, calling_line(inside=self._inside), self._running()), func, args, kwargs or {})

    def watched(self, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of the call, which is noted where it spoils numbers."""
        forward = not in_backward()
        finite = forward and self.overflow is None and all_finite((args, kwargs))
        without_nan = forward and self.nan is None and not _any_nan((args, kwargs))
        result = func(*args, **kwargs)
        if finite and not all_finite(result):
            self.overflow = call
        if without_nan and _any_nan(result):
            self.nan = call
        return result

    def _running(self) -> str | None:
        return self._modules.current_module() if self._modules.is_running() else None


def all_finite(value: Any) -> bool:
    """Whether every floating number among tensors and arguments is finite."""
    return _all(value, lambda tensor: bool(torch.isfinite(tensor).all()), lambda number: number - number == 0)


def _any_nan(value: Any) -> bool:
    return not _all(value, lambda tensor: not bool(torch.isnan(tensor).any()), lambda number: number == number)


def _all(value: Any, holds: Callable[[torch.Tensor], bool], holds_of: Callable[[float], bool]) -> bool:
    """Whether something holds of every floating tensor and number in nested arguments."""
    if isinstance(value, float):
        return holds_of(value)
    if isinstance(value, tuple | list | Mapping):
        return all(_all(each, holds, holds_of) for each in (value.values() if isinstance(value, Mapping) else value))
    if isinstance(value, torch.Tensor):
        value = numbers_in(value)
        dense = value.layout is torch.strided and not value.is_meta and not value.is_nested
        return not dense or not (value.is_floating_point() or value.is_complex()) or holds(value.detach())
    return True
