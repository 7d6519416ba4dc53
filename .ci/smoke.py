"""Whether an installed torch_gradcheck works: a right check, a wrong one, the command, the plugin that pytest finds.

Run by the Python of the environment that it is installed in, in an empty directory, so that no clone is imported.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

import torch_gradcheck

PROBLEM = """
import torch
from torch import nn


def problem():
    return nn.Linear(3, 2), nn.MSELoss(), (torch.randn(4, 3), torch.randn(4, 2))
"""

TESTS = """
from problem import problem


def test_right(gradcheck):
    gradcheck(*problem())


def test_wrong(gradcheck):
    model, loss_fn, batch = problem()
    model.bias.register_hook(lambda gradient: 2 * gradient)
    gradcheck(model, loss_fn, batch)
"""


def ended(*command: str) -> tuple[int, str]:
    """Exit status and output of a program of this environment."""
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def expect(condition: bool, what: str) -> None:
    """Ends the run where the condition does not hold."""
    if not condition:
        sys.exit(f"installed package: {what}")


where = Path(torch_gradcheck.__file__)
expect(where.is_relative_to(sys.prefix), f"imported from {where}, which is not in {sys.prefix}")
expect(torch_gradcheck.__version__ == version("torch-gradcheck"), "the version is not that of its metadata")
expect(files("torch_gradcheck").joinpath("py.typed").is_file(), "py.typed is missing")
expect(any(each.module == "torch_gradcheck.pytest_plugin" for each in entry_points(group="pytest11")), "no plugin")

model, batch = nn.Linear(3, 2), (torch.randn(4, 3), torch.randn(4, 2))
right = torch_gradcheck.check_module(model, nn.MSELoss(), batch)
expect(right.proven, f"a right model is not proven:\n{right}")
model.bias.register_hook(lambda gradient: 2 * gradient)
wrong = torch_gradcheck.check_module(model, nn.MSELoss(), batch)
expect([row.name for row in wrong.mismatches] == ["bias"], f"a wrong bias is not found:\n{wrong}")
wrong.save("wrong.html")
expect("bias" in Path("wrong.html").read_text(encoding="utf-8"), "the page has no row of the wrong bias")

Path("problem.py").write_text(PROBLEM)
status, output = ended("torch-gradcheck", "problem.py:problem")
expect(status == 0 and "gradients right" in output, f"torch-gradcheck ended with {status}:\n{output}")

Path("pytest.ini").write_text("[pytest]\n")  # not the settings of the clone around this directory
Path("test_problem.py").write_text(TESTS)
status, output = ended("pytest", "-q", "test_problem.py")
expect(status == 1 and "1 failed, 1 passed" in output, f"pytest ended with {status}:\n{output}")
expect("gradients WRONG in 1 of 2 parameters" in output, f"pytest does not show the table:\n{output}")

sys.stdout.write(f"torch_gradcheck {torch_gradcheck.__version__} works as installed in {sys.prefix}\n")
