"""The styles of a report: scoped to it, so that they change nothing else of a notebook, and fit for light and dark."""

from __future__ import annotations

from torch_gradcheck.reporting.palette import (
    CONTRACT_COLOURS,
    GREY,
    NEGATIVE,
    POSITIVE,
    RIGHT,
    STATUS_COLOURS,
    WRONG,
)
from torch_gradcheck.reporting.render.html.heat_map import SHADES

SCOPE = ".torch-gradcheck.torch-gradcheck"
"""What begins every selector: twice, since rules that Jupyter has for tables weigh more than one class."""

BODY = f"""
body {{ margin: 0; padding: 1.5rem clamp(.8rem, 4vw, 3rem) 3rem; background: Canvas; color: CanvasText; }}
@media screen and (prefers-color-scheme: dark) {{
  {SCOPE} .error, {SCOPE} .dots, {SCOPE} .crosses, {SCOPE} .heat {{ filter: brightness(1.5); }}
}}
"""
"""Of a page of its own, whose theme is that of the browser: it knows the colours of light and dark pages."""

FRAME = "rgba(128, 128, 128, .35)"
"""Of lines between things, on a light page as on a dark one."""

# Colours are laid over the page's own background, or carry white text: a notebook's theme cannot be asked for.
LAYOUT = f"""
font: 15px/1.55 system-ui, sans-serif; max-width: 80em; overflow-wrap: anywhere;
print-color-adjust: exact; -webkit-print-color-adjust: exact;
p {{ margin: 0 0 .25em; }}
.head {{ border-left: 5px solid; padding: .1em 0 .1em .9em; margin: 0 0 1em; }}
.headline {{ font-size: 1.45em; font-weight: 650; line-height: 1.3; margin: 0 0 .25em; }}
.culprit {{ font-size: 1.1em; }}
.summary, .alias, .quiet, figcaption {{ opacity: .78; font-size: .93em; }}
.title {{ font-weight: 650; font-size: 1.1em; margin: 1.5em 0 .4em; }}
.scroll {{ overflow-x: auto; margin: .6em 0; }}
table {{ table-layout: auto; border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em;
  margin: 0; }}
th, td {{ padding: .3em .7em .3em 0; text-align: left; white-space: nowrap; overflow-wrap: normal; background: none;
  border: 0; border-bottom: 1px solid {FRAME}; vertical-align: middle; }}
thead th {{ font-weight: 600; vertical-align: bottom; white-space: normal; line-height: 1.25; }}
.figure {{ text-align: right; }}
code, pre {{ font: .93em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: none; color: inherit;
  padding: 0; }}
pre {{ margin: .3em 0; padding: .6em .8em; border: 1px solid {FRAME}; border-radius: .4em; white-space: pre-wrap;
  user-select: all; }}
tr.mismatch td {{ background: {WRONG}1f; }}
.status {{ display: inline-block; border-radius: .7em; padding: 0 .65em; font-size: .86em; font-weight: 600;
  line-height: 1.6; color: #fff; background: {GREY}; white-space: nowrap; }}
svg {{ display: block; max-width: 100%; overflow: visible; }}
th.figure {{ min-width: 5.2em; }}
.scale {{ min-width: 9em; width: 17em; padding-right: 1.2em; }}
.bar {{ width: 100%; height: 13px; }}
.ticks {{ display: flex; justify-content: space-between; font-weight: 400; font-size: .8em; opacity: .78; }}
.band {{ fill: rgba(128, 128, 128, .33); }}
.limit {{ stroke: currentColor; stroke-width: 1.5; vector-effect: non-scaling-stroke; }}
details {{ margin: .7em 0; }}
summary {{ cursor: pointer; padding: .15em 0; }}
.said {{ margin: .15em 0 .15em 1.2em; }}
.said, li {{ white-space: pre-line; }}
.panels {{ display: flex; flex-wrap: wrap; gap: .9em 1.6em; margin: .7em 0 .3em 1.2em; }}
figure {{ margin: 0; max-width: 100%; }}
figcaption {{ margin: .2em 0 0; max-width: 26em; }}
.beside {{ display: flex; flex-wrap: wrap; gap: .6em 2.5em; margin: .4em 0 0 1.2em; align-items: start; }}
.beside > * {{ max-width: 100%; margin: 0; }}
.heat {{ border: 1px solid {FRAME}; }}
.heat path {{ stroke-width: 1.02; fill: none; }}
.scatter {{ width: 300px; font-size: 9px; }}
.scatter text {{ fill: currentColor; }}
.scatter .end {{ text-anchor: end; }}
.frame, .zero, .equal {{ fill: none; stroke: {FRAME}; }}
.equal {{ stroke: currentColor; stroke-dasharray: 4 3; opacity: .7; }}
.dots {{ stroke: {RIGHT}; stroke-width: 5; stroke-linecap: round; opacity: .75; }}
.crosses {{ stroke: {WRONG}; stroke-width: 1.6; fill: none; }}
ul {{ margin: .2em 0; padding-left: 1.3em; }}
li {{ margin: .25em 0; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1em 1.2em; margin: .3em 0; font-size: .93em; }}
dt {{ opacity: .78; font-weight: 400; }}
dd {{ margin: 0; }}
"""


