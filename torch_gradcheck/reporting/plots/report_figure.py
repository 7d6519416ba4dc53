"""The figure of a report: for each row the gradient on trial against the right one, then where wrong entries lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.facts import Facts, ParameterReport, Status
from torch_gradcheck.reporting.palette import NEGATIVE, POSITIVE, RIGHT, STATUS_COLOURS, WRONG
from torch_gradcheck.reporting.plots.canvas import FAINT, as_it_is, end_of, new_figure, plain, small_figures
from torch_gradcheck.reporting.render.outline import headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED, ACROSS = 12, 4
"""Rows of a report that get a plot of their own, wrong ones first, and how many plots stand beside each other."""

MAPPED = 3
"""Wrong tensors of which heat maps are drawn."""

ENDLESS = 1e300
"""Numbers of this size and more are not drawn, nor are NaN and infinity: matplotlib overflows on their distances."""

PLOT, MAP_HEIGHT = 2.3, 1.7
"""Inches of a plot, and of a line of heat maps."""


def figure_of(facts: Facts) -> Figure:
    """Returns the figure of a report: scatters of at most 12 rows, and heat maps of at most 3 wrong ones.

    Raises:
        MissingMatplotlibError: matplotlib is not installed.
    """
    sides = ("analytic", "numeric") if facts.reference is None else ("candidate", "reference")
    rows = [row for row in _in_order(facts) if row.pairs is not None and row.pairs.entries]
    maps = [row for row in rows if row.map is not None and row.map.analytic and row.status is Status.MISMATCH][:MAPPED]
    lines = max(1, math.ceil(min(len(rows), PLOTTED) / ACROSS))
    heights = [lines * PLOT, *[MAP_HEIGHT] * len(maps)]
    figure = new_figure(ACROSS * PLOT, sum(heights) + 0.6)
    figure.suptitle(_title(facts, rows), x=0.01, ha="left", fontsize=10, color="black")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    grid = parts[0].subplots(lines, ACROSS, squeeze=False)
    for at, axes in enumerate(grid.ravel()):
        if at < min(len(rows), PLOTTED):
            _scatter(axes, rows[at], sides)
        else:
            axes.set_axis_off()
    for part, row in zip(parts[1:], maps, strict=True):
        _heat_maps(part.subplots(1, 3), row, sides)
    return figure


def _in_order(facts: Facts) -> list[ParameterReport]:
    """The wrong rows, worst first, then the others."""
    return [*facts.mismatches, *[row for row in facts if row.status is not Status.MISMATCH]]


def _title(facts: Facts, rows: Sequence[ParameterReport]) -> str:
    left_out = len(rows) - PLOTTED
    more = f" ({left_out:,} more rows are not drawn)" if left_out > 0 else ""
    return as_it_is(f"{headline(facts)}{more}")


def _scatter(axes: Axes, row: ParameterReport, sides: tuple[str, str]) -> None:
    """Draws both gradients of a row against each other: crosses are wrong, dots are not.

    The errors of a wrong row that are too small to be seen so are drawn as differences.
    """
    assert row.pairs is not None
    shows_difference = row.status is Status.MISMATCH and row.pairs.are_close
    heights = row.pairs.differences if shows_difference else row.pairs.analytic
    entries = zip(row.pairs.numeric, heights, row.pairs.wrong, strict=False)
    drawn = [each for each in entries if abs(each[0]) < ENDLESS and abs(each[1]) < ENDLESS]
    for is_wrong, marker, colour in ((False, "o", _colour(row)), (True, "x", WRONG)):
        across, up = ([each[k] for each in drawn if each[2] is is_wrong] for k in (0, 1))
        axes.scatter(across, up, s=14, marker=marker, color=colour, alpha=0.8)
    axes.axline((0, 0), slope=int(not shows_difference), color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
    if not shows_difference:
        _share_a_scale(axes, [side for each in drawn for side in each[:2]])
    ratio = "" if row.relative_error is None else f", {row.relative_error:.1e}"
    plain(axes, f"{end_of(row.name)}\n{row.status}{ratio}{_left_out(len(row.pairs.entries) - len(drawn))}")
    axes.set_xlabel(sides[1], fontsize=7, color="black")
    axes.set_ylabel("difference" if shows_difference else sides[0], fontsize=7, color="black")
    axes.locator_params(nbins=4)


def _share_a_scale(axes: Axes, values: Sequence[float]) -> None:
    """Has both axes go from the lowest to the highest number, with some room.

    On scales of its own a gradient that is far too large would look like a right one.
    """
    low, high = min(values, default=0.0), max(values, default=0.0)
    room = 0.06 * (high - low) or abs(high) or 1.0
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room))


def _left_out(count: int) -> str:
    return f", {count:,} not finite" if count else ""


def _colour(row: ParameterReport) -> str:
    """The colour of entries that are not wrong themselves."""
    return RIGHT if row.status is Status.MISMATCH else STATUS_COLOURS[row.status]


def _heat_maps(axes: Sequence[Axes], row: ParameterReport, sides: tuple[str, str]) -> None:
    """Draws both gradients of a wrong row and their difference at the same places; the scale is the largest size."""
    from matplotlib.colors import LinearSegmentedColormap

    assert row.map is not None
    colours = LinearSegmentedColormap.from_list("signed", [NEGATIVE, "white", POSITIVE]).with_extremes(bad=FAINT)
    analytic, numeric, apart = map(_drawn, (row.map.analytic, row.map.numeric, row.map.differences))
    sizes = [*[_largest([*analytic, *numeric])] * 2, _largest(apart)]
    for on, name, values, size in zip(axes, (*sides, "difference"), (analytic, numeric, apart), sizes, strict=True):
        image = on.imshow(values, cmap=colours, vmin=-size, vmax=size, aspect="auto", interpolation="nearest")
        small_figures(on.figure.colorbar(image, ax=on, fraction=0.08).ax)
        plain(on, f"{end_of(row.name)}\n{name}" if on is axes[0] else f"\n{name}")
        on.set_xticks([])
        on.set_yticks([])
    if any(math.isnan(value) for line in apart for value in line):
        axes[2].set_xlabel("grey: not finite, or not decided", fontsize=7, color="black")
    axes[0].set_ylabel(as_it_is(row.map.down), fontsize=7, color="black")
    axes[0].set_xlabel(as_it_is(row.map.across), fontsize=7, color="black")


def _drawn(values: Sequence[Sequence[float]]) -> list[list[float]]:
    """The numbers, those that are not drawn as NaN."""
    return [[value if abs(value) < ENDLESS else math.nan for value in line] for line in values]


def _largest(values: Sequence[Sequence[float]]) -> float:
    """The largest size among finite numbers; 1 where there is none but 0."""
    return max([abs(value) for line in values for value in line if math.isfinite(value)], default=0.0) or 1.0
