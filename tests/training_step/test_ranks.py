"""`.grad` that a step of two ranks has left: right ones match on both, and each mistake is found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.processes.ranks import Ranks
from tests.training_step import steps_of_ranks as steps
from tests.zoo.kernels import skip_without_fsdp2
from torch_gradcheck import Report

Case = tuple[Any, ...]


def run(ranks: Ranks, function: Callable[..., Report], *arguments: Any) -> Report:
    """The report, which is the same on both ranks."""
    if function in steps.BY_FSDP2:
        skip_without_fsdp2()
    one, other = ranks.run(function, *arguments)
    assert str(one) == str(other)
    report: Report = one
    return report


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        pytest.param(steps.left_by, (steps.right,), id="DDP"),
        pytest.param(steps.left_by_fsdp, (steps.right,), id="FSDP2"),
        pytest.param(steps.in_mixed_precision, (steps.right, torch.bfloat16, None), id="bfloat16, summed in it"),
        pytest.param(steps.accumulated, ((0.5, 0.5),), id="accumulated, not synchronised in between"),
        pytest.param(steps.accumulated, ((0.5, 0.5), False), id="accumulated, synchronised each time"),
        pytest.param(steps.unused_on_one, (True,), id="a layer that one rank does not use"),
        pytest.param(steps.compressed, ("fp16_compress_hook",), id="summed in float16"),
        pytest.param(steps.in_mixed_precision, (steps.right, None, torch.bfloat16), id="summed in bfloat16"),
        pytest.param(steps.in_mixed_precision, (steps.right, torch.bfloat16, torch.float32), id="bfloat16"),
        pytest.param(steps.weighted, (True,), id="weighted by sizes, as declared"),
        pytest.param(steps.clipped, (steps.clipped_whole,), id="clipped by the norm of all shards"),
    ],
)
def test_a_right_step_of_two_ranks_matches(two_ranks: Ranks, function: Any, arguments: Case) -> None:
    report = run(two_ranks, function, *arguments)
    assert report.proven, str(report)
    assert any("losses of 2 ranks" in note for note in report.notes)


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["a step", "a check"])
def test_replicas_that_are_apart_by_rounding_are_those_of_the_first_rank(two_ranks: Ranks, shared: bool) -> None:
    assert run(two_ranks, steps.one_bit_apart, shared).proven


FROM_ONE = "holds nothing of rank 1: its backward did not run"
UNREDUCED = "not reduced over the ranks: .grad on each rank is the gradient of that rank's own batch"


@pytest.mark.slow_but_for(5)
@pytest.mark.parametrize(
    ("function", "arguments", "kind", "words"),
    [
        pytest.param(steps.left_by, (steps.summed,), "scaled", "summed over the 2 ranks, and not", id="summed"),
        pytest.param(steps.left_by, (steps.skipped,), "weighted", FROM_ONE, id="a rank skipped"),
        pytest.param(steps.left_by, (steps.not_synchronised,), "unreduced", f"{UNREDUCED}: no_sync", id="no_sync"),
        pytest.param(steps.left_by, (steps.right, steps.one_ignored), "unreduced", UNREDUCED, id="one never reduced"),
        pytest.param(
            steps.left_by_fsdp, (steps.clipped_by_shard,), "clipped", "a shard at a time", id="clipped by the shard"
        ),
        pytest.param(
            steps.left_by_fsdp,
            (steps.not_synchronised_by_fsdp,),
            "unreduced",
            "requires_gradient_sync",
            id="FSDP2 waits",
        ),
        pytest.param(
            steps.left_by,
            (steps.divided_twice,),
            "scaled",
            "divided by the number of ranks, 2, once",
            id="divided twice",
        ),
        pytest.param(steps.left_by, (steps.counted_twice,), "weighted", "rank 1 counts twice", id="one counts twice"),
        pytest.param(steps.left_by, (steps.by_size,), "weighted", "by the sizes of the batches, 3, 7", id="by size"),
        pytest.param(steps.weighted, (False,), "weighted", "each rank counting the same", id="weights not heeded"),
        pytest.param(
            steps.unused_on_one, (False,), "unreduced", "the loss of rank 1 does not reach it", id="unused, not reduced"
        ),
        pytest.param(
            steps.left_by,
            (steps.doubled_beside,),
            "scaled",
            "on rank 1 only, and right on rank 0",
            id="changed on a rank",
        ),
        pytest.param(steps.left_by_fsdp, (steps.skipped,), "weighted", FROM_ONE, id="FSDP2, a rank skipped"),
        pytest.param(
            steps.in_mixed_precision,
            (steps.skipped, torch.bfloat16, torch.float32),
            "weighted",
            FROM_ONE,
            id="bfloat16, a rank skipped",
        ),
        pytest.param(steps.accumulated, ((0.5, 0.0),), "weighted", FROM_ONE, id="accumulated, a rank skipped"),
        pytest.param(
            steps.accumulated, ((1.0, 1.0),), "scaled", "summed over the 2 batches of each rank", id="not divided by k"
        ),
        pytest.param(
            steps.not_zeroed_on_one, (), "accumulated", "as 1 of 2 ranks had not zeroed it", id="stale on one rank"
        ),
        pytest.param(
            steps.compressed, ("fp16_compress_hook", True), "scaled", "summed over the 2 ranks", id="float16, summed"
        ),
    ],
)
def test_a_mistake_of_two_ranks_is_named(
    two_ranks: Ranks, function: Any, arguments: Case, kind: str, words: str
) -> None:
    report = run(two_ranks, function, *arguments)
    assert not report.passed
    diagnoses = {row.diagnosis for row in report.mismatches}
    assert {str(each.kind) for each in diagnoses if each} == {kind}, str(report)
    assert all(each and words in each.message for each in diagnoses), str(report)


def test_replicas_that_have_drifted_are_said_first(two_ranks: Ranks) -> None:
    told = two_ranks.run(steps.error_of, steps.left_by, steps.drifted)
    assert told[0] == told[1]
    assert "the replicas have drifted apart: 0.weight on rank 1 differs from rank 0's (by up to 0.01)" in told[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        pytest.param("closure", "a closure that takes no batch", id="a closure"),
        pytest.param("unpicklable", "batch cannot be sent to the other ranks", id="a batch that cannot be sent"),
        pytest.param("weights", "weight must be given on all ranks or on none", id="weights on one rank"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(two_ranks: Ranks, given: str, words: str) -> None:
    assert all(words in told for told in two_ranks.run(steps.error_of, steps.refused, given))


def test_j_of_different_batches_is_their_mean(two_ranks: Ranks) -> None:
    report = run(two_ranks, steps.shared_check, False)
    assert report.proven
    assert "J is the mean of the losses of 2 ranks, each on its own batch" in report.notes
    assert report.loss == pytest.approx(steps.mean_loss())
    assert not [note for note in run(two_ranks, steps.shared_check, True).notes if "2 ranks" in note]
