"""The faults that a check would not find as a fragment of HTML, in the style of a report."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.planting.table import Hidden, outcome, together
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.render.html.styles import STYLE
from torch_gradcheck.reporting.render.html.templates import filled

FRAGMENT = """
<div class="torch-gradcheck">
<style>{{ style | safe }}</style>
<div class="head {{ "undecided" if lines else "match" }}">
<p class="headline" role="heading" aria-level="1">{{ headline }}</p>
<p class="summary">{{ where }}</p>
</div>
{% if lines %}
<div class="scroll"><table>
<thead><tr><th>module</th><th>would not be found</th><th>because</th></tr></thead>
<tbody>
{% for module, faults, reason in lines %}
<tr><td><code>{{ module or "the model" }}</code></td><td>{{ faults }}</td><td>{{ reason }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if notes %}
<p class="title" role="heading" aria-level="2">Notes</p>
<ul>
{% for note in notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
</div>
"""


def fragment(hidden: Sequence[Hidden], planted: int, where: str, notes: Sequence[str]) -> str:
    """Returns the fragment; names and messages are escaped.

    Args:
        hidden: the faults that would not be found.
        planted: how many there are in all.
        where: the circumstances, on one line.
        notes: one sentence each.
    """
    return filled(
        FRAGMENT,
        style=STYLE,
        headline=outcome(planted - len(hidden), planted),
        where=where,
        lines=[[printable(part) for part in line] for line in together(hidden)],
        notes=[prose(note) for note in notes],
    )
