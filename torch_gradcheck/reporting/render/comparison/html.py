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
        FRAGMENT,
        headline=headline_of(found),
        style="color: #cf222e" if found.regressed else "",
        sentences=[*told(found), *unlike(found)],
        headers=HEADERS,
        lines=lines_of(found),
        explanations=[(name, in_one_line(message)) for name, message in explanations(found)],
    )


FRAGMENT = """
<div class="torch-gradcheck-comparison">
<style>.torch-gradcheck-comparison :is(th, td) { text-align: left; white-space: nowrap; }</style>
<p><strong style="{{ style }}">{{ headline }}</strong></p>
{% for sentence in sentences %}
<p>{{ sentence }}</p>
{% endfor %}
{% if lines %}
<table>
<thead><tr>{% for header in headers %}<th>{{ header }}</th>{% endfor %}</tr></thead>
<tbody>
{% for line in lines %}
<tr>{% for cell in line.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
{% endif %}
{% for name, message in explanations %}
<p><code>{{ name }}</code>: {{ message }}</p>
{% endfor %}
</div>
"""
