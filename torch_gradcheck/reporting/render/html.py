"""A report as HTML: a fragment for notebooks, and a document of its own; neither needs anything from elsewhere."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.outline import outline
from torch_gradcheck.reporting.words import CONTRACT_COLOURS, GREY, STATUS_WORDS

if TYPE_CHECKING:
    from jinja2 import Template


def html(facts: Facts) -> str:
    """Returns the report as a fragment for light and dark pages; names and messages are escaped."""
    reference = html(facts.reference) if facts.reference is not None and facts.has_wrong_reference else ""
    return _template(FRAGMENT).render(said=outline(facts), passed=facts.passed, style=STYLE, reference=reference)


def page(facts: Facts, title: str) -> str:
    """Returns the report as a complete document called `title`."""
    return _template(PAGE).render(title=title, fragment=html(facts))


@cache
def _template(source: str) -> Template:
    from jinja2 import Environment  # here and not above: importing torch_gradcheck must stay quick

    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)


def _badge_rules() -> str:
    """Returns the CSS of the status badges: their form, then one rule a colour."""
    selectors: dict[str, list[str]] = {}
    colours = {status: words.colour for status, words in STATUS_WORDS.items()} | CONTRACT_COLOURS
    for status, colour in colours.items():
        selectors.setdefault(colour, []).append(f".torch-gradcheck .status.{status}")
    grey = f"border-radius: .7em; padding: .05em .6em; font-size: .88em; color: #fff; background: {GREY};"
    rules = [f".torch-gradcheck .status {{\n  {grey}\n}}"]
    rules += [f"{', '.join(of)} {{ background: {colour}; }}" for colour, of in selectors.items() if colour != GREY]
    return "\n".join(rules)


# Colours are laid over the page's own background, or carry white text: a notebook's theme cannot be asked for.
STYLE = (
    """
.torch-gradcheck { font: 14px/1.5 system-ui, sans-serif; max-width: 76em; }
.torch-gradcheck p { margin: 0 0 .2em; }
.torch-gradcheck .headline { font-size: 1.25em; font-weight: 600; }
.torch-gradcheck .summary, .torch-gradcheck .alias { opacity: .75; }
.torch-gradcheck .scroll { overflow-x: auto; margin: .8em 0; }
.torch-gradcheck table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.torch-gradcheck th, .torch-gradcheck td {
  padding: .2em .5em; text-align: left; white-space: nowrap; background: none;
  border-bottom: 1px solid rgba(128, 128, 128, .3);
}
.torch-gradcheck .figure { text-align: right; }
.torch-gradcheck code { font: .93em ui-monospace, monospace; background: none; color: inherit; padding: 0; }
.torch-gradcheck tr.mismatch td { background: rgba(218, 54, 51, .14); }
"""
    + _badge_rules()
    + """
.torch-gradcheck details { margin: .4em 0; }
.torch-gradcheck summary { cursor: pointer; }
.torch-gradcheck .said { margin: .1em 0 .1em 1.2em; }
.torch-gradcheck .said, .torch-gradcheck li { white-space: pre-line; }
.torch-gradcheck details table { margin: .3em 0 .6em 1.2em; }
.torch-gradcheck details table.map { border-collapse: separate; border-spacing: 1px; }
.torch-gradcheck table.map td { width: 9px; height: 9px; min-width: 4px; padding: 0; border: 0; }
.torch-gradcheck ul { margin: .2em 0; padding-left: 1.4em; }
"""
)

FRAGMENT = """
{% macro badge(status) %}<span class="status {{ status }}">{{ status | replace("_", " ") }}</span>{% endmacro %}
{% macro table(lines) %}
<div class="scroll"><table>
<thead><tr>
<th>status</th><th>{{ said.called }}</th><th>shape</th>
{% for column in said.columns %}
<th{% if column.is_figure %} class="figure"{% endif %}>{{ column.title }}</th>
{%- endfor %}

</tr></thead>
<tbody>
{% for line in lines %}
<tr class="{{ line.status }}">
<td>{{ badge(line.status) }}</td><td><code>{{ line.name }}</code></td><td>{{ line.shape }}</td>
{% for cell in line.figures %}
<td{% if said.columns[loop.index0].is_figure %} class="figure"{% endif %}>{{ cell }}</td>
{%- endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endmacro %}
{% macro worst(entries) %}
<table>
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
</tbody></table>
{% endmacro %}
{% macro heat(picture) %}
<p class="said">{{ picture.caption }}</p>
<table class="map">
{% for line in picture.cells %}
<tr>{% for share in line %}
<td{% if share is not none %} style="background: rgba({{ "207, 34, 46" if share else "26, 127, 55" }},
 {{- " %.2f" % (0.25 + 0.75 * share) }})"{% endif %}></td>
{%- endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}
<div class="torch-gradcheck">
<style>{{ style }}</style>
<p class="headline">{% if not passed %}{{ badge("mismatch") }} {% endif %}{{ said.headline }}</p>
{% if said.culprit is not none %}
<p>culprit: <code>{{ said.culprit }}</code></p>
{% endif %}
{% for sentence in said.summary %}
<p class="summary">{{ sentence }}</p>
{% endfor %}
{% if reference %}
<details open><summary>the reference, in float64 against centered differences</summary>{{ reference | safe }}</details>
{% endif %}
{% if said.lines %}
{{ table(said.lines) }}
{% endif %}
{% for fold in said.folds %}
<details><summary>{{ fold.sentence }}</summary>{{ table(fold.lines) }}</details>
{% endfor %}
{% for sentence in said.tied %}
<p class="alias">tied: {{ sentence }}</p>
{% endfor %}
{% for mistake in said.mistakes %}
<details{{ " open" if loop.first }}>
<summary>{{ badge("mismatch") }} <code>{{ mistake.name }}</code>, shape {{ mistake.shape }}</summary>
{% for sentence in mistake.sentences %}
<p class="said">{{ sentence }}</p>
{% endfor %}
{% if mistake.entries %}
{{ worst(mistake.entries) }}
{% endif %}
{% if mistake.picture %}
{{ heat(mistake.picture) }}
{% endif %}
</details>
{% endfor %}
{% if said.more_mistakes %}
<p>{{ said.more_mistakes }}</p>
{% endif %}
{% if said.contract %}
<p class="contract">{{ said.contract.title }}</p>
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
{% for gap in said.gaps %}
<p>{{ badge(gap.status) }} <code>{{ gap.names }}</code></p>
<p class="said">{{ gap.reason }}</p>
{% endfor %}
{% if said.more_gaps %}
<p>{{ said.more_gaps }}</p>
{% endif %}
{% if said.notes %}
<p>notes</p>
<ul>
{% for note in said.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
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
<style>body { margin: 2em; background: Canvas; color: CanvasText; }</style>
</head>
<body>
{{ fragment | safe }}
</body>
</html>
"""
