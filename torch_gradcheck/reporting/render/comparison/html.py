"""A comparison of two reports as a fragment of HTML for light and dark pages."""

from __future__ import annotations

from torch_gradcheck.reporting.comparison.difference import Difference
from torch_gradcheck.reporting.facts.one_line import in_one_line
from torch_gradcheck.reporting.render.comparison.outline import (
    HEADERS,
    explanations,
    headline_of,
    lines_of,
    told,
    unlike,
)
from torch_gradcheck.reporting.render.html.templates import filled


def html_of(found: Difference) -> str:
    """Returns the comparison as a fragment for light and dark pages; names and messages are escaped."""
    return filled(
        __package__,
        "comparison",
        headline=headline_of(found),
        style="color: #cf222e" if found.regressed else "",
        sentences=[*told(found), *unlike(found)],
        headers=HEADERS,
        lines=lines_of(found),
        explanations=[(name, in_one_line(message)) for name, message in explanations(found)],
    )
