"""Who may import whom: a file's imports of our own point to lower layers only, so that there are no circles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import torch_gradcheck

ROOT = Path(torch_gradcheck.__file__).parent

LADDER = """
    version errors facts borrowing training autograd_graph
    structure borrowing.interrupts borrowing.global_state precision progress moved
    borrowing.captures
    differences differences.sampling
    differences.noise differences.ladder differences.odds
    differences.looks differences.question
    differences.step_size differences.between_steps
    differences.stairs
    differences.closer_look
    differences.corners
    differences.trial
    deliberate request watch batch training.rounding
    borrowing.stand_ins borrowing.holder_states borrowing.outside_caches
    theta borrowing.borrow
    objective training.seen
    implicit_draws
    analytic settle training.training_step
    training.native
    engines engines.engine
    engines.plain
    engines.upstream
    engines.traced.chunks engines.traced.tape engines.traced.touched engines.traced.untraceable engines.traced.cores
    engines.traced.small_moves
    engines.traced.mutations engines.traced.rules engines.traced.windows
    engines.traced.general engines.traced.pointwise engines.traced.recorder engines.traced.reductions
    engines.traced.lookups engines.traced.products engines.traced.views
    engines.traced.convolutions engines.traced.normalizations
    engines.traced.program
    engines.traced.effort engines.traced.evaluation engines.traced.rederive
    engines.traced.engine
    engines.traced
    engines.chosen
    numerical
    projected projected.directions projected.questions projected.scales
    projected.certify projected.locate
    projected.accuse
    projected.trials
    method
    reference
    diagnosis.evidence diagnosis.factors diagnosis.roundings
    diagnosis.places
    diagnosis.kinds diagnosis.picture
    diagnosis.diagnose
    diagnosis
    blame.snapshots
    blame.recording
    blame.tangents
    blame.alone blame.verdicts
    blame.words
    blame.search
    blame
    findings
    compare notes training.rounding_bars
    compare_projected
    render render.shorten render.schema render.outline
    render.text render.html
    report
    training.judge training.step_diagnosis
    training.step_rows
    training.in_grad
    reporting
    training.step_check
    check
    training.monitor
    integrations integrations.lightning integrations.transformers
    torch_gradcheck
    command_line
    __main__
"""
"""A layer a line, the lowest first; files of one layer do not know each other."""

LAYER = {module: number for number, line in enumerate(LADDER.strip().splitlines()) for module in line.split()}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "torch_gradcheck"


FILES = {module_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def ours(node: ast.AST) -> Iterator[str]:
    """The modules of this package that an import statement names."""
    if isinstance(node, ast.Import):
        names = [(alias.name, None) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [(node.module or "", alias.name) for alias in node.names]
    else:
        names = []
    for module, attribute in names:
        if module.partition(".")[0] == "torch_gradcheck":
            inside = module.partition(".")[2]
            submodule = f"{inside}.{attribute}".lstrip(".")
            yield submodule if submodule in FILES else inside or "torch_gradcheck"


def test_every_file_is_on_the_ladder_and_nothing_else() -> None:
    assert sorted(LAYER) == sorted(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    tree = ast.parse(FILES[module].read_text())
    imported = {name for node in ast.walk(tree) for name in ours(node)}
    assert [name for name in sorted(imported) if LAYER[name] >= LAYER[module]] == []


LAZY = {"torch_gradcheck"}
"""Loads its names when they are asked for."""

IMPORTS_THE_USERS = {"command_line"}
"""Imports the file it is to check."""


@pytest.mark.parametrize("module", sorted(FILES.keys() - LAZY))
def test_no_import_of_our_own_hides_in_a_function(module: str) -> None:
    tree = ast.parse(FILES[module].read_text())
    hidden = [node for node in ast.walk(tree) if any(ours(node)) and node not in tree.body]
    assert [ast.unparse(node) for node in hidden] == []
    assert module in IMPORTS_THE_USERS or "importlib" not in FILES[module].read_text()


def test_the_numerical_core_knows_no_torch() -> None:
    for module in FILES:
        if module.startswith("differences"):
            names = [alias.name for node in ast.walk(ast.parse(FILES[module].read_text()))
                     if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]  # fmt: skip
            assert "torch" not in names, module


def test_importing_the_package_loads_nothing_heavy_besides_torch() -> None:
    heavy = ["rich", "jinja2", "matplotlib", "torch._dynamo", "transformers", "sympy", "pandas"]
    script = (
        "import sys, torch; before = set(sys.modules); import torch_gradcheck;"
        f"print([name for name in {heavy} if name in sys.modules and name not in before])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"


def test_a_check_without_a_bar_loads_no_dynamo_and_no_rich() -> None:
    script = (
        "import sys, torch; from torch_gradcheck import check_module;"
        "check_module(torch.nn.Linear(2, 1), torch.sum, torch.ones(1, 2));"
        "print([name for name in ('rich', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert result.stdout.strip() == "[]"
