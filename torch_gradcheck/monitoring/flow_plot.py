"""The flow of gradients through the layers over the checked steps as a plot, on a logarithmic scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from torch_gradcheck.arrays import Floats
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.history import GradientHistory
from torch_gradcheck.monitoring.layers import Layer, flow_of
from torch_gradcheck.reporting.plots.canvas import end_of, new_figure

if TYPE_CHECKING:  # the extra `plot` brings it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 40
"""The largest number of layers that are named under the axis; of more of them every so many."""

LISTED = 6
"""The largest number of steps that are drawn as lines."""

LONGEST = 26
"""The characters of a name under the axis; of a longer one its end is shown."""

USUAL_UPDATE = 1e-3
"""The update of the weights, relative to them, that is usually seen where training goes well.

Source: A. Karpathy, "CS231n: Learning and Evaluation", ratio of weights to updates.
"""


def flow_plot(history: GradientHistory) -> Figure:
    """Norms of gradients layer by layer and, where they are known, the updates relative to the weights.

    Few steps are lines; many are a map, a line of cells for each of them.

    Args:
        history: of the steps and parameters to show.

    Raises:
        InvalidRequestError: it has no gradient to show.
        MissingMatplotlibError: matplotlib is not installed; an ImportError, too.
    """
    flow = {step: {layer.name: layer for layer in layers} for step, layers in flow_of(history).items()}
    names = list(dict.fromkeys([name for layers in flow.values() for name in layers]))
    if not names:
        raise InvalidRequestError("there is no gradient to plot yet: no step has been checked, or none left a .grad.")
    panels = [Panel("‖gradient‖", _table(names, flow, lambda layer: layer.grad_norm))]
    if any(row.update_norm for row in history):
        panels.append(
            Panel("‖update‖ / ‖weights‖", _table(names, flow, lambda layer: layer.update_ratio), USUAL_UPDATE)
        )
    figure = new_figure(min(max(6.4, 0.24 * len(names) + 2.5), 16), 2 + 2.8 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for each, panel in zip(axes, panels, strict=True):
        (_draw_lines if len(flow) <= LISTED else _draw_map)(figure, each, panel, list(flow))
    axes[0].set_title("Flow of gradients through the layers", loc="left")
    _name_layers(axes[-1], names)
    return figure


class Panel(NamedTuple):
    """One quantity of all layers on all steps.

    Attributes:
        label: its name.
        values: shape (steps, layers); NaN where it is not known.
        usual: a value to compare with; None without one.
    """

    label: str
    values: Floats
    usual: float | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The range of its positive values, a factor of 10 at least."""
        shown = self.values[np.isfinite(self.values) & (self.values > 0)]
        low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.1, 1.0)
        margin = max(1.3, math.sqrt(10 * low / high))
        return low / margin, high * margin


def _table(
    names: Sequence[str], flow: Mapping[int, Mapping[str, Layer]], value: Callable[[Layer], float | None]
) -> Floats:
    """A value of each layer on each step, NaN where there is none, infinity where it is no number."""
    found = [[value(layers[name]) if name in layers else None for name in names] for layers in flow.values()]
    known = [
        [math.nan if each is None else (each if math.isfinite(each) else math.inf) for each in row] for row in found
    ]
    return np.array(known, dtype=np.float64)


def _draw_lines(_: Figure, axes: Axes, panel: Panel, steps: Sequence[int]) -> None:
    """A line for each step; a triangle at the lower edge where it is 0, a cross at the upper where it is no number."""
    edges = axes.get_xaxis_transform()  # from 0 at the lower edge to 1 at the upper
    for step, colour, row in zip(steps, _colours(len(steps)), panel.values, strict=True):
        shown = np.where(np.isfinite(row) & (row > 0), row, np.nan)
        axes.plot(shown, color=colour, linewidth=1.2, marker="o", markersize=3, label=f"step {step}")
        for mark, height, at in (("v", 0.02, row == 0), ("X", 0.98, np.isinf(row))):
            axes.plot(np.flatnonzero(at), [height] * int(at.sum()), mark, color=colour, markersize=6, transform=edges)
    if panel.usual is not None:
        axes.axhline(panel.usual, color="grey", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_yscale("log")
    low, high = panel.limits
    axes.set_ylim(min(low, panel.usual or low), max(high, panel.usual or high))
    axes.set_ylabel(panel.label)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="best", framealpha=0.7)


def _draw_map(figure: Figure, axes: Axes, panel: Panel, steps: Sequence[int]) -> None:
    """A cell for each layer and step, the lighter the larger; white where it is 0, red where it is no number."""
    import matplotlib
    from matplotlib.colors import LogNorm

    low, high = panel.limits
    colours = matplotlib.colormaps["viridis"].with_extremes(under="white", over="red", bad="lightgrey")
    cells = np.where(panel.values == 0, low / 10, np.where(np.isinf(panel.values), 10 * high, panel.values))
    mesh = axes.pcolormesh(cells, norm=LogNorm(low, high), cmap=colours)
    mesh.set(rasterized=True)
    axes.set_ylabel("step")
    places = sorted({round(k * (len(steps) - 1) / 6) for k in range(7)})
    axes.set_yticks([k + 0.5 for k in places], [str(steps[k]) for k in places], fontsize=8)
    bar = figure.colorbar(mesh, ax=axes, extend="both", aspect=20, pad=0.01)
    bar.set_label(f"{panel.label}\n(white 0, red NaN or ∞)", fontsize=8)


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    """From dark to light, as the steps come."""
    import matplotlib

    scale = matplotlib.colormaps["viridis"]
    return [scale(0.88 * k / max(count - 1, 1)) for k in range(count)]


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    every, middle = -(-len(names) // NAMED), 0.5 if axes.collections else 0.0  # cells are between their edges
    labels = [end_of(name, LONGEST) for name in names[::every]]
    upright = sum(map(len, labels)) > 60
    places = [k + middle for k in range(0, len(names), every)]
    axes.set_xticks(places, labels, rotation=90 if upright else 0, fontsize=8)
    axes.set_xlim(middle - 0.5, len(names) - 0.5 + middle)
    few = f", one in {every} named" if every > 1 else ""
    axes.set_xlabel(f"layers in the order of named_parameters(){few}", fontsize=9)
