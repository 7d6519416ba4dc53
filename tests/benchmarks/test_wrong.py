"""The benchmark of wrong gradients runs, its models are right without the mistake, and both mistakes are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import wrong
from tests.zoo.sweeps import some_of

LONG = ("resnet", "gpt", "lenet", "larger-llama", "gpt2", "mistral", "t5", "conv", "transformer", "lstm", "mlp", "item")


@pytest.mark.slow
def test_quick_run_prints_a_table_and_writes_the_figures_where_it_is_told(
    tmp_path: Path, printed_by: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wrong, "THREADS", ())  # conftest.py has set them
    path = tmp_path / "figures.json"
    printed = printed_by(wrong, "--quick", "--json", str(path))
    figures = json.loads(path.read_text())
    assert set(figures) == {"environment", "summary", "comparisons"}
    for row in figures["comparisons"]:
        assert set(row) == set(wrong.Comparison.__dataclass_fields__)
        assert row["case"].split()[0] in printed
        assert set(row["wrong"]) == set(row["ratio"]) == set(row["names"]) == set(wrong.MISTAKES)
        assert all(cost["seconds"] > 0 for cost in (row["right"], *row["wrong"].values()))
        assert all(row["names"].values())
        assert set(row["culprit"].values()) == {row["place"]}


def test_there_are_as_many_models_as_are_asked_for() -> None:
    assert len(wrong.CASES) >= 20


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("key", some_of([key for key in wrong.CASES if key not in LONG], 3))
def test_every_model_is_right_without_the_mistake_and_wrong_with_it(key: str) -> None:
    case = wrong.built(key)
    right, _, _ = wrong.checked(case, lambda gradient: gradient.clone())
    assert right.passed, str(right)
    spoiled, _, plain = wrong.checked(case, wrong.MISTAKES["5 % too large"])
    assert spoiled.mismatches, str(spoiled)
    assert spoiled.culprit == case.place
    assert spoiled.evaluations <= 2 * right.evaluations + 200
    assert plain <= spoiled.evaluations
