"""The scatter of a wrong tensor: the gradient on trial against the right one, entry by entry."""

from __future__ import annotations

import math

from torch_gradcheck.reporting.facts import Pairs
from torch_gradcheck.reporting.render.figures import figure
from torch_gradcheck.reporting.render.html.scales import Axis

SIDE, MARGIN, LINE = 200, 8, 13
"""The length of both axes, the room beside them, and that for a line of text, in units of the drawing."""


def scatter(pairs: Pairs, sides: tuple[str, str]) -> str:
    """Returns the drawing: a cross for each wrong entry, a dot for each other, and the line on which both are equal.

    Args:
        pairs: the entries.
        sides: what both gradients are called, the one on trial first.
    """
    axis = Axis.over([*pairs.analytic, *pairs.numeric])
    wrong, right = (_points(pairs, axis, is_wrong) for is_wrong in (True, False))
    (across, down), right_end, bottom = _place(axis, 0.0, 0.0), MARGIN + SIDE, LINE + SIDE
    return (
        f'<svg class="scatter" viewBox="0 0 {SIDE + 2 * MARGIN} {SIDE + 2 * LINE}" role="img" '
        f'aria-label="{sides[0]} against {sides[1]}">'
        f'<path class="frame" d="M{MARGIN} {LINE}h{SIDE}v{SIDE}h-{SIDE}z"/>'
        f'<path class="zero" d="M{across} {LINE}v{SIDE}M{MARGIN} {down}h{SIDE}"/>'
        f'<path class="equal" d="M{MARGIN} {bottom}L{right_end} {LINE}"/>'
        f'<path class="dots" d="{"".join(f"M{x} {y}h0" for x, y in right)}"/>'
        f'<path class="crosses" d="{"".join(f"M{x} {y}m-3-3l6 6m0-6l-6 6" for x, y in wrong)}"/>'
        f'<text x="{MARGIN}" y="{LINE - 4}">↑ {sides[0]}, to {figure(axis.high)}</text>'
        f'<text x="{MARGIN}" y="{bottom + 10}">{figure(axis.low)}</text>'
        f'<text class="end" x="{right_end}" y="{bottom + 10}">{sides[1]} →, to {figure(axis.high)}</text>'
        "</svg>"
    )


def caption(pairs: Pairs, sides: tuple[str, str], of: int) -> str:
    """Returns what the drawing shows, in words: how many of how many entries, and how to read it."""
    count, wrong = len(pairs.entries), sum(pairs.wrong)
    which = f"all {count:,} entries" if count == of else f"{count:,} of {of:,} entries, the worst among them"
    bent = "" if Axis.over([*pairs.analytic, *pairs.numeric]).is_linear else "; large numbers are drawn closer together"
    return (
        f"{sides[0]} against {sides[1]} gradient, {which}: × wrong ({wrong:,}), • right. "
        f"On the dashed line both are equal{bent}."
    )


def _points(pairs: Pairs, axis: Axis, is_wrong: bool) -> list[tuple[str, str]]:
    """The distinct places of the wrong entries, or of the others, which are drawn once each."""
    rows = zip(pairs.analytic, pairs.numeric, pairs.wrong, strict=False)
    return sorted({_place(axis, n, a) for a, n, wrong in rows if wrong is is_wrong and not math.isnan(n)})


def _place(axis: Axis, numeric: float, analytic: float) -> tuple[str, str]:
    """Where a pair of numbers is in the drawing."""
    x, y = MARGIN + SIDE * axis.share(numeric), LINE + SIDE * (1 - axis.share(analytic))
    return f"{x:.4g}", f"{y:.4g}"
