"""The scatter of a wrong tensor: entry by entry the gradient on trial, or how far it is off, against the right one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import Pairs
from torch_gradcheck.reporting.render.figures import figure
from torch_gradcheck.reporting.render.html.scales import Axis

SIDE, MARGIN, LINE = 200, 8, 15
"""The length of both axes, the room beside them, and that for a line of text, in units of the drawing."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """A scatter: a cross for each wrong entry, a dot for each other, and the dashed line on which right ones lie."""

    drawing: str
    caption: str


@dataclass(frozen=True, slots=True)
class Plane:
    """Both axes and their names, and whether the one upwards is of the differences."""

    across: Axis
    up: Axis
    names: tuple[str, str]
    is_of_differences: bool

    def place(self, across: float, up: float) -> str:
        """Where a point is in the drawing."""
        x, y = MARGIN + SIDE * self.across.share(across), LINE + SIDE * (1 - self.up.share(up))
        return f"{x:.4g} {y:.4g}"

    @property
    def right(self) -> str:
        """The line on which right entries lie."""
        low, high = self.across.low, self.across.high
        ends = (0.0, 0.0) if self.is_of_differences else (low, high)
        return f"M{self.place(low, ends[0])}L{self.place(high, ends[1])}"


def scatter(pairs: Pairs, sides: tuple[str, str], count: int) -> Scatter:
    """Returns the scatter of a tensor.

    Args:
        pairs: the entries that are drawn.
        sides: what both gradients are called, the one on trial first.
        count: how many entries were compared.
    """
    both = Axis.over([*pairs.analytic, *pairs.numeric])
    if pairs.are_close:  # all points would lie on one line
        heights = pairs.differences
        plane = Plane(both, Axis.over(heights), (sides[1], "difference"), is_of_differences=True)
    else:
        heights = pairs.analytic
        plane = Plane(both, both, (sides[1], sides[0]), is_of_differences=False)
    return Scatter(_drawing(plane, pairs, heights), _caption(plane, pairs, count))


def _drawing(plane: Plane, pairs: Pairs, heights: Sequence[float]) -> str:
    end, bottom = MARGIN + SIDE, LINE + SIDE
    x, y = plane.place(0.0, 0.0).split()
    wrong, right = (_points(plane, pairs, heights, is_wrong) for is_wrong in (True, False))
    return (
        f'<svg class="scatter" viewBox="0 0 {SIDE + 2 * MARGIN} {SIDE + 2 * LINE}" role="img" '
        f'aria-label="{plane.names[1]} against {plane.names[0]}">'
        f'<path class="frame" d="M{MARGIN} {LINE}h{SIDE}v{SIDE}h-{SIDE}z"/>'
        f'<path class="zero" d="M{x} {LINE}v{SIDE}M{MARGIN} {y}h{SIDE}"/><path class="equal" d="{plane.right}"/>'
        f'<path class="dots" d="{"".join(f"M{at}h0" for at in right)}"/>'
        f'<path class="crosses" d="{"".join(f"M{at}m-3-3l6 6m0-6l-6 6" for at in wrong)}"/>'
        f'<text x="{MARGIN}" y="{LINE - 6}">↑ {plane.names[1]}, {_ends(plane.up)}</text>'
        f'<text class="end" x="{end}" y="{bottom + 12}">{plane.names[0]}, {_ends(plane.across)} →</text></svg>'
    )


def _ends(axis: Axis) -> str:
    return f"{figure(axis.low)} to {figure(axis.high)}"


def _points(plane: Plane, pairs: Pairs, heights: Sequence[float], is_wrong: bool) -> list[str]:
    """The distinct places of the wrong entries, or of the others; one on trial that is not finite is at an end."""
    rows = zip(pairs.numeric, heights, pairs.wrong, strict=False)
    return sorted({plane.place(n, up) for n, up, wrong in rows if wrong is is_wrong and math.isfinite(n)})


def _caption(plane: Plane, pairs: Pairs, count: int) -> str:
    """Returns what the drawing shows, of how many of how many entries, and how to read it."""
    drawn, wrong = len(pairs.entries), sum(pairs.wrong)
    which = f"all {count:,} entries" if drawn == count else f"{drawn:,} of {count:,} entries, the worst among them"
    bent = "" if plane.across.is_linear and plane.up.is_linear else " Large numbers are drawn closer together."
    at_edge = "" if all(map(math.isfinite, pairs.analytic)) else " NaN and infinity are drawn at the edge."
    return (
        f"{plane.names[1]} against {plane.names[0]}, {which}: × wrong ({wrong:,}), • not. A right entry lies on the "
        f"dashed line.{bent}{at_edge}"
    )
