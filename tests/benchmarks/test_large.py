"""The benchmark on large models runs in the small, and its figures have the shape of the README's table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import gpt2_shapes
import large


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # gradcheck's, and those of transformers
def test_quick_run_prints_tables_and_writes_the_figures_where_it_is_told(
    tmp_path: Path, printed_by: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "peak_memory", large.own_peak_memory)  # a process less
    path = tmp_path / "figures.json"
    printed = printed_by(large, "--quick", "--json", str(path))
    figures = json.loads(path.read_text())
    assert set(figures) == {"environment", "rules", "timings", "counts", "memory", "shapes"}
    for row in figures["timings"]:
        assert set(row) == set(large.Timing.__dataclass_fields__)
        assert row["case"] in printed
        assert row["named"] == ([row["parameter"]] if row["mistake"] != large.CORRECT else [])
        assert row["wrong"][0] == row["wrong"][1]
    assert {(row["mistake"]) for row in figures["timings"]} == {large.CORRECT, *large.MISTAKES}
    assert [row["wrong"] for row in figures["counts"]] == [[]] * 2
    (shape,) = figures["shapes"]
    assert (shape["shape"], shape["wrong"], len(shape["named"])) == ("gpt2-tiny", 1, 1)
    assert set(shape) == {*gpt2_shapes.Figures.__dataclass_fields__, "environment"}


def test_the_models_have_the_sizes_that_are_stated() -> None:
    assert sum(p.numel() for p in large.ResNet().parameters()) == 11_173_962
    assert large.built("small-resnet").coordinates == 5_266


def test_checks_of_shapes_are_asked_for_by_name() -> None:
    assert large.asked_of(["gpt2-medium", "right"]) == [("gpt2-medium", "right")]
    assert large.asked_of(["gpt2-small"]) == [("gpt2-small", each) for each in gpt2_shapes.GRADIENTS]
