"""check_function over torch's own table of operators, beside torch.autograd.gradcheck in slow and in fast mode.

    pip install expecttest                     # torch's table of operators is part of its tests, which need it
    python benchmarks/functions.py             # writes benchmarks/results/functions.json, 10 minutes
    python benchmarks/functions.py --quick     # twelve operators, one turn; writes nothing without --json

Each operator that torch declares differentiable in float64 on the CPU is checked as it is, at one small sample of its
arguments, and once more with a mistake planted: the gradient of one input is 1.01 times what it should be. All three
are called with their default arguments. CPU seconds of one thread, the median of the turns, in which the three take
turns after one that is not counted; check_function also tries its contract in them, eleven entries of what others rely
on, of which gradcheck tries three.

An alarm is a mismatch or a failed entry of the contract of an operator as it is, or that gradcheck raises. It is
explained where `explanations.py` says what is wrong with the operator; all others are false.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd import Function
from torch.autograd.gradcheck import GradcheckError

from environment import environment
from explanations import EXPLANATIONS, is_explained
from operators import SMALL, Case, case_of, differentiable, name_of, operators
from torch_gradcheck import Report, Status, check_function
from torch_gradcheck.reporting.facts import ContractStatus

RESULTS = Path(__file__).parent / "results" / "functions.json"

WIDTH = 130
"""Of the printed table."""

FACTOR = 1.01
"""Of the planted mistake."""

RESOLVED = 1e-8
"""A gradient below this is rounding: 1 % of it is no mistake that anyone could see."""

OURS, SLOW, FAST = "check_function", "gradcheck slow", "gradcheck fast"

QUICK = ("sin", "mm", "cumprod", "sort", "linalg.inv", "complex", "amax", "where", "norm", "erfinv", "stack", "normal")
"""A dozen operators of all kinds; torch says of the last one that its gradients are wrong."""


@dataclass(frozen=True)
class Said:
    """What a contestant said of a case.

    Attributes:
        alarms: what it calls wrong, in words; none where all is right.
        wrong: the positions of the inputs whose gradient it calls wrong; None where it does not say which.
        unproven: how many inputs it vouches for neither way.
        error: what it raised instead of a verdict.
    """

    alarms: tuple[str, ...] = ()
    wrong: tuple[int, ...] | None = None
    unproven: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Checked:
    """A case checked by one contestant.

    Attributes:
        seconds: CPU seconds, the median of the turns.
        right: what it said of the operator as it is.
        planted: what it said of the operator with the mistake; None where no input has a gradient to plant one in.
    """

    seconds: float
    right: Said
    planted: Said | None


@dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        entries: how many real numbers were on trial.
        place: the position of the input in whose gradient the mistake is; None where every gradient is zero.
        contestants: contestant → what it said, and its seconds.
    """

    operator: str
    entries: int
    place: int | None
    contestants: dict[str, Checked]


# The mistake ------------------------------------------------------------------------------------------------------


