"""Sums of exponentials, as of a softmax written out: their logarithms, which kernels keep in place of the sums.

exp(x − c) / Σ exp(x − c) is the same for every c. Plain code subtracts the maximum, so that the largest term is 1 to
the last digit. Kernels of attention subtract c + log Σ exp(x − c) in their backward, which is rounded like a number of
the size of x. What a reference loses says nothing of that, unless the sum is moved as much; for this c has to be known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from torch_gradcheck.torch_internals.operations import changes_dtype, is_view, overloads

SUBTRACTIONS = overloads("sub", "sub_")

BASES = {func: math.log(base) for base, name in ((math.e, "exp"), (2, "exp2")) for func in overloads(name, name + "_")}
"""Operations that exponentiate → the logarithm of their base."""

SCALES = {func: getattr(torch, name) for name in ("mul", "div") for func in overloads(name, name + "_")}
"""Operations by which a difference may be scaled → their function."""

MASKS = overloads("masked_fill", "masked_fill_")
"""Operations that leave their first argument as it is but for some entries."""

SUMS = overloads("sum")


class Subtracted(NamedTuple):
    """What was subtracted of numbers before they were exponentiated, and where these come from.

    Attributes:
        constant: c, a tensor that is broadcast.
        is_added_up: whether the numbers are sums, as of products: see `ExponentialSums.adds_up`.
    """

    constant: torch.Tensor
    is_added_up: bool


class ExponentialSums:
    """Follows differences x − c, and exponentials of them, through a computation; keeps none of them alive."""

    def __init__(self) -> None:
        self._differences, self._exponentials = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self._added_up = WeakIdKeyDictionary()

    def logarithm(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Subtracted | None:
        """c + log Σ exp(x − c), where an operation takes this sum, in the form of the sum; else None.

        Args:
            func: each operation of a computation, in turn.
            args: its arguments.
            kwargs: those by name.
            result: what it gave.
        """
        if not isinstance(result, torch.Tensor) or not args or not isinstance(args[0], torch.Tensor):
            return None
        _note(self._added_up, result, self._combines(func, args) or None)
        if func in SUMS:
            return self._of_sum(args, kwargs, result)
        difference, exponential = self._subtracted(func, args, result), self._in_exponent(func, args[0])
        _note(self._differences, result, difference)
        _note(self._exponentials, result, exponential)
        return None

    def adds_up(self, tensor: torch.Tensor) -> bool:
        """Whether numbers are sums, which others may add up in another order, or come from such.

        Inputs are not, nor what is computed of them entry by entry.
        """
        return tensor in self._added_up

    def _combines(self, func: Any, args: Sequence[Any]) -> bool:
        is_by_entry = torch.Tag.pointwise in getattr(func, "tags", ()) or changes_dtype(func) or is_view(func)
        return not is_by_entry or any(isinstance(arg, torch.Tensor) and self.adds_up(arg) for arg in args)

    def _subtracted(self, func: Any, args: Sequence[Any], result: torch.Tensor) -> Subtracted | None:
        """c, where the result is some x − c."""
        if func in SUBTRACTIONS and isinstance(args[1], torch.Tensor) and args[1].numel() < result.numel():
            return Subtracted(args[1].detach(), self.adds_up(args[0]))
        known: Subtracted | None = self._differences.get(args[0])
        if known is None or func in MASKS or changes_dtype(func):
            return known
        is_scaled = func in SCALES and _is_number(args[1])
        return known._replace(constant=SCALES[func](known.constant, args[1])) if is_scaled else None

    def _in_exponent(self, func: Any, argument: torch.Tensor) -> Subtracted | None:
        """c, where the result is some exp(x − c)."""
        if func in BASES:
            nothing = Subtracted(argument.new_zeros(()), self.adds_up(argument))
            known: Subtracted = self._differences.get(argument, nothing)
            return known._replace(constant=BASES[func] * known.constant)
        return self._exponentials.get(argument) if func in MASKS or changes_dtype(func) else None

    def _of_sum(self, args: Sequence[Any], kwargs: Mapping[str, Any], result: torch.Tensor) -> Subtracted | None:
        known: Subtracted | None = self._exponentials.get(args[0])
        if known is None:
            return None
        given = args[1] if len(args) > 1 else kwargs.get("dim")
        dimensions = tuple(given or range(args[0].ndim))
        constant = known.constant.reshape((1,) * (args[0].ndim - known.constant.ndim) + known.constant.shape)
        if any(constant.shape[each] != 1 for each in dimensions):
            return None
        constant = constant if result.ndim == args[0].ndim else constant.squeeze(dimensions)
        return known._replace(constant=constant + result.detach().log())


def _note(known: WeakIdKeyDictionary, tensor: torch.Tensor, fact: Any) -> None:
    """Notes what is known of a tensor, which may be one that another operation has written to; None: nothing."""
    if fact is not None:
        known[tensor] = fact
    else:
        known.pop(tensor, None)


def _is_number(argument: Any) -> bool:
    return not isinstance(argument, torch.Tensor) or argument.ndim == 0
