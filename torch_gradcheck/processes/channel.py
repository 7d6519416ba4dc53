"""Bytes carried between the ranks of a torch.distributed group, with waits that signals can reach."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from torch_gradcheck.errors import ProcessGroupError
from torch_gradcheck.torch_internals.dispatch import modes_disabled

LEADER = 0
"""The rank, within the group, that leads."""

SHORTEST, LONGEST = 5e-5, 2e-3
"""Seconds between two looks at whether the others have come, at first and after a while."""

PACKET = 4096
"""Bytes of the first collective of a message, whose length nobody else knows; what is left goes in a second one."""

HEADER = 8
"""Bytes of a packet that hold the length of the whole message."""


class Channel:
    """Broadcasts and gathers bytes over a process group.

    Args:
        group: a `torch.distributed` process group of which this process is a member.

    Attributes:
        rank: of this process within the group.
        size: how many ranks there are.
        is_lost: whether a collective has failed; the ranks no longer listen to each other.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.is_lost = False
        self._group = group
        self._device = _device_of(group)
        self._leader = dist.get_global_rank(group, LEADER)

    def told(self, message: bytes = b"") -> bytes:
        """The leader's message, on every rank; that of any other rank is not looked at."""
        with modes_disabled(), torch.inference_mode(False):
            packet, rest = self._packed(message)
            self._wait(dist.broadcast, packet, self._leader)
            length = _length(packet)
            if length > PACKET - HEADER:
                rest = rest if self.rank == LEADER else self._buffer(length - PACKET + HEADER)
                self._wait(dist.broadcast, rest, self._leader)
            return message if self.rank == LEADER else _bytes(packet)[HEADER : HEADER + length] + _bytes(rest)

    def gathered(self, message: bytes) -> list[bytes]:
        """The messages of all ranks, in their order; empty on all but the leader."""
        with modes_disabled(), torch.inference_mode(False):
            packet, rest = self._packed(message)
            packets = [self._buffer(PACKET) for _ in range(self.size)]
            self._wait(dist.all_gather, packets, packet)
            lengths = [_length(each) for each in packets]
            rests = self._gathered_rests(rest, max(0, max(lengths) - PACKET + HEADER))
            if self.rank != LEADER:
                return []
            whole = [_bytes(one) + _bytes(other) for one, other in zip(packets, rests, strict=True)]
            return [each[HEADER : HEADER + length] for each, length in zip(whole, lengths, strict=True)]

    def scattered(self, longest: int, parts: Sequence[bytes] = ()) -> bytes:
        """The part of this rank, as the leader gives one to each.

        Args:
            longest: the length of the longest; all ranks know it.
            parts: of the leader only.
        """
        with modes_disabled(), torch.inference_mode(False):
            lengths = [len(part).to_bytes(HEADER, "little") for part in parts]
            padded = [(one + other).ljust(HEADER + longest, b"\0") for one, other in zip(lengths, parts, strict=True)]
            own = self._buffer(HEADER + longest)
            given = [self._tensor(part) for part in padded] if self.rank == LEADER else None
            self._wait(dist.scatter, own, given, self._leader)
            return _bytes(own[HEADER : HEADER + _length(own)])

    def _gathered_rests(self, rest: torch.Tensor, longest: int) -> list[torch.Tensor]:
        """What follows the packets of all ranks; only the leader has it."""
        if not longest:
            return [rest] * self.size
        padded = torch.cat([rest, self._buffer(longest - len(rest))])
        rests = [self._buffer(longest) for _ in range(self.size)] if self.rank == LEADER else None
        self._wait(dist.gather, padded, rests, dst=self._leader)
        return rests or []

    def _packed(self, message: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        """The first packet of a message, and what is left of it."""
        first = len(message).to_bytes(HEADER, "little") + message[: PACKET - HEADER]
        return self._tensor(first.ljust(PACKET, b"\0")), self._tensor(message[PACKET - HEADER :])

    def _tensor(self, data: bytes) -> torch.Tensor:
        return torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)).to(self._device)

    def _buffer(self, length: int) -> torch.Tensor:
        return torch.empty(length, dtype=torch.uint8, device=self._device)

    def _wait(self, collective: Any, *args: Any, **kwargs: Any) -> None:
        """Runs a collective, and looks at signals until it is done."""
        began = time.monotonic()
        try:
            work = collective(*args, **kwargs, group=self._group, async_op=True)
            while not work.is_completed():
                time.sleep(min(LONGEST, max(SHORTEST, (time.monotonic() - began) / 8)))
            work.wait()
        except (RuntimeError, ValueError) as error:
            self.is_lost = True
            raise self._lost(error, time.monotonic() - began) from error

    def _lost(self, error: Exception, seconds: float) -> ProcessGroupError:
        """What an error of torch's means."""
        told = (str(error).splitlines() or [type(error).__name__])[0]
        who = f"rank {1 - self.rank}" if self.size == 2 else "another rank of the group"
        if "timed out" in told.lower() or "timeout" in told.lower():
            return ProcessGroupError(
                f"{who} has not answered for {seconds:.0f} s, the timeout of the process group, so the check ends "
                "here: every rank has to call the check, at the same point of its program and with the same "
                f"arguments; one that takes longer needs a group with a longer timeout ({told})"
            )
        return ProcessGroupError(f"{who} has ended, or left the process group, so the check ends here ({told})")


def _length(packet: torch.Tensor) -> int:
    return int.from_bytes(_bytes(packet[:HEADER]), "little")


def _bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.numpy(force=True).tobytes())


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Where the tensors of messages have to be: on the CPU where the group reaches it, else on the current device."""
    config = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    kinds = [part.partition(":")[0] for part in config.split(",")]
    if "cpu" in kinds:
        return torch.device("cpu")
    return torch.device(kinds[0], torch.get_device_module(kinds[0]).current_device())
