from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_quick_prints_every_figure_and_writes_nothing() -> None:
    written = ROOT / "benchmarks" / "results" / "monitor.json"
    before = written.read_bytes() if written.exists() else None
    command = [sys.executable, "benchmarks/monitor.py", "--quick"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=200)
    assert result.returncode == 0, result.stderr
    figures = dict(line.split() for line in result.stdout.splitlines())
    assert float(figures["coordinates"]) == 2842
    assert all(float(value) > 0 for value in figures.values())
    assert (written.read_bytes() if written.exists() else None) == before