def _scoped(rules: str) -> str:
    """The rules, each of which counts inside of a report only; those before the first selector are of the report."""
    own, *others = rules.replace("\n  ", " ").strip().split("}\n")
    first = own.rindex("\n") + 1
    scoped = [_of_report(rule) for rule in [own[first:], *others] if rule.strip()]
    return "\n".join([f"{SCOPE} {{ {own[:first].strip()} }}", *scoped])


def _of_report(rule: str) -> str:
    selectors, _, body = rule.rstrip("}\n").partition("{")
    return f"{', '.join(f'{SCOPE} {selector.strip()}' for selector in selectors.split(','))} {{{body}}}"


def _colours() -> str:
    """The rules of badges, bars and headlines by status, one a colour."""
    selectors: dict[str, list[str]] = {}
    for status, colour in (STATUS_COLOURS | CONTRACT_COLOURS).items():
        selectors.setdefault(colour, []).append(status)
    return "\n".join(
        f"{_every('.status.{0}', words)} {{ background: {colour}; }}\n"
        f"{_every('.head.{0}', words)} {{ border-color: {colour}; }}\n"
        f"{_every('.{0} .error', words)} {{ fill: {colour}; }}"
        for colour, words in selectors.items()
    )


def _every(selector: str, words: list[str]) -> str:
    return ", ".join(f"{SCOPE} {selector.format(word)}" for word in words)


def _shades() -> str:
    """The rules of the cells of heat maps: the larger a number, the more opaque its colour."""
    kinds = {"w": WRONG, "n": NEGATIVE, "p": POSITIVE}
    shaded = [
        f"{SCOPE} .heat .{kind}{shade} {{ stroke: {colour}; stroke-opacity: {shade / SHADES:.2g}; }}"
        for kind, colour in kinds.items()
        for shade in range(1, SHADES + 1)
    ]
    plain = {"right": f"stroke: {RIGHT}; stroke-opacity: .22;", "none": f"stroke: {FRAME};"}
    return "\n".join([*shaded, *[f"{SCOPE} .heat .{kind} {{ {rule} }}" for kind, rule in plain.items()]])


PRINTED = f"@media print {{ {SCOPE} details::details-content {{ content-visibility: visible; display: block; }} }}"
"""On paper everything is unfolded."""

NARROW = f"""@media (max-width: 600px) {{
  {SCOPE} td code {{ display: inline-block; min-width: 7em; max-width: 12em; white-space: normal;
    overflow-wrap: anywhere; }}
  {SCOPE} .scale {{ min-width: 7em; }}
}}"""
"""On a phone long names are broken, so that the bars behind them can be seen."""

STYLE = "\n".join((_scoped(LAYOUT), _colours(), _shades(), NARROW, PRINTED))
