"""What N processes bring for a model of P parameters: a formula with constants measured by `processes.py`.

    python benchmarks/scaling.py        # rewrites what stands between the marks in docs/theory/scaling.md

With N ranks a check takes T(N) = a + b / min(N, n) + m. Here a is what every rank, or the leader alone, does whatever N
is; b is what is split; n is into how many parts it can be; m is what messages take that grows with N. Of each model a
and b are the solution of two measurements, T(1) and T(2) in CPU seconds of the busiest rank. T(4) is then predicted and
compared with what was measured.

For a model of another size a and b are counted in evaluations of J, b of the exact method for each coordinate, and an
evaluation takes τ · P seconds.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from readme_tables import Rows, markdown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "theory" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"

PARAMETERS = (10**6, 10**7, 10**8, 10**9)
"""Sizes of the models that are forecast."""

RANKS = {"exact": (1, 2, 8, 64, 1024), "projected": (1, 2, 4, 8, 16)}
"""Numbers of ranks that they are forecast for."""

PAIRS = {"exact": 10**12, "projected": 8}
"""Into how many parts the work can be split: coordinates, and the directions that are tried at a time."""

BYTES_A_COORDINATE = 64
"""Bytes that the leader sends and receives for a coordinate: two samples, of each a coordinate, a step, the step taken
and the value."""


@dataclass(frozen=True)
class Fit:
    """What a check takes on N ranks, as measured on one and two.

    Attributes:
        case: the model.
        method: exact or projected.
        coordinates: the size of θ.
        set_up: a in CPU seconds, 0 at least.
        split: b in CPU seconds.
        evaluation: CPU seconds of one evaluation of J.
        measured: size of the group to CPU seconds of the busiest rank.
    """

    case: str
    method: str
    coordinates: int
    set_up: float
    split: float
    evaluation: float
    measured: dict[int, float]

    def seconds(self, ranks: int) -> float:
        """CPU seconds of the busiest of so many ranks."""
        return self.set_up + self.split / min(ranks, PAIRS[self.method])


def fit(comparison: dict[str, Any]) -> Fit:
    """The constants of one model."""
    measured = {int(size): median(seconds) for size, seconds in comparison["busiest"].items()}
    split = min(2 * (measured[1] - measured[2]), measured[1])
    return Fit(
        case=comparison["case"],
        method=comparison["method"],
        coordinates=comparison["coordinates"],
        set_up=measured[1] - split,
        split=split,
        evaluation=comparison["evaluation"],
        measured=measured,
    )


def fits(figures: dict[str, Any]) -> Rows:
    """The constants of every model, and T(4) as predicted and as measured."""
    rows: Rows = [["check", "coordinates", "T(1)", "T(2)", "a", "b", "T(4) predicted", "measured", "T(∞) / T(1)"]]
    for each in [fit(found) for found in figures["comparisons"] if found["method"] in PAIRS]:
        numbers = [each.measured[1], each.measured[2], each.set_up, each.split, each.seconds(4), each.measured[4]]
        limit = each.seconds(10**12) / each.measured[1]
        rows.append([each.case, f"{each.coordinates:,}", *(f"{s:.2f} s" for s in numbers), f"{limit:.2f}"])
    return rows


def messages(figures: dict[str, Any]) -> Rows:
    """What messages take with two ranks."""
    rows: Rows = [["check", "rounds", "messages", "carried", "a coordinate", "CPU of messages", "of the busiest rank"]]
    for each in figures["comparisons"]:
        costs = each["costs"]["2"]
        sent = costs[0]["carried"]
        spent = max(cost["message_cpu"] for cost in costs)
        rows.append(
            [
                each["case"],
                f"{costs[0]['rounds']:,}",
                f"{costs[0]['messages']:,}",
                f"{sent / 2**20:.1f} MiB",
                f"{sent / each['coordinates']:.0f} bytes",
                f"{spent:.2f} s",
                f"{spent / median(each['busiest']['2']):.1%}",
            ]
        )
    return rows


def processes(figures: dict[str, Any]) -> Rows:
    """CPU seconds of the busiest rank, and wall seconds, beside those of one process."""
    rows: Rows = [
        ["check", "coordinates", "one process", "busiest of 2", "of 4", "wall of 2", "wall of 4", "says the same"]
    ]
    for each in figures["comparisons"]:
        ratios = [f"{each[kind][size]:.2f}" for kind in ("busiest_ratio", "wall_ratio") for size in ("2", "4")]
        same = "yes" if all(each["same"].values()) else "no"
        rows.append([each["case"], f"{each['coordinates']:,}", f"{median(each['busiest']['1']):.1f} s", *ratios, same])
    return rows


@dataclass(frozen=True)
class Constants:
    """The formula's constants for models of any size.

    Attributes:
        evaluation_a_parameter: τ, CPU seconds of an evaluation of J for each parameter, of the GPT-2.
        set_up: method to a, in evaluations of J.
        split: method to b, in evaluations of J; of the exact method for each coordinate.
        message_a_byte: CPU seconds for each byte that the leader sends or is sent, of the convnet.
    """

    evaluation_a_parameter: float
    set_up: dict[str, float]
    split: dict[str, float]
    message_a_byte: float

    def seconds(self, method: str, parameters: int, ranks: int) -> float:
        """T(N) for a model of so many parameters."""
        evaluation = self.evaluation_a_parameter * parameters
        split = self.split[method] * (parameters if method == "exact" else 1)
        sent = BYTES_A_COORDINATE * parameters if method == "exact" and ranks > 1 else 0
        return evaluation * (self.set_up[method] + split / min(ranks, PAIRS[method])) + sent * self.message_a_byte


def constants(figures: dict[str, Any]) -> Constants:
    """The constants that `processes.json` holds.

    Of the exact method what is split is that of the transformer encoder, an evaluation of which is of the kind that a
    language model's is, and a that of the convnet, whose evaluation is the dearest: where one takes less than a
    millisecond, a is mostly Python.
    """
    cases = {each["case"]: each for each in figures["comparisons"]}
    gpt, encoder, convnet = (fit(cases[name]) for name in ("GPT-2", "transformer encoder", "convnet"))
    leader = cases["convnet"]["costs"]["2"][0]
    return Constants(
        evaluation_a_parameter=gpt.evaluation / gpt.coordinates,
        set_up={"exact": convnet.set_up / convnet.evaluation, "projected": gpt.set_up / gpt.evaluation},
        split={
            "exact": encoder.split / encoder.evaluation / encoder.coordinates,
            "projected": gpt.split / gpt.evaluation,
        },
        message_a_byte=leader["message_cpu"] / leader["carried"],
    )


def forecast(method: str, figures: dict[str, Any]) -> Rows:
    """T(N) for models of several sizes, and the number of ranks at which half of the time is not split."""
    known = constants(figures)
    rows: Rows = [["parameters", *(f"{ranks:,} {'rank' if ranks == 1 else 'ranks'}" for ranks in RANKS[method])]]
    for parameters in PARAMETERS:
        seconds = [known.seconds(method, parameters, ranks) for ranks in RANKS[method]]
        rows.append([f"{parameters:.0e}".replace("e+0", "e"), *map(spoken, seconds)])
    return rows


def spoken(seconds: float) -> str:
    """A time in two digits and the unit that suits it."""
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400, "years": 31557600}
    unit = next((unit for unit, size in units.items() if seconds < (1000 if unit == "days" else 100) * size), "years")
    return f"{float(f'{seconds / units[unit]:.2g}'):,g} {unit}"


def with_figures(text: str) -> str:
    """The page with what stands between `<!-- NAME -->` and `<!-- /NAME -->` written anew."""
    figures = json.loads((RESULTS / "processes.json").read_text())
    tables = {
        "processes": processes(figures),
        "messages": messages(figures),
        "fits": fits(figures),
        "exact": forecast("exact", figures),
        "projected": forecast("projected", figures),
    }
    for name, rows in tables.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = marked.subn(rf"\g<1>{markdown(rows)}\n\g<2>", text)
        assert count == 1, f"{PAGE.name} has {count} places marked {name}"
    return text


if __name__ == "__main__":
    PAGE.write_text(with_figures(PAGE.read_text()))
