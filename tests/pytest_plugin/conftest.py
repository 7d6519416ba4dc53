"""Sessions of pytest inside of a test, and tests for them to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.pytest_plugin.loading import PLUGIN
from torch_gradcheck import Report, check_module

MADE = """
import pytest
import torch
from torch import nn

import torch_gradcheck
from torch_gradcheck import GradientMismatchError

X = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
NOTHING = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}


def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def loss(y):
    return y.square().mean()
"""
"""What every test file begins with. Gradients derived by hand are wrong without a search for a culprit."""

Run = Callable[..., pytest.RunResult]


@pytest.fixture(scope="session")
def wrong_report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A report on wrong gradients, shown and saved once: what that imports would be imported by every session again."""
    given = {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}
    report = check_module(torch.nn.Linear(2, 1), torch.sum, torch.ones(1, 2), gradients=given)
    directory: Path = tmp_path_factory.mktemp("report")
    report.save(directory / "report.html")
    report.text(color=True)
    report.to_json()
    return report


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, wrong_report: Report) -> Run:
    """Runs pytest with these words on a file of these tests."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(tests: str, *words: str) -> pytest.RunResult:
        pytester.makepyfile(test_made=MADE + tests)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *PLUGIN, *words)

    return run
