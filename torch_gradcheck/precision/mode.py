"""One precision all the way through: a dispatch mode that raises the model's own casts to that of the check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from torch_gradcheck.precision.dtypes import in_precision, is_lower
from torch_gradcheck.precision.grouped_products import grouped_product
from torch_gradcheck.precision.scaler_kernels import in_any_precision
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.operations import (
    GROUPED_PRODUCTS,
    existing,
    is_view,
    overloads,
    takes,
    written_arguments,
)

KEEP = frozenset(existing("view.dtype"))
"""Operations whose dtype argument reinterprets bits and does not cast."""


_NAMES_OF_DRAWS = """
    rand rand_like randn randn_like normal normal_functional bernoulli bernoulli_ uniform uniform_ normal_
    exponential exponential_ cauchy_ geometric_ log_normal_ multinomial poisson
"""

DRAWS = overloads(*_NAMES_OF_DRAWS.split())
"""Operations that draw floating random numbers, or integers by a law with floating parameters (multinomial)."""


class DrawnIn(NamedTuple):
    """The caller's precisions, in which random numbers are drawn.

    Attributes:
        default: of numbers drawn by shape, such as torch.randn(3).
        tensors: of numbers drawn like a tensor or into one, such as torch.randn_like(x), x.normal_().
    """

    default: torch.dtype
    tensors: torch.dtype


class PrecisionMode(DispatchMode):
    """Raises every lower precision to the given one: casts, factory calls and tensors that the loan did not reach.

    A model that casts inside (`.float()` before a softmax, autocast, a float32 mask) would otherwise compute in that
    lower precision whatever its parameters hold. Works below autograd, so that custom Functions are reached too.
    An operation that has no float64 kernel is computed by others that do: grouped products, a gradient scaler's steps.

    Attributes:
        overridden: name of an operation → names of the modules in which its precision was raised. The names come from
            `current_module` and are "" by default.
        replaced: whether an operation without a float64 kernel was computed by others.
        drawn_in: the precisions in which random numbers are drawn, before they are raised; None for that of the check.
            A generator in the same state draws other numbers in another precision.
        has_drawn: whether any were.
    """

    drawn_in: DrawnIn | None = None
    has_drawn = False
    supports_higher_order_operators = True

    def __init__(self, precision: torch.dtype, current_module: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.precision = precision
        self.overridden: dict[str, set[str]] = {}
        self.replaced = False
        self._current_module = current_module

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if is_view(func):
            return func(*args, **(kwargs or {}))  # of the tensor itself, which may be written to through it
        if self.drawn_in is not None and func in DRAWS:
            return self._drawn(func, args, dict(kwargs or {}), self.drawn_in)
        writes = written_arguments(func)
        raised = tuple(arg if position in writes else self._raised(func, arg) for position, arg in enumerate(args))
        raised_kwargs = {
            name: arg if name in writes else self._raised(func, arg) for name, arg in (kwargs or {}).items()
        }
        if func in GROUPED_PRODUCTS and _lacks_kernel(raised[0].dtype):
            self.replaced = True
            return grouped_product(*raised, **raised_kwargs)
        of_scaler = in_any_precision(func) if _lacks_kernel(self.precision) else None
        return (of_scaler or func)(*raised, **raised_kwargs)

    def _drawn(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], drawn_in: DrawnIn) -> Any:
        """The result of a draw in the caller's precision, cast to that of the check."""
        self.has_drawn, writes = True, written_arguments(func)
        lowered = [_lowered(arg, drawn_in.tensors) for arg in args]
        if takes(func, "dtype") and kwargs.get("dtype") in (None, self.precision):
            like = any(isinstance(arg, torch.Tensor) for arg in args)
            kwargs["dtype"] = drawn_in.tensors if like else drawn_in.default
        result = func(*lowered, **kwargs)
        for position, arg in enumerate(args):
            if position in writes and isinstance(arg, torch.Tensor):
                return arg.copy_(lowered[position])
        return result.to(self.precision) if result.is_floating_point() else result

    def _raised(self, func: Any, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            if not is_lower(argument.dtype, self.precision):
                return argument
            self._record(func)
            return argument.to(in_precision(argument.dtype, self.precision))
        if isinstance(argument, torch.dtype):
            if func in KEEP or not is_lower(argument, self.precision):
                return argument
            self._record(func)
            return in_precision(argument, self.precision)
        if isinstance(argument, list | tuple):
            return type(argument)([self._raised(func, item) for item in argument])
        return argument

    def _record(self, func: Any) -> None:
        name = getattr(func, "overloadpacket", func).__name__
        self.overridden.setdefault(name, set()).add(self._current_module())


def _lacks_kernel(dtype: torch.dtype) -> bool:
    """Whether torch has no grouped product in this precision, and no step of a gradient scaler."""
    return dtype.itemsize > torch.float32.itemsize


def _lowered(argument: Any, dtype: torch.dtype) -> Any:
    """A floating tensor in another precision, anything else as it is."""
    is_floating = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.to(dtype) if is_floating else argument
