"""Tables of measured figures in README.md and docs/, written from benchmarks/results/: no figure is typed by hand.

python benchmarks/readme_tables.py         # rewrites what stands between the marks on every page
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Rows = list[Sequence[str]]


def detection(figures: dict[str, Any]) -> Rows:
    """False alarms and misses by the size of the planted error, a column a contestant."""
    counts = figures["counts"]
    contestants = list(dict.fromkeys(count["contestant"] for count in counts))
    rows: Rows = [["planted error", *contestants]]
    for size, place in dict.fromkeys((count["size"], count["place"]) for count in counts):
        cells = [count for count in counts if (count["size"], count["place"]) == (size, place)]
        if size == 0 and place != cells[0]["place"]:
            continue
        kind = "accused" if size == 0 else "missed"
        found = {count["contestant"]: sum(count[kind].values()) for count in cells}
        what = "none: false alarms" if size == 0 else f"{_size(size)} in {_place(place)}: missed"
        rows.append([what, *(f"{found[name]} of {cells[0]['trials']}" for name in contestants)])
    return rows


def _size(size: float) -> str:
    return "factor 2" if size == 1 else f"{size:.0e}"


def _place(place: str) -> str:
    return f"{'the ' if place.startswith('whole') else ''}{place}"


def speed(figures: dict[str, Any]) -> Rows:
    """Seconds, and how many times longer the others take, a row a model."""
    rows: Rows = [
        ["model", "coordinates", "check_module", "textbook loop", "gradcheck, slow", "peak memory", "share of limit"]
    ]
    for timing in figures["timings"]:
        slower, subset = timing["times_slower"], timing["tried"]
        others = [
            f"{slower[name]:.1f} ×{'*' if subset[name] < timing['coordinates'] else ''}"
            for name in ("textbook loop", "autograd.gradcheck")
        ]
        ours = "check_module"
        rows.append(
            [
                timing["case"],
                f"{timing['coordinates']:,}",
                f"{timing['median_seconds'][ours]:.2f} s",
                *others,
                f"{timing['peak_mib'][ours]:.0f} MiB",
                f"{timing['share_of_limit']:.0%}",
            ]
        )
    return rows


def large(figures: dict[str, Any]) -> Rows:
    """Seconds, evaluations, and what was said, a row a model and mistake."""
    rows: Rows = [["model", "mistake", "torch_gradcheck", "J", "says", "gradcheck, fast mode", "says"]]
    ours, theirs = "torch_gradcheck", "gradcheck fast_mode"
    for timing in figures["timings"]:
        seconds, accused = timing["median_seconds"], timing["accused"]
        named, count = ", ".join(timing["named"]), max(timing["wrong"])
        said = f"{count:,} wrong in `{named}`" if accused[ours] else "right"
        mistake = timing["mistake"]
        rows.append(
            [
                f"{timing['case']} ({timing['coordinates']:,})",
                mistake if mistake == "none" else f"{mistake}: `{timing['parameter']}`",
                f"{seconds[ours]:.1f} s",
                f"{timing['evaluations']}",
                said,
                f"{seconds[theirs]:.1f} s",
                "wrong" if accused[theirs] else "right",
            ]
        )
    return rows


def shapes(figures: dict[str, Any]) -> Rows:
    """CPU seconds, evaluations, memory beside the model and what was said, a row a shape and mistake."""
    rows: Rows = [["shape", "mistake", "CPU", "J", "peak", "bytes a parameter", "says"]]
    for each in figures["shapes"]:
        said = f"{each['wrong']:,} wrong in `{', '.join(each['named'])}`" if each["wrong"] else "right"
        rows.append(
            [
                f"{each['shape']} ({each['parameters']:,})",
                "none" if each["gradients"] == "right" else each["gradients"],
                f"{each['cpu_seconds']:.0f} s",
                f"{each['evaluations']}",
                f"{each['peak_bytes'] / 2**30:.1f} GiB",
                f"{each['bytes_a_parameter']:.1f}",
                said if each["passed"] or each["wrong"] else "not proven",
            ]
        )
    return rows


def wrong(figures: dict[str, Any]) -> Rows:
    """CPU seconds of a right and of a wrong check and evaluations of J, a row a model."""
    rows: Rows = [["model", "parameters", "right", "J + record", "wrong", "J + record", "wrong / right", "culprit"]]
    mistake = "5 % too large"
    for row in figures["comparisons"]:
        right, spoiled = row["right"], row["wrong"][mistake]
        culprit = row["culprit"][mistake]
        rows.append(
            [
                row["case"],
                f"{row['parameters']:,}",
                f"{right['seconds']:.3g} s",
                f"{right['plain']:,} + {right['recorded']:,}",
                f"{spoiled['seconds']:.3g} s",
                f"{spoiled['plain']:,} + {spoiled['recorded']:,}",
                f"{row['ratio'][mistake]:.2f}",
                f"`{culprit}`" if culprit else "-",
            ]
        )
    return rows


def functions(figures: dict[str, Any]) -> Rows:
    """Alarms, misses and CPU time over torch's operators, a row a contestant."""
    count, entries = figures["operators"], figures["median_entries"]
    rows: Rows = [
        [
            f"{count} operators, {entries:.0f} numbers (median)",
            "false alarms",
            "alarms with a reason",
            "factor 1.01 missed",
            "median",
            "90 %",
        ]
    ]
    for name, found in figures["summary"].items():
        missed = f"{found['planted'] - found['found']} of {found['planted']}"
        times = [f"{1000 * found[key]:.0f} ms" for key in ("median_seconds", "p90_seconds")]
        rows.append([name, str(len(found["false"])), str(found["explained"]), missed, *times])
    return rows


