"""check_function(kernel, inputs, reference=plain) beside the rules by which other projects test their kernels.

    python benchmarks/kernels.py           # writes benchmarks/results/kernels.json, six minutes
    python benchmarks/kernels.py --quick   # three operations, few seeds; writes nothing without --json

Sixteen operations (`kernel_operations.py`) in bfloat16, float16 and float32. Right kernels, over twenty seeds, are in
turn in float32 inside, in float32 by tiles of seven rows, and in their own dtype with every intermediate rounded:
where a rule calls any tensor wrong, that is a false alarm. Wrong ones have one mistake each (`kernel_mistakes.py`),
which is found where a tensor is called wrong that it shows in, and missed else. All rules (`comparison_rules.py`) see
the same inputs and upstream gradients in one run, signed and not uniform; a mistake that upstream gradients of 1 hide
is judged under those as well, by the rules of others, whose tests choose them.

Then the smallest factor of one gradient that each of them finds, by the number of its entries; and CPU seconds of one
thread: of a check, beside one comparison, which is a forward and a backward of the kernel, of the plain code in
float32, and of the plain code in the kernel's dtype.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from comparison_rules import RULES, Tensors
from environment import environment
from fused_kernels import Argument, Kernel, Mistake, Operation
from kernel_mistakes import OUTPUT, UNIFORM, planted, times
from kernel_operations import OPERATIONS, silu_mul, silu_mul_backward
from torch_gradcheck import check_function
from torch_gradcheck.objective.function_outputs import drawn
from torch_gradcheck.reporting.facts import ContractStatus

RESULTS = Path(__file__).parent / "results" / "kernels.json"

WIDTH = 150
"""Of the printed table."""

OURS = "torch_gradcheck"

CONTESTANTS = (OURS, *RULES)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

TWINS = {
    "in float32": partial(Kernel, precision=torch.float32),
    "in float32, by tiles": partial(Kernel, precision=torch.float32, tile=7),
    "in its own dtype": partial(Kernel, precision=None),
}
"""Kinds of right kernels."""

ENTRIES = (10, 100, 1_000, 10_000, 100_000)
"""Of the gradient whose smallest visible factor is looked for."""

ERRORS = (0.5, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 5e-3, 3e-3, 2e-3, 1e-3, 5e-4, 2e-4, 1e-4, 5e-5)
"""How much too large that gradient is, tried in this order."""

QUICK = ("gelu", "softmax", "rms_norm")


@dataclass(frozen=True)
class Case:
    """One kernel at one set of inputs, judged by all.

    Attributes:
        operation, dtype: of the kernel.
        kind: of the twin, or of the mistake.
        rows: the tensors that the mistake may show in; none of a right kernel.
        wrong: contestant → the tensors that it calls wrong; of those that were asked.
        broken: what our contract calls broken, in words.
        seconds: CPU seconds of our check and of one comparison.
    """

    operation: str
    dtype: str
    kind: str
    rows: frozenset[str]
    wrong: dict[str, list[str]]
    broken: list[str]
    seconds: tuple[float, float]

    @property
    def name(self) -> str:
        """For lists of false alarms and misses."""
        return f"{self.operation}, {self.dtype}, {self.kind}"

    def is_found(self, contestant: str) -> bool:
        """Whether the contestant calls a tensor wrong that is."""
        return bool(self.rows.intersection(self.wrong[contestant]))

    def accused(self, contestant: str) -> list[str]:
        """The tensors that the contestant calls wrong though they are right."""
        return [name for name in self.wrong.get(contestant, []) if name not in self.rows]


# One kernel -------------------------------------------------------------------------------------------------------


def tensors_of(function: Any, operation: Operation, inputs: Sequence[Tensor], v: Tensor) -> dict[str, Tensor]:
    """The output and the gradients under `v`, by the name of their row."""
    leaves = [each.detach().clone().requires_grad_(each.requires_grad) for each in inputs]
    output = function(*leaves)
    wanted = [each for each in leaves if each.requires_grad]
    gradients = torch.autograd.grad(output, wanted, v.to(output.dtype).reshape(output.shape))
    return {**dict(zip(operation.on_trial, gradients, strict=True)), OUTPUT: output.detach()}


def upstream(output: Tensor, seed: int) -> Tensor:
    """The gradient that a check with this seed gives an output: signed, of sizes between ½ and 1½, and rounded."""
    return drawn(seed, output).to(output.dtype)


def sides_of(kernel: Kernel, inputs: Sequence[Tensor], v: Tensor) -> dict[str, Tensors]:
    """What the rules of others compare, of each tensor."""
    operation, dtype = kernel.operation, v.dtype
    exactly = torch.float64 if dtype is torch.float32 else torch.float32
    raised = [each.detach().to(exactly).requires_grad_() if each.requires_grad else each for each in inputs]
    candidate = tensors_of(kernel.function(), operation, inputs, v)
    exact = tensors_of(operation.plain, operation, raised, v)
    plain = tensors_of(operation.plain, operation, inputs, v)
    return {name: Tensors(candidate[name], exact[name].to(dtype), plain[name]) for name in candidate}


def judged_by_rules(sides: dict[str, Tensors]) -> dict[str, list[str]]:
    """Rule → the tensors that it calls wrong."""
    return {rule: [name for name, each in sides.items() if not is_right(each)] for rule, is_right in RULES.items()}


def judged(kernel: Kernel, dtype: str, seed: int, kind: str = "", rows: frozenset[str] = frozenset()) -> Case:
    """The kernel at the inputs of this seed, by all contestants."""
    operation, inputs = kernel.operation, kernel.operation.inputs(DTYPES[dtype], seed)
    v = upstream(operation.plain(*inputs).detach(), seed)
    started = time.process_time()
    sides = sides_of(kernel, inputs, v)
    compared = time.process_time()
    report = check_function(kernel.function(), inputs, reference=operation.plain, seed=seed)
    seconds = (time.process_time() - compared, compared - started)
    wrong = {OURS: [row.name for row in report.mismatches], **judged_by_rules(sides)}
    broken = [f"{each.name}: {each.message}" for each in report.contract if each.status is ContractStatus.FAILED]
    return Case(operation.name, dtype, kind, rows, wrong, broken, seconds)


def judged_under_ones(kernel: Kernel, dtype: str, seed: int, kind: str, rows: frozenset[str]) -> Case:
    """The kernel under upstream gradients of 1, by the rules of others."""
    inputs = kernel.operation.inputs(DTYPES[dtype], seed)
    ones = torch.ones_like(kernel.operation.plain(*inputs))
    wrong = judged_by_rules(sides_of(kernel, inputs, ones.detach()))
    return Case(kernel.operation.name, dtype, f"{kind}, under ones", rows, wrong, [], (0.0, 0.0))


# All of them ------------------------------------------------------------------------------------------------------


def right_cases(operations: Iterable[Operation], seeds: int) -> Iterator[Case]:
    """Right kernels, the kinds of twins in turn."""
    kinds = list(TWINS)
    for operation in operations:
        for dtype in DTYPES:
            for seed in range(seeds):
                kind = kinds[seed % len(kinds)]
                yield judged(TWINS[kind](operation), dtype, seed, kind)


def wrong_cases(operations: Iterable[Operation], turns: int) -> Iterator[Case]:
    """Wrong kernels, every mistake once a turn."""
    for place, operation in enumerate(operations):
        for dtype in DTYPES:
            for turn in range(turns):
                for each in planted(operation, DTYPES[dtype], place + turn):
                    kernel = Kernel(operation, mistake=each.mistake)
                    yield judged(kernel, dtype, turn, each.name, each.rows)
                    if each.name == UNIFORM:
                        yield judged_under_ones(kernel, dtype, turn, each.name, each.rows)


def smallest_errors(entries: int, dtype: str, turns: int) -> dict[str, float | None]:
    """Contestant → the smallest of `ERRORS` that it finds in every turn, with all larger ones; None: it finds none."""
    flat = Argument((entries,))
    operation = Operation(silu_mul, silu_mul, silu_mul_backward, {"a": flat, "b": flat})
    found: dict[str, float | None] = dict.fromkeys(CONTESTANTS)
    looking = set(CONTESTANTS)
    for error in ERRORS:
        kernel = Kernel(operation, mistake=Mistake("a", times(1 + error)))
        cases = [judged(kernel, dtype, turn, rows=frozenset({"a"})) for turn in range(turns)]
        looking = {each for each in looking if all(case.is_found(each) for case in cases)}
        found |= dict.fromkeys(looking, error)
        if not looking:
            break
    return found


# The figures ------------------------------------------------------------------------------------------------------


def figures_of(right: Sequence[Case], wrong: Sequence[Case], smallest: Any) -> dict[str, Any]:
    """All of it, ready for JSON."""
    return {
        "operations": len({case.operation for case in right}),
        "contestants": CONTESTANTS,
        "alarms": {dtype: counted([case for case in right if case.dtype == dtype], is_accused) for dtype in DTYPES},
        "misses": {dtype: counted([case for case in wrong if case.dtype == dtype], is_missed) for dtype in DTYPES},
        "accused": {name: [case.name for case in wrong if case.accused(name)] for name in CONTESTANTS},
        "false": {name: sorted({case.name for case in right if case.wrong[name]}) for name in CONTESTANTS},
        "missed": sorted({case.name for case in wrong if OURS in case.wrong and is_missed(case, OURS)}),
        "broken": sorted({f"{case.name}: {each}" for case in (*right, *wrong) for each in case.broken}),
        "smallest": smallest,
        "seconds": seconds_of(right),
    }


def counted(cases: Sequence[Case], is_one: Callable[[Case, str], bool]) -> dict[str, dict[str, int | None]]:
    """Kind → how many kernels there are, and of how many something is true of each contestant; None if not asked."""
    found: dict[str, dict[str, int | None]] = {}
    for kind in dict.fromkeys(case.kind for case in cases):
        alike = [case for case in cases if case.kind == kind]
        asked = {name: [case for case in alike if name in case.wrong] for name in CONTESTANTS}
        counts = {name: sum(is_one(case, name) for case in those) if those else None for name, those in asked.items()}
        found[kind] = {"cases": len(alike), **counts}
    return found


def is_accused(case: Case, contestant: str) -> bool:
    """Whether the contestant calls any tensor wrong."""
    return bool(case.wrong[contestant])


def is_missed(case: Case, contestant: str) -> bool:
    """Whether the contestant calls no tensor wrong that is."""
    return not case.is_found(contestant)


def seconds_of(cases: Sequence[Case]) -> dict[str, float]:
    """Medians of a check, of one comparison, and of their quotients."""
    return {
        "check": median(case.seconds[0] for case in cases),
        "comparison": median(case.seconds[1] for case in cases),
        "times": median(case.seconds[0] / case.seconds[1] for case in cases),
    }


def table(figures: dict[str, Any]) -> Table:
    """False alarms, and misses by mistake, of each dtype."""
    shown = Table("", *CONTESTANTS)
    for what in ("alarms", "misses"):
        for dtype in DTYPES:
            for kind, counts in figures[what][dtype].items():
                cells = ["-" if counts[name] is None else str(counts[name]) for name in CONTESTANTS]
                shown.add_row(f"{what}: {dtype}, {kind}, of {counts['cases']}", *cells)
    accused = figures["accused"]
    shown.add_row("right tensors of wrong kernels accused", *(str(len(accused[name])) for name in CONTESTANTS))
    return shown


def main() -> None:
    """Reads the command line, checks, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="of right kernels (default: 20)")
    parser.add_argument("--turns", type=int, default=1, help="of every mistake (default: 1)")
    parser.add_argument("--quick", action="store_true", help="three operations, three seeds, one turn; writes nothing")
    parser.add_argument("--operations", nargs="+", default=[], help="default: all")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    console = Console(width=WIDTH)
    names = QUICK if arguments.quick else arguments.operations
    seeds, turns = (3, 1) if arguments.quick else (arguments.seeds, arguments.turns)
    operations = [each for each in OPERATIONS if not names or each.name in names]
    right, wrong = list(right_cases(operations, seeds)), list(wrong_cases(operations, turns))
    sizes = ENTRIES[:2] if arguments.quick else ENTRIES
    smallest = {dtype: {str(count): smallest_errors(count, dtype, turns) for count in sizes} for dtype in DTYPES}
    figures = figures_of(right, wrong, smallest)
    console.print(table(figures))
    for kind in ("false", "accused"):
        console.print(kind, figures[kind][OURS], highlight=False)
    console.print("missed", figures["missed"], "broken", figures["broken"], figures["seconds"], highlight=False)
    path = arguments.json or (None if arguments.quick or names else RESULTS)
    if path:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"environment": environment(), **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
