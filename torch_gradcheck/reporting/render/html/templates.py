"""The templates of a report, which Jinja fills in: a fragment, and a page around it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def filled(source: str, **values: Any) -> str:
    """Returns a template with these values in it; strings are escaped unless the template calls them safe."""
    return _template(source).render(**values)


@cache
def _template(source: str) -> Template:
    from jinja2 import Environment  # here and not above: importing torch_gradcheck must stay quick

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


FRAGMENT = """
{% macro badge(status, word="") %}<span class="status {{ status }}">{{ word or status | replace("_", " ") }}</span>
{%- endmacro %}
{% macro table(lines) %}
<div class="scroll"><table>
<thead><tr>
<th>status</th><th>{{ said.called }}</th><th>shape</th>
{% if has_bars %}
<th class="scale" aria-label="relative error, as a bar">
<div class="ticks"><span>1e-16</span><span>1e-8</span><span>1</span></div>
</th>
{% endif %}
{% for column in said.columns %}
<th{% if column.is_figure %} class="figure"{% endif %}>{{ column.title }}</th>
{%- endfor %}

</tr></thead>
<tbody>
{% for line in lines %}
<tr class="{{ line.status }}">
<td>{{ badge(line.status) }}</td><td><code>{{ line.name }}</code></td><td>{{ line.shape }}</td>
{% if has_bars %}
<td class="scale">{{ bar_of(line) | safe }}</td>
{% endif %}
{% for cell in line.figures %}
<td{% if said.columns[loop.index0].is_figure %} class="figure"{% endif %}>{{ cell }}</td>
{%- endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro worst(entries) %}
<div class="scroll"><table>
<thead><tr>
<th>index</th><th class="figure">{{ said.sides[0] }}</th><th class="figure">{{ said.sides[1] }}</th>
<th class="figure">difference</th>
<th class="figure">error bar</th><th></th>
</tr></thead>
<tbody>
{% for entry in entries %}
<tr>
<td><code>{{ entry.index }}</code></td><td class="figure">{{ entry.analytic }}</td>
<td class="figure">{{ entry.numeric }}</td><td class="figure">{{ entry.difference }}</td>
<td class="figure">{{ entry.noise }}</td><td>{{ entry.remark }}</td>
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro draw(drawings) %}
{% if drawings.panels %}
<div class="panels">
{% for panel in drawings.panels %}
<figure>{{ panel.drawing | safe }}<figcaption>{{ panel.caption }}</figcaption></figure>
{% endfor %}
</div>
<p class="said quiet">{{ drawings.of_panels }}. Orange is positive, blue is negative, stronger is larger.</p>
{% endif %}
{% endmacro %}
<div class="torch-gradcheck">
<style>{{ style | safe }}</style>
<div class="head {{ outcome[0] }}">
<p class="headline" role="heading" aria-level="1">{{ badge(*outcome) }} {{ said.headline }}</p>
{% if said.culprit is not none %}
<p class="culprit">culprit: <code>{{ said.culprit }}</code>{% if said.place %}, {{ said.place }}{% endif %}</p>
{% endif %}
{% for sentence in said.summary %}
<p class="summary">{{ sentence }}</p>
{% endfor %}
</div>
{% if reference %}
<details open><summary>the reference, in float64 against centered differences</summary>{{ reference | safe }}</details>
{% endif %}
{% if said.lines %}
{{ table(said.lines) }}
{% if has_bars %}
<p class="quiet">Bars show the relative error on a logarithmic scale. The grey band is what the error bars explain
{%- if tolerance %}; the line is the tolerance, {{ tolerance }}{% endif %}.</p>
{% endif %}
{% endif %}
{% for fold in said.folds %}
<details><summary>{{ fold.sentence }}</summary>{{ table(fold.lines[:most_folded]) }}
{% if fold.lines | length > most_folded %}
<p class="quiet">… and {{ "{:,}".format(fold.lines | length - most_folded) }} more; the report as JSON has them all.</p>
{% endif %}
</details>
{% endfor %}
{% for sentence in said.tied %}
<p class="alias">tied: {{ sentence }}</p>
{% endfor %}
{% if said.mistakes %}
<p class="title" role="heading" aria-level="2">What is wrong</p>
{% endif %}
{% for mistake in said.mistakes %}
<details{{ " open" if loop.first }}>
<summary>{{ badge("mismatch") }} <code>{{ mistake.name }}</code>, shape {{ mistake.shape }}</summary>
{% for sentence in mistake.sentences %}
<p class="said">{{ sentence }}</p>
{% endfor %}
{% set drawings = drawings_of(mistake) %}
<div class="beside">
{% if mistake.entries %}
{{ worst(mistake.entries) }}
{% endif %}
{% if drawings.scatter %}
<figure>{{ drawings.scatter.drawing | safe }}<figcaption>{{ drawings.scatter.caption }}</figcaption></figure>
{% endif %}
</div>
{{ draw(drawings) }}
</details>
{% endfor %}
{% if said.more_mistakes %}
<p>{{ said.more_mistakes }}</p>
{% endif %}
{% if said.contract %}
<p class="title" role="heading" aria-level="2">{{ said.contract.title }}</p>
{% for clause in said.contract.failed %}
<p>{{ badge("failed") }} <code>{{ clause.name }}</code></p>
<p class="said">{{ clause.message }}</p>
{% endfor %}
{% if said.contract.passed %}
<p>{{ badge("passed") }}{% for clause in said.contract.passed %} <code
{%- if clause.message %} title="{{ clause.message }}"{% endif %}>{{ clause.name }}</code>
{%- if not loop.last %},{% endif %}{% endfor %}</p>
{% endif %}
{% for clause in said.contract.not_applicable %}
<p>{{ badge("not_applicable") }} <code>{{ clause.name }}</code>: {{ clause.message }}</p>
{% endfor %}
{% endif %}
{% if said.gaps %}
<p class="title" role="heading" aria-level="2">What is not proven</p>
{% endif %}
{% for gap in said.gaps %}
<p>{{ badge(gap.status) }} <code>{{ gap.names }}</code></p>
<p class="said">{{ gap.reason }}</p>
{% endfor %}
{% if said.more_gaps %}
<p>{{ said.more_gaps }}</p>
{% endif %}
{% if said.notes %}
<p class="title" role="heading" aria-level="2">Notes</p>
<ul>
{% for note in said.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
{% endif %}
{% if origin %}
<p class="title" role="heading" aria-level="2">How this was made</p>
<dl>
{% for name, value in origin.lines %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
{% if origin.again %}
<p class="quiet">To run it again:</p>
<pre><code>{{ origin.again }}</code></pre>
{% endif %}
{% endif %}
</div>
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ body }}</style>
</head>
<body>
{{ fragment | safe }}
</body>
</html>
"""