def kernels(figures: dict[str, Any]) -> Rows:
    """False alarms and misses by kind of kernel, a column a contestant; of each dtype, beside one another."""
    contestants, dtypes = figures["contestants"], list(figures["alarms"])
    rows: Rows = [[" · ".join(dtypes), "kernels", *contestants]]
    for what, name in (("alarms", "right, {}: false alarms"), ("misses", "{}: missed")):
        for kind in dict.fromkeys(kind for dtype in dtypes for kind in figures[what][dtype]):
            counts = [figures[what][dtype].get(kind) for dtype in dtypes]
            rows.append([name.format(kind), *(_beside(counts, key) for key in ("cases", *contestants))])
    return rows


def _beside(counts: Iterable[dict[str, int | None] | None], key: str) -> str:
    found = [None if count is None else count[key] for count in counts]
    return " · ".join("-" if number is None else str(number) for number in found)


def smallest(figures: dict[str, Any]) -> Rows:
    """The smallest error of a gradient that is found, by the number of its entries: ours beside one of the rules."""
    dtypes, contestants = figures["smallest"], figures["contestants"]
    rows: Rows = [["entries", *(f"{dtype}, {name}" for dtype in dtypes for name in contestants[:2])]]
    for count in next(iter(dtypes.values())):
        found = [dtypes[dtype][count][name] for dtype in dtypes for name in contestants[:2]]
        rows.append([f"{int(count):,}", *("-" if error is None else f"{100 * error:g} %" for error in found)])
    return rows


def comparison(figures: dict[str, Any]) -> Rows:
    """False alarms, misses, what is named and CPU time, a row a contestant."""
    rows: Rows = [
        ["", "right ones accused", "mistakes missed", "names the argument", "names the entry", "CPU (median)"]
    ]
    for name, score in figures["scores"].items():
        found, planted = (sum(score[key].values()) for key in ("found", "planted"))
        rows.append(
            [
                name,
                f"{len(score['false_alarms'])} of {len(figures['cases'])}",
                f"{planted - found} of {planted}",
                f"{score['named_argument']} of {found}",
                f"{score['named_entry']} of {score['found_in_entry']}",
                f"{1000 * median(score['cpu_seconds'].values()):.1f} ms",
            ]
        )
    return rows


def by_mistake(figures: dict[str, Any]) -> Rows:
    """Misses, a row a kind of mistake and a column a contestant."""
    scores = figures["scores"]
    rows: Rows = [["missed", *scores]]
    for kind in next(iter(scores.values()))["planted"]:
        missed = [(score["planted"][kind] - score["found"][kind], score["planted"][kind]) for score in scores.values()]
        rows.append([kind, *(f"{count} of {planted}" for count, planted in missed)])
    return rows


def by_function(figures: dict[str, Any]) -> Rows:
    """Which right functions are accused, a row a function and a column a contestant."""
    scores = figures["scores"]
    rows: Rows = [["right function", "what is hard about it", *scores]]
    for case, difficulty in figures["cases"].items():
        said = ["accused" if case in score["false_alarms"] else "passes" for score in scores.values()]
        rows.append([case, difficulty or "nothing", *said])
    return rows


IN_SHORT = {
    "detection": ("none: false alarms", "1e-02 in one entry", "1e-04 in one entry"),
    "speed": ("MLP", "LeNet-5", "transformer encoder"),
}
"""Table to how the rows begin that README has of it."""

COLUMNS = {"detection": range(6), "speed": range(5)}
"""Table to its columns that README has."""


def in_short(name: str, table: Callable[[dict[str, Any]], Rows]) -> Callable[[dict[str, Any]], Rows]:
    """The table with the rows and columns that README has of it."""

    def shortened(figures: dict[str, Any]) -> Rows:
        head, *body = table(figures)
        rows = [row for row in body if row[0].startswith(IN_SHORT[name])]
        return [[row[column] for column in COLUMNS[name]] for row in [head, *rows]]

    return shortened


TABLES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "detection": detection,
    "functions": functions,
    "speed": speed,
    "large": large,
    "shapes": shapes,
    "wrong": wrong,
    "kernels": kernels,
    "smallest": smallest,
    "comparison": comparison,
    "comparison-mistakes": by_mistake,
    "comparison-functions": by_function,
    "detection-in-short": in_short("detection", detection),
    "speed-in-short": in_short("speed", speed),
}
"""Name of a mark, and mostly of the file of results, to what makes its table."""

FILES = {
    "shapes": "large",
    "smallest": "kernels",
    "comparison-mistakes": "comparison",
    "comparison-functions": "comparison",
    "detection-in-short": "detection",
    "speed-in-short": "speed",
}
"""Mark to the file of results, where it has another name."""


def markdown(rows: Rows) -> str:
    """The rows as a table of GitHub's markdown; the first one is its head."""
    head, *body = rows
    return "\n".join(map(_line, [head, ["---"] * len(head), *body]))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_tables(text: str) -> str:
    """The text with what stands between `<!-- NAME -->` and `<!-- /NAME -->` written anew."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        content = markdown(table(json.loads((RESULTS / f"{FILES.get(name, name)}.json").read_text())))
        text = marked.sub(rf"\g<1>{content}\n\g<2>", text)
    return text


if __name__ == "__main__":
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        page.write_text(with_tables(page.read_text()))
