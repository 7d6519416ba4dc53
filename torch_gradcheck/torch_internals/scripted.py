"""Modules of torch.jit: what they keep in C++, out of the sight of Python, and whether their code is optimised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_gradcheck.torch_internals.missing import internal

ABSENT = object()
"""Stands for the value of an attribute that cannot be read."""


def is_scripted(module: nn.Module) -> bool:
    """Whether torch.jit has compiled a module, by script or by trace, or loaded it."""
    return issubclass(type(module), torch.jit.ScriptModule) and getattr(module, "_c", None) is not None


def attributes_in_code(module: nn.Module) -> dict[str, Any]:
    """The attributes that a compiled module itself keeps in C++: parameters and buffers, flags, counters, lists.

    A list is a copy of the one that the code works with.
    """
    of_code = module._c
    kept = internal(torch._C, "ParameterDict", "read what a scripted module holds")(of_code)
    tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
    names = [name for name in _names(module) if name not in tensors]
    others = {name: _read(of_code, name) for name in names}
    return {**tensors, **{name: value for name, value in others.items() if value is not ABSENT}}


def write_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Has the code of a compiled module read this value from now on; it must be of the attribute's type."""
    module._c.setattr(name, value)  # type: ignore[operator, union-attr]


def _names(module: nn.Module) -> list[str]:
    """The names of attributes that are no modules and no parameters."""
    kind = getattr(module, "_concrete_type", None)
    return [] if kind is None else [*kind.get_attributes()]


def _read(of_code: Any, name: str) -> Any:
    try:
        return of_code.getattr(name)
    except RuntimeError:  # of a type that Python does not have
        return ABSENT


def hides_interrupt(error: object) -> bool:
    """Whether code of torch.jit has made an error of its own out of a Ctrl-C that came while it ran."""
    said = str(error) if isinstance(error, RuntimeError) else ""
    return "TorchScript interpreter" in said and "KeyboardInterrupt: " in said


def optimises_scripts() -> bool:
    """Whether torch.jit optimises code by what it has seen in former runs, and notes what it sees."""
    return bool(internal(torch._C, "_get_graph_executor_optimize", "run scripted modules as they are written")())


def set_optimises_scripts(value: bool) -> None:
    """Turns that on or off; off, code runs as its graph says, and nothing is noted."""
    internal(torch._C, "_set_graph_executor_optimize", "run scripted modules as they are written")(value)
