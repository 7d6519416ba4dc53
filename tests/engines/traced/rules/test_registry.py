"""Rules of operations that a version of torch does not have."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torch_gradcheck.engines.traced.rules.registry import RULES, rule

WITHOUT_PRIVATE_OPERATIONS = """
import torch
from torch import nn
from torch_gradcheck.torch_internals import operations
packet = operations.packet
operations.packet = lambda name: None if name.startswith("_") else packet(name)
from torch_gradcheck import check_module
batch = torch.randn(4, 6), torch.randn(4, 8)
for norm, mode in ((nn.Softmax(1), "eval"), (nn.BatchNorm1d(12), "eval"), (nn.BatchNorm1d(12), "train")):
    model = nn.Sequential(nn.Linear(6, 12), norm, nn.Linear(12, 8))
    report = check_module(model, nn.MSELoss(), batch, mode=mode, progress=False)
    print(report.passed, [note for note in report.notes if "one coordinate at a time" in note])
"""


def test_a_rule_for_an_operation_that_does_not_exist_is_skipped() -> None:
    before = dict(RULES)
    rule("no_such_operation.default", "mm.no_such_overload")(lambda _: [])
    assert before == RULES


@pytest.mark.slow
def test_a_torch_without_the_private_operations_of_aten_is_checked_without_their_rules() -> None:
    script = [sys.executable, "-W", "error", "-c", WITHOUT_PRIVATE_OPERATIONS]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["True []"] * 3
