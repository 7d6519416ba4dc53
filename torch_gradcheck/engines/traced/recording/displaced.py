"""Whether J only compares the real numbers that it reads: then displacing them all does not change its record.

A number that Python reads may go back into J, as a factor of what follows, and then the record holds for θ alone. Or it
is compared with a bound, written down or printed. Which of these cannot be seen from Python, but it can be tried: J
runs again with every number it reads a little larger or smaller than it is. Every two numbers are displaced the same
way and opposite ways, since J may compare them with each other. If the record stays the same, then it holds as long as
the numbers stay between the displaced ones.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torch_gradcheck.engines.traced.recording.tape import Operation, Tape

DISPLACEMENT = 2.0**-5
"""By how much of itself a number is displaced."""

SLACK = DISPLACEMENT / 2
"""By how much of itself a number may differ under a perturbation from what it is at θ."""

MOST_READS = 64
"""With more reads of real numbers J is not recorded: with 64, it runs 14 times."""


def displacements(reads: int) -> list[list[float]]:
    """Displacements of each read, one list a run: all alike, and by the binary digits of the read's number."""
    signs = [
        [1] * reads,
        *([1 - 2 * (k >> digit & 1) for k in range(reads)] for digit in range((reads - 1).bit_length())),
    ]
    return [[DISPLACEMENT * way * sign for sign in each] for each in signs for way in (1, -1)]


def same_record(one: Tape, other: Tape) -> bool:
    """Whether two tapes hold equal operations on equal constants."""
    return (
        one.depends == other.depends
        and one.constants.keys() == other.constants.keys()
        and len(one.operations) == len(other.operations)
        and all(_same_operation(*pair) for pair in zip(one.operations, other.operations, strict=True))
        and all(_same_tensor(constant, other.constants[number]) for number, constant in one.constants.items())
    )


def _same_operation(one: Operation, other: Operation) -> bool:
    if one.is_guard and other.is_guard:
        return one.args == other.args
    return (
        one.func == other.func
        and one.outputs == other.outputs
        and _same_arguments(one.args, other.args)
        and _same_arguments(one.kwargs, other.kwargs)
        and _same_arguments(one.frozen, other.frozen)
    )


def _same_arguments(one: Any, other: Any) -> bool:
    """Whether nested arguments are equal, and numbers among them of one type: 1 is not 1.0, nor True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return _same_tensor(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(_same_arguments(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same_arguments(given, other[name]) for name, given in one.items())
    return bool(one == other)


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold equal numbers; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())
