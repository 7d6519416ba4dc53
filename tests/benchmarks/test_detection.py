from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import detection

pytestmark = pytest.mark.slow

CONTESTANTS = {"torch_gradcheck", "gradcheck slow", "gradcheck fast", "textbook > 1e-5", "textbook > 1e-3"}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, printed_by: Callable[..., str]) -> tuple[str, dict[str, Any]]:
    """What --quick prints, and the figures it writes."""
    path = tmp_path_factory.mktemp("detection") / "detection.json"
    return printed_by(detection, "--quick", "--json", str(path)), json.loads(path.read_text())


def of(figures: dict[str, Any], contestant: str) -> list[dict[str, Any]]:
    return [count for count in figures["counts"] if count["contestant"] == contestant]


def test_the_shape_of_the_figures(quick: tuple[str, dict[str, Any]]) -> None:
    _, figures = quick
    assert set(figures) == {"environment", "rules", "cases", "seeds", "seconds", "counts"}
    assert {count["contestant"] for count in figures["counts"]} == CONTESTANTS
    for count in figures["counts"]:
        assert sum(count["accused"].values()) + sum(count["missed"].values()) == count["trials"] == 3
        assert set(count["accused"]) | set(count["missed"]) == set(figures["cases"])
    places = {(count["size"], count["place"]) for count in of(figures, "torch_gradcheck")}
    assert places == {(0.0, "whole tensor")} | {
        (s, p) for s in (1.0, 1e-2, 1e-4) for p in ("whole tensor", "one entry")
    }


def test_torch_gradcheck_accuses_no_correct_model_and_misses_nothing(quick: tuple[str, dict[str, Any]]) -> None:
    for count in of(quick[1], "torch_gradcheck"):
        if count["size"]:
            assert count["missed"] == {}, count
        else:
            assert count["accused"] == {}, count


def test_every_contestant_finds_a_factor_of_two(quick: tuple[str, dict[str, Any]]) -> None:
    """Or the errors are not planted where the contestant looks."""
    for contestant in CONTESTANTS:
        [count] = [c for c in of(quick[1], contestant) if c["size"] == 1.0 and c["place"] == "whole tensor"]
        assert count["missed"] == {}, contestant


def test_the_table_is_printed(quick: tuple[str, dict[str, Any]]) -> None:
    printed, _ = quick
    assert all(word in printed for word in ("torch_gradcheck", "gradcheck slow", "false alarms", "factor 2", "1e-04"))
