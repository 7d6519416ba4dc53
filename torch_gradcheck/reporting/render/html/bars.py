"""The bar of a row: its relative error on a logarithmic scale, the error bars behind it, the tolerance across it."""

from __future__ import annotations

import math

from torch_gradcheck.reporting.facts import Facts, ParameterReport
from torch_gradcheck.reporting.render.html.scales import percent_of_log


def bar(row: ParameterReport, facts: Facts) -> str:
    """Returns the drawing, which says nothing that the figures of the row do not say; "" where there is no ratio."""
    if row.relative_error is None:
        return ""
    parts = [_box("band", row.relative_noise, 0, 10), _box("error", row.relative_error, 3, 4), _limit(facts)]
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{"".join(parts)}</svg>'


def _box(name: str, error: float, top: int, height: int) -> str:
    """A box from the left end to an error; "" where that is not known, or below the scale."""
    width = 0.0 if name == "band" and math.isnan(error) else percent_of_log(error)
    return f'<path class="{name}" d="M0 {top}h{width:.3g}v{height}H0z"/>' if width else ""


def _limit(facts: Facts) -> str:
    """The line at the tolerance; "" beside a reference, where the error bars alone are the limit."""
    if facts.reference is not None:
        return ""
    return f'<path class="limit" d="M{percent_of_log(facts.tolerance):.3g} 0v10"/>'
