"""Gradient checkers of torch, JAX and OpenMDAO beside this one: the same functions, the same mistakes, in one run.

    python3 -m venv .venv-comparison
    .venv-comparison/bin/pip install -c constraints.txt -e . jax chex openmdao
    .venv-comparison/bin/python benchmarks/comparison.py          # writes results/comparison.json, 15 seconds
    .venv-comparison/bin/python benchmarks/comparison.py --quick  # two functions; writes nothing

JAX, chex and OpenMDAO are in no extra of the package: a contestant that cannot be imported is left out, and said.

Each function has a backward written by hand, which every framework is given in its own form: a
`torch.autograd.Function`, a `jax.custom_vjp`, the `compute_partials` of an `ExplicitComponent` that fills the Jacobian
row by row. Right, it must not be accused; then the gradient of one argument is wrong in one way at a time. All
contestants have their defaults, in float64 on the CPU, and one thread where they let us say so.

    check_function        torch_gradcheck: a mismatch in the report, or a broken contract
    gradcheck slow        torch.autograd.gradcheck raises
    gradcheck fast        the same, fast_mode=True
    JAX check_grads       jax.test_util.check_grads(f, arguments, order=1, modes=["rev"]) raises
    chex                  chex.assert_numerical_grads(f, arguments, order=1, modes=["rev"]) raises
    OpenMDAO fd           assert_check_partials(problem.check_partials()) raises: forward differences
    OpenMDAO cs           the same, method="cs": complex steps, for functions that take complex numbers

A contestant names the argument where its answer says which one is wrong, and that is the one. CPU seconds are those
of checking the right function, the median of three turns after one that is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENMDAO_REPORTS", "0")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.gradcheck import GradcheckError

from comparison_cases import CASES, Arrays, Case, Mistake, mistakes
from environment import environment
from torch_gradcheck import check_function

RESULTS = Path(__file__).parent / "results" / "comparison.json"

TURNS = 3
"""Of the timing."""


@dataclass(frozen=True)
class Said:
    """What a contestant says of a function: whether it accuses, and the arguments and entry that it names."""

    accuses: bool
    arguments: frozenset[int] = frozenset()
    entry: tuple[int, ...] | None = None


Contestant = Callable[[Case, Mistake | None], Said]
RIGHT = Said(accuses=False)


def backward_of(xp: Any, case: Case, mistake: Mistake | None) -> Callable[..., Arrays]:
    """(upstream gradient, *arguments) → gradients, one of them wrong where there is a mistake."""

    def backward(g: Any, *arguments: Any) -> Arrays:
        gradients = case.backward(xp, g, *arguments)
        return gradients if mistake is None else mistake.planted(xp, gradients)

    return backward


# torch ------------------------------------------------------------------------------------------------------------


def _function(case: Case, mistake: Mistake | None) -> Callable[..., torch.Tensor]:
    backward = backward_of(torch, case, mistake)

    class Planted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(*arguments)
            output: torch.Tensor = case.forward(torch, *arguments)
            return output

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            return backward(g, *ctx.saved_tensors)

    function: Callable[..., torch.Tensor] = Planted.apply
    return function


def _tensors(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value, requires_grad=True) for value in case.values)


def ours(case: Case, mistake: Mistake | None) -> Said:
    """check_function of this package."""
    report = check_function(_function(case, mistake), _tensors(case), progress=False)
    named = frozenset(position for position, row in enumerate(report) if row.status == "mismatch")
    worst = [row.worst[0].index for row in report.mismatches if row.mismatched == 1]
    return Said(not report.passed, named, worst[0] if len(worst) == 1 else None)


def gradcheck(case: Case, mistake: Mistake | None, fast_mode: bool = False) -> Said:
    """torch.autograd.gradcheck."""
    try:
        torch.autograd.gradcheck(_function(case, mistake), _tensors(case), fast_mode=fast_mode)
    except GradcheckError as error:
        return Said(True, frozenset(map(int, re.findall(r"with respect to input (\d+)", str(error)))))
    return RIGHT


def gradcheck_fast(case: Case, mistake: Mistake | None) -> Said:
    """The same in fast mode."""
    return gradcheck(case, mistake, fast_mode=True)


# JAX --------------------------------------------------------------------------------------------------------------


def _jax_function(case: Case, mistake: Mistake | None) -> tuple[Any, tuple[Any, ...]]:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    backward = backward_of(jnp, case, mistake)
    function = jax.custom_vjp(lambda *arguments: case.forward(jnp, *arguments))
    function.defvjp(
        lambda *arguments: (case.forward(jnp, *arguments), arguments),
        lambda arguments, g: backward(g, *arguments),
    )
    return function, tuple(map(jnp.asarray, case.values))


def jax_check_grads(case: Case, mistake: Mistake | None) -> Said:
    """jax.test_util.check_grads. Its message has one number for all arguments together."""
    from jax.test_util import check_grads

    function, arguments = _jax_function(case, mistake)
    return _asserted(lambda: check_grads(function, arguments, order=1, modes=["rev"]))


def chex_numerical_grads(case: Case, mistake: Mistake | None) -> Said:
    """chex.assert_numerical_grads, which calls the same with a tolerance of 0.01 · the size of the first argument."""
    from chex import assert_numerical_grads

    function, arguments = _jax_function(case, mistake)
    return _asserted(lambda: assert_numerical_grads(function, arguments, order=1, modes=["rev"]))


def _asserted(check: Callable[[], Any]) -> Said:
    try:
        check()
    except AssertionError:
        return Said(accuses=True)
    return RIGHT


# OpenMDAO ---------------------------------------------------------------------------------------------------------


def _problem(case: Case, mistake: Mistake | None, method: str) -> Any:
    import openmdao.api as om

    backward = backward_of(np, case, mistake)
    output = np.shape(case.forward(np, *case.values))

    class Component(om.ExplicitComponent):  # type: ignore[misc]
        def setup(self) -> None:
            for name, value in case.arguments.items():
                self.add_input(name, val=value)
            self.add_output("y", shape=output or (1,))
            self.declare_partials("y", "*")

        def compute(self, inputs: Any, outputs: Any) -> None:
            outputs["y"] = case.forward(np, *(inputs[name] for name in case.arguments))

        def compute_partials(self, inputs: Any, partials: Any) -> None:
            given = [inputs[name] for name in case.arguments]
            for row, unit in enumerate(np.eye(int(np.prod(output, dtype=int)))):
                for name, gradient in zip(case.arguments, backward(unit.reshape(output), *given), strict=True):
                    partials["y", name][row] = gradient.ravel()

    problem = om.Problem(reports=False)
    problem.model.add_subsystem("c", Component())
    problem.setup(force_alloc_complex=method == "cs")
    problem.run_model()
    return problem


def _openmdao(case: Case, mistake: Mistake | None, method: str) -> Said:
    from openmdao.utils.assert_utils import assert_check_partials

    data = _problem(case, mistake, method).check_partials(out_stream=None, method=method)
    try:
        assert_check_partials(data)
    except ValueError as error:
        named = re.findall(r"^y wrt (\w+) ", str(error), flags=re.MULTILINE)
        return Said(True, frozenset(list(case.arguments).index(name) for name in named))
    return RIGHT


def openmdao_fd(case: Case, mistake: Mistake | None) -> Said:
    """check_partials with its default, forward differences."""
    return _openmdao(case, mistake, "fd")


def openmdao_cs(case: Case, mistake: Mistake | None) -> Said:
    """check_partials with complex steps."""
    return _openmdao(case, mistake, "cs")


CONTESTANTS: dict[str, tuple[str, Contestant]] = {
    "check_function": ("torch", ours),
    "gradcheck slow": ("torch", gradcheck),
    "gradcheck fast": ("torch", gradcheck_fast),
    "JAX check_grads": ("jax", jax_check_grads),
    "chex": ("chex", chex_numerical_grads),
    "OpenMDAO fd": ("openmdao", openmdao_fd),
    "OpenMDAO cs": ("openmdao", openmdao_cs),
}
"""Name to the package that it needs, and the check."""


# The run ----------------------------------------------------------------------------------------------------------


@dataclass
class Score:
    """How a contestant did.

    Attributes:
        false_alarms: the right functions that it accuses.
        found: kind of mistake to how many it finds, of those in functions that it does not accuse when they are right.
        planted: kind of mistake to how many these are.
        named_argument: how often it names the argument that is wrong and no other, of all that it finds.
        named_entry: how often it names the entry, of the mistakes in one entry that it finds.
        found_in_entry: how many those are.
        cpu_seconds: function to CPU seconds of a check of it, right.
    """

    false_alarms: list[str] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)
    planted: dict[str, int] = field(default_factory=dict)
    named_argument: int = 0
    named_entry: int = 0
    found_in_entry: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    def add(self, mistake: Mistake, said: Said) -> None:
        """One more planted mistake."""
        self.planted[mistake.kind] = self.planted.get(mistake.kind, 0) + 1
        self.found[mistake.kind] = self.found.get(mistake.kind, 0) + said.accuses
        self.named_argument += said.arguments == {mistake.position}
        if said.accuses and mistake.kind.startswith("one entry"):
            self.found_in_entry += 1
            self.named_entry += said.entry == tuple(map(int, np.argwhere(mistake.factors != 1)[0]))


def scored(check: Contestant, cases: Iterable[Case]) -> Score:
    """One contestant on all of them. A mistake in a function that it accuses anyhow tells nothing, and is left out."""
    score = Score()
    for case in cases:
        if check(case, None).accuses:
            score.false_alarms.append(case.name)
        else:
            for mistake in mistakes(case):
                score.add(mistake, check(case, mistake))
        score.cpu_seconds[case.name] = median(_cpu_seconds(check, case) for _ in range(TURNS))
    return score


def _cpu_seconds(check: Contestant, case: Case) -> float:
    start = time.process_time()
    check(case, None)
    return time.process_time() - start


def figures(scores: dict[str, Score], cases: Sequence[Case], left_out: Sequence[str]) -> dict[str, Any]:
    """Everything for the JSON file."""
    versions = {name: _version(name) for name in ("jax", "chex", "openmdao")}
    return {
        "environment": environment() | versions,
        "rules": (__doc__ or "").partition("\n\n")[2],
        "cases": {case.name: case.difficulty for case in cases},
        "left_out": list(left_out),
        "scores": {name: asdict(score) for name, score in scores.items()},
    }


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def table(scores: dict[str, Score]) -> Table:
    """A row a contestant."""
    shown = Table("contestant", "false alarms", "missed", "argument named", "entry named", "median CPU")
    for name, score in scores.items():
        found, planted = sum(score.found.values()), sum(score.planted.values())
        shown.add_row(
            name,
            ", ".join(score.false_alarms) or "none",
            f"{planted - found} of {planted}",
            f"{score.named_argument} of {found}",
            f"{score.named_entry} of {score.found_in_entry}",
            f"{1000 * median(score.cpu_seconds.values()):.1f} ms",
        )
    return shown


def main() -> None:
    """Runs all contestants that are installed, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two functions; writes nothing")
    cases = CASES[1:3] if (quick := parser.parse_args().quick) else CASES
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    there = {name: check for name, (needs, check) in CONTESTANTS.items() if importlib.util.find_spec(needs)}
    left_out = sorted(set(CONTESTANTS) - set(there))
    scores = {name: scored(check, cases) for name, check in there.items()}
    Console(width=160).print(table(scores))
    if left_out:
        print(f"left out, since they are not installed: {', '.join(left_out)}")
    if not quick:
        RESULTS.write_text(json.dumps(figures(scores, cases, left_out), indent=2) + "\n")


if __name__ == "__main__":
    main()
