"""An empty figure of matplotlib's, made without pyplot: no backend, no global setting and no other figure changes."""

from __future__ import annotations

from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING

from torch_gradcheck.errors import MissingMatplotlibError
from torch_gradcheck.reporting.kept_random import kept_random
from torch_gradcheck.reporting.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MISSING = "plot() needs matplotlib, which is not installed: pip install matplotlib (the extra torch-gradcheck[plot])"

FAINT = "#8c959f"
"""Of axes, and of lines that guide the eye."""


@kept_random()
def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of this size in inches, which lays itself out, and which a notebook shows.

    Raises:
        MissingMatplotlibError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingMatplotlibError(MISSING) from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


def _as_png(figure: Figure) -> bytes:
    """What a notebook shows of a figure that pyplot knows nothing of."""
    written = BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()


def as_it_is(words: str) -> str:
    """Words in which matplotlib finds no formula."""
    return printable(words).replace("$", r"\$")


def end_of(name: str, most: int = 30) -> str:
    """A name; of a long one its end, which says more than its beginning."""
    return as_it_is(name if len(name) <= most else f"…{name[1 - most :]}")


def plain(axes: Axes, title: str) -> None:
    """Gives axes a title, small figures and no box."""
    axes.set_title(title, fontsize=9, loc="left", color="black")
    small_figures(axes)
    axes.set_facecolor("white")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def small_figures(axes: Axes) -> None:
    """Gives the numbers along axes their size, that which stands for a power of ten at the end included."""
    axes.tick_params(labelsize=7, colors="black")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_offset_text().set_fontsize(7)
