"""From what a user gives as `group` to the ranks that share a check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.processes.channel import Channel
from torch_gradcheck.processes.team import Team

if TYPE_CHECKING:
    Group = dist.ProcessGroup | Any | None

ADVICE = (
    "call torch.distributed.init_process_group() first, and give torch.distributed.group.WORLD, or what new_group() "
    "returned on the ranks that it was made of."
)


def team_of(group: Group) -> Team:
    """The ranks of a group, of which this process is one; this one alone where there is no other.

    Args:
        group: a `torch.distributed` process group; a `DeviceMesh` of one dimension stands for its group. None: alone.

    Raises:
        InvalidRequestError: it is something else, or has ended, or this process is no member of it.
    """
    if group is None:
        return Team()
    if not dist.is_available():
        raise InvalidRequestError("group was given, and this build of torch has no torch.distributed: leave it out.")
    group = _of_mesh(group)
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise InvalidRequestError(
            "group is none that this process is a member of: only the ranks that it was made of may call the check."
        )
    if not isinstance(group, dist.ProcessGroup):
        raise InvalidRequestError(f"group must be a torch.distributed process group, got {_found(group)}: {ADVICE}")
    return _team_of(group)


def _team_of(group: dist.ProcessGroup) -> Team:
    try:
        channel = Channel(group)
    except (ValueError, AssertionError, KeyError, RuntimeError) as error:
        raise InvalidRequestError(
            f"group has been destroyed, or this process is no member of it ({error}): {ADVICE}"
        ) from error
    return Team() if channel.size == 1 else Team(channel)


def _of_mesh(group: Any) -> Any:
    """The group of a mesh; anything else as it is."""
    mesh = getattr(dist, "device_mesh", None)
    if mesh is None or not isinstance(group, mesh.DeviceMesh):
        return group
    if group.ndim != 1:
        raise InvalidRequestError(
            f"group is a DeviceMesh of {group.ndim} dimensions: give one of them, mesh[name], or the process group of "
            "all the ranks that are to share the work."
        )
    return group.get_group()


def _found(value: object) -> str:
    return f"{type(value).__name__} {value!r}" if len(repr(value)) <= 60 else f"a {type(value).__name__}"