class Scaled(Function):
    """The identity, with a gradient that is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        """The input."""
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ARG004
        """Too much of it."""
        return FACTOR * gradients[0]


scaled: Callable[[Tensor], Tensor] = Scaled.apply


def planted(case: Case, place: int) -> Case:
    """The case with the mistake in the gradient of one input."""

    def function(*tensors: Tensor) -> Any:
        given = list(tensors)
        given[place] = scaled(given[place])
        return case.function(*given)

    return replace(case, function=function)


def place_of(case: Case) -> int | None:
    """The first input whose gradient is not zero; a factor in one that is zero is no mistake."""
    outputs = differentiable(case.function(*case.inputs))
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.rand(y.shape, dtype=torch.float64, generator=generator).to(y.dtype) + 0.5 for y in outputs]
    gradients = torch.autograd.grad(outputs, case.inputs, cotangents, allow_unused=True)
    sizes = [0.0 if g is None else float(g.to_dense().abs().max()) for g in list[Tensor | None](gradients)]
    return next((position for position, size in enumerate(sizes) if size > RESOLVED), None)


# The contestants --------------------------------------------------------------------------------------------------


def ours(case: Case) -> Said:
    """check_function with its defaults."""
    report = check_function(case.function, case.inputs)
    wrong = {position: row.name for position, row in enumerate(report) if row.status is Status.MISMATCH}
    failed = [f"{entry.name}: {entry.message}" for entry in report.contract if entry.status is ContractStatus.FAILED]
    return Said((*(f"mismatch: {name}" for name in wrong.values()), *failed), tuple(wrong), unproven_of(report))


def unproven_of(report: Report) -> int:
    """How many inputs are flat, unused or undecided."""
    return sum(not row.status.is_proven and row.status is not Status.MISMATCH for row in report)


def gradcheck(case: Case, fast: bool) -> Said:
    """torch.autograd.gradcheck with its defaults."""
    try:
        torch.autograd.gradcheck(case.function, case.inputs, fast_mode=fast)
    except GradcheckError as error:
        return Said((str(error)[:300],))
    return Said()


CONTESTANTS: dict[str, Callable[[Case], Said]] = {
    OURS: ours,
    SLOW: lambda case: gradcheck(case, fast=False),
    FAST: lambda case: gradcheck(case, fast=True),
}


def said(contestant: str, case: Case) -> Said:
    """What a contestant says, or what it raises."""
    try:
        return CONTESTANTS[contestant](case)
    except Exception as error:  # of any kind: that it ends the check is a figure
        return Said(error=f"{type(error).__name__}: {str(error)[:300]}")


# The measurement --------------------------------------------------------------------------------------------------


def checked(case: Case, turns: int) -> Row:
    """The case as it is and with the mistake, by every contestant."""
    place = place_of(case)
    right = {name: said(name, case) for name in CONTESTANTS}
    wrong = {name: None if place is None else said(name, planted(case, place)) for name in CONTESTANTS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(turns):
        for name in CONTESTANTS:
            started = time.process_time()
            said(name, case)
            seconds[name].append(time.process_time() - started)
    contestants = {name: Checked(median(seconds[name]), right[name], wrong[name]) for name in CONTESTANTS}
    return Row(case.name, case.entries, place, contestants)


def rows_of(names: Sequence[str], turns: int, small: int, console: Console) -> tuple[list[Row], dict[str, str]]:
    """The operators with these names, all where there are none, and why others were left out."""
    rows, left_out = [], {}
    for operator in operators():
        name = name_of(operator)
        if names and name not in names:
            continue
        case = case_of(operator, small)
        if isinstance(case, str):
            left_out[name] = case
            continue
        rows.append(checked(case, turns))
        for said_wrong in rows[-1].contestants[OURS].right.alarms:
            console.print(f"{name}: {said_wrong}", highlight=False)
    return rows, left_out


# The figures ------------------------------------------------------------------------------------------------------


def alarms_of(rows: Iterable[Row], contestant: str) -> dict[str, list[str]]:
    """Operator → what the contestant calls wrong of it as it is, or raises."""
    found = {row.operator: row.contestants[contestant].right for row in rows}
    return {
        name: [*said.alarms, *([said.error] if said.error else [])]
        for name, said in found.items()
        if said.alarms or said.error
    }


def summary_of(rows: Sequence[Row], contestant: str) -> dict[str, Any]:
    """The figures of one contestant."""
    alarms = alarms_of(rows, contestant)
    false = [name for name, said in alarms.items() if not all(is_explained(name, each) for each in said)]
    tried = [row for row in rows if row.place is not None]
    found = [row for row in tried if _is_found(row, contestant)]
    seconds = [row.contestants[contestant].seconds for row in rows]
    rights = [row.contestants[contestant].right for row in rows]
    return {
        "alarms": len(alarms),
        "explained": len(alarms) - len(false),
        "false": sorted(false),
        "errors": sum(right.error is not None for right in rights),
        "unproven": sum(right.unproven > 0 for right in rights),
        "planted": len(tried),
        "found": len(found),
        "exactly": sum(_is_found_exactly(row, contestant) for row in found),
        "missed": sorted(row.operator for row in tried if row not in found),
        "median_seconds": median(seconds),
        "p90_seconds": quantiles(seconds, n=10)[-1] if len(seconds) > 1 else seconds[0],
        "total_seconds": sum(seconds),
        "times_slow": median(own.contestants[contestant].seconds / own.contestants[SLOW].seconds for own in rows),
    }


def _is_found(row: Row, contestant: str) -> bool:
    """Whether the mistake was called one; check_function has to call the input's gradient wrong."""
    planted = row.contestants[contestant].planted
    assert planted is not None, "only of operators with a place"
    return bool(planted.alarms) if planted.wrong is None else row.place in planted.wrong


def _is_found_exactly(row: Row, contestant: str) -> bool:
    planted = row.contestants[contestant].planted
    return planted is not None and planted.wrong == (row.place,)


def figures_of(rows: Sequence[Row], left_out: Mapping[str, str]) -> dict[str, Any]:
    """All of it, ready for JSON."""
    return {
        "operators": len(rows),
        "median_entries": median(row.entries for row in rows),
        "left_out": left_out,
        "explanations": EXPLANATIONS,
        "summary": {name: summary_of(rows, name) for name in CONTESTANTS},
        "alarms": {name: alarms_of(rows, name) for name in CONTESTANTS},
        "seconds": {
            row.operator: {"entries": row.entries}
            | {name: round(row.contestants[name].seconds, 5) for name in CONTESTANTS}
            for row in rows
        },
    }


def table(rows: Sequence[Row]) -> Table:
    """One row a contestant."""
    verdicts = ("alarms", "explained", "false", "errors", "planted", "found", "exactly there")
    shown = Table("", *verdicts, "median", "90 %", "× slow")
    for name in CONTESTANTS:
        figures = summary_of(rows, name)
        shown.add_row(
            name,
            *(str(figures[key]) for key in ("alarms", "explained")),
            str(len(figures["false"])),
            *(str(figures[key]) for key in ("errors", "planted", "found")),
            str(figures["exactly"]) if name == OURS else "-",
            *(f"{1000 * figures[key]:.1f} ms" for key in ("median_seconds", "p90_seconds")),
            f"{figures['times_slow']:.2f}",
        )
    return shown


def main() -> None:
    """Reads the command line, checks, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns on each operator (default: 3)")
    parser.add_argument("--quick", action="store_true", help="a dozen operators, one turn; writes nothing")
    parser.add_argument("--operators", nargs="+", default=[], help="names in torch's table; default: all")
    parser.add_argument("--small", type=int, default=SMALL, help=f"real numbers in a sample (default: {SMALL})")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of operators that are deprecated, and of samples that are resized
    console = Console(width=WIDTH)
    names, turns = (QUICK, 1) if arguments.quick else (arguments.operators, arguments.repeats)
    rows, left_out = rows_of(names, turns, arguments.small, console)
    console.print(table(rows))
    path = arguments.json or (None if arguments.quick or names else RESULTS)
    if path:
        figures = {"environment": environment(), **figures_of(rows, left_out)}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
