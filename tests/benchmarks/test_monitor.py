from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import monitor

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick_prints_every_figure_and_writes_nothing(printed_by: Callable[..., str]) -> None:
    written = ROOT / "benchmarks" / "results" / "monitor.json"
    before = written.read_bytes() if written.exists() else None
    figures = dict(line.split() for line in printed_by(monitor, "--quick").splitlines())
    assert float(figures["coordinates"]) == 2842
    assert all(float(value) > 0 for value in figures.values())
    assert (written.read_bytes() if written.exists() else None) == before
