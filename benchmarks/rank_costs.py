"""What a check costs each rank of a group: CPU seconds, evaluations, and what its messages take, counted from outside.

The package knows nothing of it: for the time of a check the methods that ranks meet in are wrapped.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist

from torch_gradcheck.processes.channel import LEADER, Channel
from torch_gradcheck.processes.team import Team

TIMEOUT = timedelta(minutes=10)
"""Of the process group: no message takes as long, and no check."""


@dataclass
class RankCost:
    """What a check took of one rank.

    Attributes:
        cpu: seconds of the process, its messages included.
        wall: seconds.
        evaluations: of J, those by a record included; 0 where faults are planted.
        shared_cpu: CPU seconds of its own shares of what was split; of the leader only.
        message_cpu: CPU seconds that messages took: pickling, sending, unpickling.
        message_wall: seconds between the beginning and the end of messages, waiting for others included.
        rounds: how often work was split.
        messages: collective operations.
        carried: bytes that the leader sends to all others together, and they to it; of the leader only.
    """

    cpu: float = 0.0
    wall: float = 0.0
    evaluations: int = 0
    shared_cpu: float = 0.0
    message_cpu: float = 0.0
    message_wall: float = 0.0
    rounds: int = 0
    messages: int = 0
    carried: int = 0


class Meter:
    """Counts in a process while `counting` what a check costs this rank."""

    def __init__(self) -> None:
        self.cost = RankCost()
        self._depth = 0
        self._problem: Any = None
        self._prepared = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Wraps the methods in which ranks meet, and times the block."""
        with ExitStack() as stack:
            for owner, name, wrapper in (
                *(
                    (Channel, name, self._message)
                    for name in ("told", "gathered", "scattered")
                    if hasattr(Channel, name)
                ),
                (pickle, "dumps", self._message),
                (pickle, "loads", self._message),
                (Team, "lead", self._lead),
                (Team, "shared", self._share),
                *((dist, name, self._collective) for name in ("broadcast", "gather", "all_gather", "scatter")),
            ):
                stack.enter_context(patch.object(owner, name, wrapper(getattr(owner, name))))
            cpu, wall = time.process_time(), time.perf_counter()
            yield
            self.cost.cpu, self.cost.wall = time.process_time() - cpu, time.perf_counter() - wall

    def _message(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            cpu, wall = time.process_time(), time.perf_counter()
            self._depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:  # one method may be made of others
                    self.cost.message_cpu += time.process_time() - cpu
                    self.cost.message_wall += time.perf_counter() - wall

        return counted

    def _share(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            cpu, messages = time.process_time(), self.cost.message_cpu
            try:
                return method(*args, **kwargs)
            finally:
                self.cost.rounds += 1
                self.cost.shared_cpu += time.process_time() - cpu - (self.cost.message_cpu - messages)

        return counted

    def _collective(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            own = next(each for each in args if isinstance(each, torch.Tensor))  # as large on every rank
            others = dist.get_world_size() - 1 if dist.get_rank() == LEADER else 0
            self.cost.messages += 1
            self.cost.carried += others * own.numel() * own.element_size()
            return function(*args, **kwargs)

        return counted

    def _lead(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Notes the evaluations; the leader's include those of the others, see `with_own_evaluations`."""

        @functools.wraps(method)
        def counted(team: Team, state: Any, work: Any, prepare: Any = lambda: None) -> Any:
            outermost, self._problem = self._problem is None, state

            def prepared() -> None:
                prepare()
                self._prepared = _evaluations(state)

            try:
                return method(team, state, work, prepared)
            finally:
                if outermost:
                    self.cost.evaluations += _evaluations(state)
                    self._problem = None

        return counted

    @property
    def in_shares(self) -> int:
        """Evaluations in the shares of this rank, where it follows."""
        return self.cost.evaluations - self._prepared


class Findings(NamedTuple):
    """What a check says.

    Attributes:
        rows: name, status and relative error of every row.
        culprit: of the report.
    """

    rows: list[tuple[str, str, float | None]]
    culprit: str | None


def _evaluations(state: Any) -> int:
    """How often J was evaluated; 0 where planted faults are shared, which take a backward each."""
    return int(getattr(state, "evaluations", 0))


@dataclass(frozen=True)
class Outcome:
    """What became of a check on one rank.

    Attributes:
        cost: of this rank.
        in_shares: evaluations in its shares, where it follows.
        said: by this rank.
    """

    cost: RankCost
    in_shares: int
    said: Findings


Ready = Callable[[str, Any], Callable[[], Findings]]
"""A function of a module's top level: makes the check of that name, by the ranks of the group, ready to be run."""


class Group:
    """Processes on loopback, one thread each, that run checks together; to be closed.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        spawning = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "store"
        self._members: list[tuple[Any, Any]] = []
        for rank in range(size):
            here, there = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(rank, size, str(store), there), daemon=True)
            process.start()
            there.close()
            self._members.append((process, here))

    def outcomes(self, ready: Ready, key: str) -> list[Outcome]:
        """What every rank says of the check of that name, the evaluations of each its own."""
        for _, pipe in self._members:
            pipe.send((ready, key))
        found: list[Any] = [pipe.recv() for _, pipe in self._members]
        for each in found:
            if isinstance(each, str):
                raise RuntimeError(each)
        return with_own_evaluations(found)

    def close(self) -> None:
        """Ends the processes."""
        for process, pipe in self._members:
            pipe.close()
            process.join(10)
            process.kill()


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT)
    while True:
        try:
            ready, key = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(outcome(ready, key))
        except Exception as error:
            pipe.send(f"{key}: {type(error).__name__}: {error}")


def outcome(ready: Ready, key: str) -> Outcome:
    """What becomes of a check on this rank; without a process group, of one process."""
    meter, check = Meter(), ready(key, dist.group.WORLD)
    with meter.counting():
        said = check()
    return Outcome(meter.cost, meter.in_shares, said)


def with_own_evaluations(outcomes: list[Outcome]) -> list[Outcome]:
    """The outcomes of all ranks, the leader's first, whose evaluations were those of the others' shares as well."""
    outcomes[0].cost.evaluations -= sum(each.in_shares for each in outcomes[1:])
    return outcomes
