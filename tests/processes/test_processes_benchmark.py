"""The benchmark of several processes runs in the small, here on the ranks of the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import processes
from rank_costs import Outcome, RankCost, Ready, outcome, with_own_evaluations
from tests.processes.ranks import Ranks


@pytest.mark.slow
def test_quick_run_prints_a_table_and_writes_the_figures_where_it_is_told(
    two_ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Group:
        """One process is this one."""

        def __init__(self, size: int) -> None:
            self.size = size

        def outcomes(self, ready: Ready, key: str) -> list[Outcome]:
            if self.size == 1:
                return [outcome(ready, key)]
            return with_own_evaluations(two_ranks.run(outcome, ready, key))

        def close(self) -> None:
            pass

    path = tmp_path / "figures.json"
    monkeypatch.setattr(processes, "Group", Group)
    monkeypatch.setattr(sys, "argv", ["processes.py", "--quick", "--sizes", "2", "--json", str(path)])
    processes.main()
    printed, figures = capsys.readouterr().out, json.loads(path.read_text())
    assert set(figures) == {"environment", "rules", "comparisons"}
    for row in figures["comparisons"]:
        assert set(row) == set(processes.Comparison.__dataclass_fields__)
        assert row["case"].split(",")[0] in printed
        assert all(row["same"].values())
        assert [len(row["costs"][size]) for size in ("1", "2")] == [1, 2]
        for cost in row["costs"]["2"]:
            assert set(cost) == set(RankCost.__dataclass_fields__)
            assert cost["messages"] > 0
        if row["method"] == "planted faults":
            continue
        alone, two = row["costs"]["1"][0]["evaluations"], [cost["evaluations"] for cost in row["costs"]["2"]]
        assert two[1] > 0
        assert alone <= sum(two) < 2 * alone
