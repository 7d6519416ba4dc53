"""What may be given as `group`, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist
from torch import nn

from tests.processes.ranks import Ranks
from tests.processes.test_endings import batch, small_model
from torch_gradcheck import InvalidRequestError, check_module
from torch_gradcheck.processes.groups import team_of


def checked_with(group: Any) -> str:
    try:
        report = check_module(small_model(), nn.functional.mse_loss, batch(), group=group)
    except InvalidRequestError as error:
        return str(error)
    return "passed" if report.passed else "failed"


def with_group(kind: str) -> str:
    match kind:
        case "mesh":
            return checked_with(dist.device_mesh.init_device_mesh("cpu", (2,)))
        case "mesh of two dimensions":
            return checked_with(dist.device_mesh.init_device_mesh("cpu", (2, 1)))
        case "one rank":
            return checked_with(dist.new_group([1]))
        case "destroyed":
            group = dist.new_group([0, 1])
            dist.destroy_process_group(group)
            return checked_with(group)
    return checked_with("world")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("mesh", ("passed", "passed")),
        ("mesh of two dimensions", ("DeviceMesh of 2 dimensions",) * 2),
        ("one rank", ("only the ranks that it was made of", "passed")),
        ("destroyed", ("group has been destroyed",) * 2),
        ("name", ("must be a torch.distributed process group, got str 'world'",) * 2),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_groups(two_ranks: Ranks, kind: str, told: tuple[str, str]) -> None:
    for found, expected in zip(two_ranks.run(with_group, kind), told, strict=True):
        assert expected in found


def test_without_a_group_this_process_is_alone() -> None:
    assert team_of(None).size == 1
    assert dist.group.WORLD is None


def test_a_build_of_torch_without_distributed_checks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ProcessGroup", "GroupMember", "get_rank", "get_world_size", "device_mesh"):
        monkeypatch.delattr(dist, name)
    monkeypatch.setattr(dist, "is_available", lambda: False)
    assert check_module(small_model(), nn.functional.mse_loss, batch()).passed
    with pytest.raises(InvalidRequestError, match=r"no torch\.distributed"):
        team_of(object())


def pulsing(method: str) -> tuple[str, str]:
    """The reports of a check in which the leader asks the others before every evaluation of J, and of one alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_gradcheck.processes.team.PULSE", -1.0)
        options: dict[str, Any] = {"method": method}
        shared = check_module(small_model(), nn.functional.mse_loss, batch(), group=dist.group.WORLD, **options)
    alone = check_module(small_model(), nn.functional.mse_loss, batch(), **options)
    return told(shared), told(alone)


def told(report: Any) -> str:
    return "\n".join(f"{row.name} {row.status} {row.relative_error}" for row in report)


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_leader_that_asks_all_the_time_finds_the_same(two_ranks: Ranks, method: str) -> None:
    for shared, alone in two_ranks.run(pulsing, method):
        assert shared == alone
