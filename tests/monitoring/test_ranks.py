"""A monitor on every rank of a data-parallel training loop: right steps match, and the run is the one without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.processes.ranks import Ranks
from tests.training_step import steps_of_ranks as steps


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"made": steps.dropout_net}, id="dropout"),
        pytest.param({"made": steps.conv_net}, id="batch norm that trains"),
        pytest.param({"made": steps.dropout_net, "accumulate": 2, "fully": True}, id="FSDP2, accumulated"),
        pytest.param({"made": steps.dropout_net, "accumulate": 2}, id="accumulated"),
        pytest.param({"made": steps.mlp, "autocast": True}, id="autocast to bfloat16"),
        pytest.param({"made": steps.conv_net, "seed": 1}, id="other data"),
        pytest.param({"made": steps.dropout_net, "seed": 2, "autocast": True}, id="other data, autocast"),
    ],
)
def test_right_steps_match_and_the_run_is_the_one_without(two_ranks: Ranks, options: dict[str, Any]) -> None:
    watched = two_ranks.run(trained, options)
    alone = two_ranks.run(trained, options | {"checked": False})
    for (reports, held), (_, right) in zip(watched, alone, strict=True):
        assert len(reports) == steps.STEPS
        assert all(report.passed and not undecided(report) for report in reports), "\n".join(map(str, reports))
        assert all(torch.equal(one, other) for one, other in zip(held, right, strict=True))
    assert [str(report) for report in watched[0][0]] == [str(report) for report in watched[1][0]]


def trained(options: dict[str, Any]) -> Any:
    return steps.trained(**options)


def undecided(report: Any) -> list[str]:
    return [row.name for row in report.in_grad if str(row.status) == "undecided"]


@pytest.mark.parametrize(
    ("on_mismatch", "does"), [("raise", "raised"), ("warn", "GradientMismatchWarning"), ("record", "recorded")]
)
def test_a_wrong_step_does_the_same_on_all_ranks(two_ranks: Ranks, on_mismatch: str, does: str) -> None:
    assert two_ranks.run(steps.stopped_by, on_mismatch) == [does, does]
