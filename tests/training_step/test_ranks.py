"""`.grad` that a step of two ranks has left: right ones match on both, and each mistake is found and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conftest import slow_but_for
from tests.processes.ranks import Ranks
from tests.training_step import steps_of_ranks as steps
from torch_gradcheck import Report

Case = tuple[Any, ...]


def run(ranks: Ranks, function: Callable[..., Report], *arguments: Any) -> Report:
    """The report, which is the same on both ranks."""
    one, other = ranks.run(function, *arguments)
    assert str(one) == str(other)
    report: Report = one
    return report


RIGHT = slow_but_for(4)(
    [
        pytest.param(steps.left_by, steps.right, id="DDP"),
        pytest.param(steps.left_by_fsdp, steps.right, id="FSDP2"),
        pytest.param(steps.unused_on_one, True, id="a layer that one rank does not use"),
        pytest.param(steps.accumulated, (0.5, 0.5), id="accumulated without synchronising in between"),
        pytest.param(steps.accumulated, (0.5, 0.5), False, id="accumulated and synchronised each time"),
        pytest.param(steps.compressed, "fp16_compress_hook", id="summed in float16"),
        pytest.param(
            steps.in_mixed_precision, steps.right, torch.bfloat16, torch.float32, id="bfloat16, summed in float32"
        ),
        pytest.param(steps.in_mixed_precision, steps.right, torch.bfloat16, None, id="bfloat16, summed in it"),
        pytest.param(steps.by_tokens, id="weighted by sizes, as declared"),
        pytest.param(steps.clipped, steps.clipped_whole, id="clipped by the norm of all shards"),
    ]
)


@pytest.mark.parametrize(("function", "arguments"), RIGHT)
def test_a_right_step_of_two_ranks_matches(two_ranks: Ranks, function: Any, arguments: Case) -> None:
    report = run(two_ranks, function, *arguments)
    assert report.proven, str(report)
    assert any("losses of 2 ranks" in note for note in report.notes)
