"""Callbacks of trainers under strategies of several processes: one J of all ranks, and one report on each of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes.ranks import Ranks
from tests.processes.trainers import Trained, trained_by_lightning, trained_by_transformers
from torch_gradcheck import Report

pytestmark = pytest.mark.slow

IMPORTING = 180.0
"""Seconds that a busy machine may take to import a trainer."""


def by_lightning(ranks: Ranks, fault: str, at: list[int], **options: Any) -> list[Trained]:
    pytest.importorskip("lightning")
    return ranks.run(partial(trained_by_lightning, fault, at, **options), timeout=IMPORTING)


def by_transformers(ranks: Ranks, folder: Path, fault: str, at: list[int], **options: Any) -> list[dict[int, Report]]:
    pytest.importorskip("transformers")
    return ranks.run(partial(trained_by_transformers, folder, fault, at, **options), timeout=IMPORTING)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}], ids=str)
def test_right_steps_of_ddp_by_lightning_are_judged_and_the_run_is_the_same(
    two_ranks: Ranks, options: dict[str, Any]
) -> None:
    watched = by_lightning(two_ranks, "", [0, 1], strategy="ddp", **options)
    alone = by_lightning(two_ranks, "", [0], strategy="ddp", watched=False, **options)
    assert [name for mine, other in zip(watched, alone, strict=True) for name in changed(mine.left, other.left)] == []
    assert texts(watched[0].reports) == texts(watched[1].reports)
    assert list(watched[0].reports) == [0, 1]
    assert all(of_grad(report) == {"match"} for report in watched[0].reports.values())


def changed(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def texts(reports: dict[int, Report]) -> list[str]:
    return [str(report) for report in reports.values()]


def of_grad(report: Report) -> set[str]:
    assert report.in_grad is not None
    return {str(row.status) for row in report.in_grad}


@pytest.mark.parametrize(
    ("fault", "words"),
    [("summed", "summed over the 2 ranks, and not divided by their number"), ("on rank 1", "rank 1")],
)
def test_a_fault_of_ddp_by_lightning_ends_the_training_on_all_ranks(two_ranks: Ranks, fault: str, words: str) -> None:
    one, other = by_lightning(two_ranks, fault, [0], strategy="ddp", on_mismatch="raise")
    assert words in " ".join(one.error.split())
    assert one.error == other.error


def test_steps_of_fsdp2_by_lightning_are_judged(two_ranks: Ranks) -> None:
    strategies = pytest.importorskip("lightning.pytorch.strategies")
    sharded = strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    one, other = by_lightning(two_ranks, "", [0], strategy=sharded)
    assert of_grad(one.reports[0]) == {"match"}
    assert texts(one.reports) == texts(other.reports)


def test_transformers_sums_over_the_tokens_of_all_ranks(two_ranks: Ranks, tmp_path: Path) -> None:
    one, other = by_transformers(two_ranks, tmp_path, "", [0, 1], gradient_accumulation_steps=2)
    assert texts(one) == texts(other)
    assert [of_grad(report) for report in one.values()] == [{"match"}, {"match"}]


def test_transformers_means_over_ranks_if_it_is_told_to(two_ranks: Ranks, tmp_path: Path) -> None:
    one, _ = by_transformers(two_ranks, tmp_path, "summed", [0], average_tokens_across_devices=False)
    assert [row.name for row in one[0].mismatches] == ["transformer.ln_f.bias"]
    assert "summed over the 2 ranks" in " ".join(texts(one)[0].split())
