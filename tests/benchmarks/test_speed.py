"""The speed benchmark runs, and its figures have the shape that the README's table is made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import speed


@pytest.mark.slow
def test_quick_run_prints_a_table_and_writes_the_figures_where_it_is_told(
    tmp_path: Path, printed_by: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak_memory", speed.own_peak_memory)  # three processes less
    path = tmp_path / "figures.json"
    printed = printed_by(speed, "--quick", "--json", str(path))
    assert all(name in printed for name in speed.CONTESTANTS)
    figures = json.loads(path.read_text())
    assert set(figures) == {"environment", "matrix_product_gflops", "timings"}
    assert {"cpu", "cores", "threads", "torch", "commit", "date"} <= set(figures["environment"])
    assert figures["matrix_product_gflops"] > 0
    (row,) = figures["timings"]
    assert set(row) == set(speed.Timing.__dataclass_fields__)
    assert row["coordinates"] == 201
    for each in ("tried", "seconds", "median_seconds", "peak_mib"):
        assert set(row[each]) == set(speed.CONTESTANTS)
    assert set(row["times_slower"]) == {speed.LOOP, speed.GRADCHECK}
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in row["seconds"].values())
    assert row["tried"] == dict.fromkeys(speed.CONTESTANTS, 201)
    assert row["share_of_limit"] > 0
    assert row["seconds_to_trace"] > 0


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    assert not speed.peak_memory("small", speed.OURS) < 0


SIZES = {"small": 201, "mlp": 8970, "lenet": 61706, "transformer": 9844, "lstm": 4849, "custom": 5122}


@pytest.mark.parametrize("key", speed.CASES)
def test_the_models_are_those_of_the_table(key: str) -> None:
    case = speed.built(key)
    assert case.coordinates == SIZES[key]
    assert case.model(case.inputs).shape[0] == len(case.targets)


@pytest.mark.parametrize("rival", [speed.LOOP, speed.GRADCHECK])
def test_a_subset_is_spread_or_small(rival: str) -> None:
    case = speed.built("small")
    assert speed.CONTESTANTS[rival](case, None) == 201
    assert 0 < speed.CONTESTANTS[rival](case, 30) < 60


def test_the_smallest_parameters_fill_the_subset() -> None:
    sizes = {"a": torch.zeros(5), "b": torch.zeros(2), "c": torch.zeros(9)}
    assert speed.smallest(sizes, None) == ["b", "a", "c"]
    assert speed.smallest(sizes, 8) == ["b", "a"]
    assert speed.smallest(sizes, 1) == ["b"]


def test_operations_of_a_forward() -> None:
    assert speed.forward_flops(speed.built("mlp")) == 2 * 32 * (64 * 64 + 64 * 64 + 64 * 10)
