"""Objects carried between the ranks of a torch.distributed group, with waits that Ctrl-C can reach."""

from __future__ import annotations

import pickle
import time
from typing import Any

import torch
import torch.distributed as dist

from torch_gradcheck.errors import ProcessGroupError

LEADER = 0
"""The rank, within the group, that leads."""

SHORTEST, LONGEST = 5e-5, 2e-3
"""Seconds between two looks at whether the others have come, at first and after a while."""


class Channel:
    """Broadcasts and gathers objects over a process group.

    A signal that arrives during a wait is kept until the others can be told of it: a rank that left the wait at once
    would leave them alone in theirs. A second one is raised where it arrives.

    Args:
        group: a `torch.distributed` process group of which this process is a member.

    Attributes:
        rank: of this process within the group.
        size: how many ranks there are.
        kept: what a signal raised during a wait; None without.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.kept: BaseException | None = None
        self._group = group
        self._device = _device_of(group)

    def told(self, message: Any = None) -> Any:
        """The leader's message, on every rank; that of any other rank is not looked at."""
        payload = _packed(message) if self.rank == LEADER else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([len(payload)], device=self._device)
        self._broadcast(length)
        payload = payload.to(self._device) if self.rank == LEADER else self._buffer(int(length))
        self._broadcast(payload)
        return message if self.rank == LEADER else _unpacked(payload)

    def gathered(self, message: Any) -> list[Any]:
        """The messages of all ranks, in their order; empty on all but the leader."""
        payload = _packed(message).to(self._device)
        lengths = [torch.zeros(1, dtype=torch.int64, device=self._device) for _ in range(self.size)]
        own = torch.tensor([len(payload)], device=self._device)
        self._wait(self._begun(dist.all_gather, lengths, own))
        longest = max(int(length) for length in lengths)
        padded = torch.cat([payload, self._buffer(longest - len(payload))])
        buffers = [self._buffer(longest) for _ in range(self.size)] if self.rank == LEADER else None
        leader = dist.get_global_rank(self._group, LEADER)
        self._wait(self._begun(dist.gather, padded, buffers, dst=leader))
        return [_unpacked(buffer[: int(n)]) for buffer, n in zip(buffers or [], lengths, strict=False)]

    def exchanged(self, message: Any) -> list[Any]:
        """The messages of all ranks, in their order, on every rank."""
        found: list[Any] = self.told(self.gathered(message))
        return found

    def _buffer(self, length: int) -> torch.Tensor:
        return torch.empty(length, dtype=torch.uint8, device=self._device)

    def _broadcast(self, tensor: torch.Tensor) -> None:
        self._wait(self._begun(dist.broadcast, tensor, dist.get_global_rank(self._group, LEADER)))

    def _begun(self, collective: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return collective(*args, **kwargs, group=self._group, async_op=True)
        except RuntimeError as error:
            raise _lost(error) from error

    def _wait(self, work: Any) -> None:
        began = time.monotonic()
        while not work.is_completed():
            try:
                time.sleep(min(LONGEST, max(SHORTEST, (time.monotonic() - began) / 20)))
            except BaseException as error:  # whatever the caller's signal handler raises
                if self.kept is not None:
                    raise
                self.kept = error
        try:
            work.wait()
        except RuntimeError as error:
            raise _lost(error) from error


def _lost(error: RuntimeError) -> ProcessGroupError:
    told = str(error).splitlines()
    return ProcessGroupError(
        "another rank of the group has ended, or did not answer in time, so the check ends here "
        f"({told[0] if told else type(error).__name__})"
    )


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Where the tensors of messages have to be: on the current GPU for NCCL, else on the CPU."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _packed(message: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(message)), dtype=torch.uint8)


def _unpacked(payload: torch.Tensor) -> Any:
    return pickle.loads(payload.numpy(force=True).tobytes())
