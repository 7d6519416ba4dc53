"""One check by 1, 2 and 4 processes of one machine, which take turns, one thread each.

    OMP_NUM_THREADS=1 python benchmarks/processes.py    # writes benchmarks/results/processes.json, about 15 minutes
    python benchmarks/processes.py --quick              # small models, once; writes nothing without --json

The models take over 5 CPU seconds by one process: exact with a record of J and without, kinks, mistakes, projected,
planted faults, DDP, FSDP2. A group of processes is started once, and makes a small check first, which is not counted;
nor is the time that a model takes to be built, with what it has to import.
Where there are fewer cores than processes, wall times say nothing of the processes: what counts then is the CPU seconds
of the busiest rank beside those of one process, which is what the check would take if each had a core of its own.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import shared_models
from environment import environment
from rank_costs import Findings, Group, Outcome, RankCost
from shared_models import Case, loss_of

RESULTS = Path(__file__).parent / "results" / "processes.json"

WIDTH = 170
"""Of the printed table."""

EVALUATIONS = 5
"""Of J, to know what one takes."""

WARM_UP = "small-mlp"


@dataclass(frozen=True)
class Comparison:
    """A check by groups of several sizes.

    Attributes:
        case: the model, and what is tried on it.
        coordinates: the size of θ.
        tensors: that it consists of.
        method: exact or projected; of `blind_spots` "planted faults".
        evaluation: CPU seconds of one evaluation of J in float64, without a graph.
        costs: size of the group to what each rank took, of the turn with the median of the busiest rank.
        busiest: size of the group to the CPU seconds of the busiest rank, one a turn.
        wall: size of the group to wall seconds, one a turn.
        busiest_ratio: size of the group to the busiest rank's CPU seconds by those of one process, the median of turns.
        wall_ratio: the same of wall seconds.
        statuses: of the rows, by one process.
        culprit: by one process.
        same: size of the group to whether every rank has these, row by row.
        apart: size of the group to the largest difference of a row's relative error from that by one process.
    """

    case: str
    coordinates: int
    tensors: int
    method: str
    evaluation: float
    costs: dict[int, list[RankCost]]
    busiest: dict[int, list[float]]
    wall: dict[int, list[float]]
    busiest_ratio: dict[int, float]
    wall_ratio: dict[int, float]
    statuses: dict[str, int]
    culprit: str | None
    same: dict[int, bool]
    apart: dict[int, float]


def ready(key: str, group: Any) -> Callable[[], Findings]:
    """The check of a model by its name, or of what it could not see, to be run; the model has been built."""
    case = shared_models.built(key)
    return lambda: planted(case, group) if case.plants else checked(case, group)


def planted(case: Case, group: Any) -> Findings:
    """What a check could not see."""
    spots = shared_models.planted(case, group)
    return Findings([(f"{spot.module}: {spot.fault}", str(spot.found), None) for spot in spots], None)


def checked(case: Case, group: Any) -> Findings:
    """What the check says."""
    report = shared_models.check(case, group)
    return Findings([(row.name, str(row.status), row.relative_error) for row in report], report.culprit)


def comparison(key: str, groups: Sequence[Group], repeats: int) -> Comparison:
    """The check of one model by every group in turn; the first group is of one process."""
    turns = [{group.size: group.outcomes(ready, key) for group in groups} for _ in range(repeats)]
    sizes = [group.size for group in groups]
    busiest = {size: [max(each.cost.cpu for each in turn[size]) for turn in turns] for size in sizes}
    wall = {size: [max(each.cost.wall for each in turn[size]) for turn in turns] for size in sizes}
    alone, case = turns[0][1][0], shared_models.built(key)
    return Comparison(
        case=case.name,
        coordinates=case.coordinates,
        tensors=len(list(case.model.parameters())),
        method="planted faults" if case.plants else case.options["method"],
        evaluation=seconds_of_evaluation(case),
        costs={size: [each.cost for each in turns[_middle(busiest[size])][size]] for size in sizes},
        busiest=busiest,
        wall=wall,
        busiest_ratio={size: _ratio(busiest[size], busiest[1]) for size in sizes},
        wall_ratio={size: _ratio(wall[size], wall[1]) for size in sizes},
        statuses=dict(Counter(status for _, status, _ in alone.said.rows)),
        culprit=alone.said.culprit,
        same={size: all(_same(each, alone) for turn in turns for each in turn[size]) for size in sizes},
        apart={size: max(_apart(each, alone) for turn in turns for each in turn[size]) for size in sizes},
    )


def seconds_of_evaluation(case: Case) -> float:
    """CPU seconds of J, the median of some runs on one thread after one that is not counted."""
    model, seconds = case.model.double().eval(), []
    for _ in range(EVALUATIONS + 1):
        start = process_time()
        with torch.no_grad():
            loss_of(case, model)
        seconds.append(process_time() - start)
    return median(seconds[1:])


def _middle(values: Sequence[float]) -> int:
    """The position of a median value."""
    return sorted(range(len(values)), key=values.__getitem__)[len(values) // 2]


def _ratio(several: Sequence[float], one: Sequence[float]) -> float:
    return median(theirs / own for theirs, own in zip(several, one, strict=True))


def _same(found: Outcome, alone: Outcome) -> bool:
    statuses = [[(name, status) for name, status, _ in each.said.rows] for each in (found, alone)]
    return statuses[0] == statuses[1] and found.said.culprit == alone.said.culprit


def _apart(found: Outcome, alone: Outcome) -> float:
    pairs = zip(found.said.rows, alone.said.rows, strict=True)
    return max(abs((one or 0.0) - (other or 0.0)) for (_, _, one), (_, _, other) in pairs)


def table(comparisons: Iterable[Comparison]) -> Table:
    """One row a model and size of the group."""
    titles = ("processes", "busiest", "all", "busiest / one", "wall", "wall / one", "rounds", "carried", "messages CPU")
    rows = Table("model", *titles, "evaluations", "same")
    for each in comparisons:
        for size, costs in each.costs.items():
            rows.add_row(
                f"{each.case}, {each.coordinates:,}" if size == 1 else "",
                str(size),
                f"{median(each.busiest[size]):.2f} s",
                f"{sum(cost.cpu for cost in costs):.2f} s",
                f"{each.busiest_ratio[size]:.2f}",
                f"{median(each.wall[size]):.2f} s",
                f"{each.wall_ratio[size]:.2f}",
                str(costs[0].rounds),
                f"{costs[0].carried / 2**20:.1f} MiB",
                f"{max(cost.message_cpu for cost in costs):.2f} s",
                " + ".join(f"{cost.evaluations:,}" for cost in costs),
                "yes" if each.same[size] else "NO",
            )
    return rows


def main() -> None:
    """Reads the command line, runs the checks in turns, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="turns on each model (default: 3)")
    parser.add_argument("--quick", action="store_true", help="small models, once; writes nothing without --json")
    parser.add_argument("--cases", nargs="+", choices=shared_models.CASES, default=list(shared_models.CASES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4], help="of the groups (default: 1 2 4)")
    parser.add_argument("--json", type=Path, help=f"where to write the figures (default: {RESULTS.name}, if not quick)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    keys, repeats = (list(shared_models.SMALL), 1) if arguments.quick else (arguments.cases, arguments.repeats)
    console = Console(width=WIDTH)
    path = arguments.json or (None if arguments.quick else RESULTS)
    groups = [Group(size) for size in dict.fromkeys([1, *arguments.sizes])]
    found = []
    try:
        for group in groups:
            group.outcomes(ready, WARM_UP)
        for key in keys:
            found.append(comparison(key, groups, repeats))
            console.print(table(found[-1:]))
            if path:
                write(path, found)
    finally:
        for group in groups:
            group.close()


def write(path: Path, comparisons: Iterable[Comparison]) -> None:
    """The figures so far, as JSON."""
    rules = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2]
    figures = {"environment": environment(), "rules": rules, "comparisons": [asdict(each) for each in comparisons]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
