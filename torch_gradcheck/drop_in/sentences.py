"""What is said of a Jacobian that is wrong, or cannot be decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.drop_in.judge import Judged
from torch_gradcheck.drop_in.options import Options


class Place(NamedTuple):
    """An entry of the Jacobian: of which output, with respect to which input.

    Attributes:
        output, entry: the position of the output, and the index in it.
        given, coordinate: the position of the input among the arguments, and the index in it.
        part: `"real"` or `"imaginary"`, of a complex output by the backward, of a complex input in forward mode; else
            "".
    """

    output: int
    entry: tuple[int, ...]
    given: int
    coordinate: tuple[int, ...]
    part: str = ""


MOST = 4096
"""How many wrong entries are looked through for the first output and input."""

Places = Callable[[int, int], Place]


def wrong_jacobian(judged: Judged, wrong: Flags, place: Places, options: Options, forward: bool) -> str:
    """The sentences on a wrong Jacobian: where it is furthest off, and how many entries are wrong.

    Args:
        judged: what was found.
        wrong: the entries in question.
        place: names an entry.
        options: the tolerances.
        forward: whether the Jacobian was made in forward mode.
    """
    row, column = _furthest(judged, judged.numeric, _of_first_pair(wrong, place))
    where = place(row, column)
    mode = " computed with forward mode" if forward else ""
    numeric = float(judged.numeric[row, column])
    side = "inputs" if forward else "outputs"
    considering = f"While considering the {where.part} part of complex {side} only, " if where.part else ""
    return (
        f"{considering}Jacobian{mode} mismatch for output {where.output} with respect to input {where.given}: "
        f"{int(wrong.sum())} of {wrong.size} entries of the Jacobian are wrong. Furthest off there: the derivative of "
        f"output[{where.output}]{_index(where.entry)} with respect to input[{where.given}]{_index(where.coordinate)} "
        f"is {float(judged.analytic[row, column]):.9g}, and differences say {numeric:.9g} ± "
        f"{float(judged.error_bar[row, column]):.1g}; atol + rtol·|numeric| allows "
        f"{options.atol + options.rtol * abs(numeric):.3g}."
    )


def _of_first_pair(which: Flags, place: Places) -> Flags:
    """Those of the entries that belong to the same output and input as the first one; imaginary parts come first."""
    rows, columns = (found[:MOST] for found in np.nonzero(which))
    places = [place(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
    keys = [(each.part != "imaginary", each.output, each.given) for each in places]
    chosen = np.array([key == min(keys) for key in keys])
    first = np.zeros_like(which)
    first[rows[chosen], columns[chosen]] = True
    return first


def not_decided(judged: Judged, apart: Flags, place: Places, differences: Floats, options: Options) -> str:
    """The sentences on entries that differences cannot decide.

    Args:
        judged: what was found.
        apart: the entries in question.
        place: names an entry.
        differences: by the step `eps`.
        options: the tolerances.
    """
    row, column = _furthest(judged, differences, apart)
    where = place(row, column)
    return (
        f"Jacobian mismatch for output {where.output} with respect to input {where.given} cannot be excluded: "
        f"differences decide nothing at {int(apart.sum())} of {apart.size} entries (noise, a jump, or many kinks close "
        f"by). Furthest off: the derivative of output[{where.output}]{_index(where.entry)} with respect to "
        f"input[{where.given}]{_index(where.coordinate)} is {float(judged.analytic[row, column]):.9g}, and the "
        f"difference by eps={options.eps:g} {float(differences[row, column]):.9g}."
    )


def _furthest(judged: Judged, numeric: Floats, which: Flags) -> tuple[int, int]:
    off = np.where(which, np.nan_to_num(np.abs(judged.analytic - numeric), nan=np.inf), -1.0)
    row, column = np.unravel_index(int(np.argmax(off)), off.shape)
    return int(row), int(column)


def _index(index: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, index))}]" if index else ""
