"""The processes that run a command together: those that torchrun has started, or this one alone."""

from __future__ import annotations

import atexit
import io
import os
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist

from torch_gradcheck.errors import ProcessGroupError
from torch_gradcheck.processes.groups import team_of
from torch_gradcheck.processes.team import Team

RENDEZVOUS = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
"""The variables by which `init_process_group()` finds the other processes; torchrun sets them, other launchers can."""

STARTED_TWICE = "trying to initialize the default process group twice"
"""What `init_process_group` says where there is a group already."""


class Ranks:
    """The ranks that share a check: of the group that the user's file has started, else of one that is started here."""

    def __init__(self) -> None:
        self._are_launched = dist.is_available() and os.environ.keys() >= RENDEZVOUS
        self._is_started_here = False
        self._team = Team()

    @property
    def are_several(self) -> bool:
        """Whether there are others, started by a launcher, which ends all when one exits otherwise than the others."""
        return self._are_launched or self.group is not None

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        group = self.group
        if group is not None:
            return dist.get_rank(group) == 0
        return not self._are_launched or int(os.environ["RANK"]) == 0

    @property
    def group(self) -> dist.ProcessGroup | None:
        """All ranks; None where there is no process group."""
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

    def command(self, words: Sequence[str]) -> list[str]:
        """The command with these words, and the launcher in front of it where there was one."""
        if not self._are_launched:
            return ["torch-gradcheck", *words]
        on_this_machine = os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"]
        return ["torchrun", "--nproc-per-node", on_this_machine, "-m", "torch_gradcheck", *words]

    def one_voice(self) -> AbstractContextManager[object]:
        """A block of which only the leader's words are heard."""
        silence = ExitStack()
        if not self.leads:
            silence.enter_context(redirect_stdout(io.StringIO()))
            silence.enter_context(redirect_stderr(io.StringIO()))
        return silence

    def parsed(self, parser: ArgumentParser, arguments: Sequence[str] | None) -> Namespace:
        """The words of the command. Where they cannot be used, no rank exits before the leader has said so."""
        try:
            with self.one_voice():
                return parser.parse_args(arguments)
        except SystemExit:
            self.join().meet()
            self.leave()
            raise

    def together(self) -> AbstractContextManager[object]:
        """A block in which an exception on one rank ends the command on all; at the end of the first, they join."""
        return _Together(self)

    def join(self) -> Team:
        """The ranks, as a team; starts their group if they were launched and there is none yet."""
        if self._are_launched and not dist.is_initialized():
            _start()
            self._is_started_here = True
        if self.group is not None and self._team.size == 1:
            self._team = team_of(self.group)
        return self._team

    def called(self, function: Callable[[], Any]) -> Any:
        """What the user's function returns. If it starts a process group, the one that was started here gives way."""
        random_state = torch.get_rng_state()
        try:
            return function()
        except ValueError as error:
            if not self._is_started_here or STARTED_TWICE not in str(error):
                raise
        self.leave()
        torch.set_rng_state(random_state)
        return function()

    def leave(self) -> None:
        """Ends the group that was started here. What a launcher does to ranks that exit later than others is no end."""
        if self._is_started_here and dist.is_initialized():
            dist.destroy_process_group()
        self._is_started_here, self._team = False, Team()
        if self._are_launched:
            atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


class _Together:
    """See `Ranks.together`. A class and not a generator, which an interrupt could leave behind."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        with self._ranks.join().together():  # only now, since the block may have started another group
            if error is not None:
                raise error


def _start() -> None:
    """Starts the group of all ranks; raises ProcessGroupError where they do not find each other."""
    backend = "gloo"
    if (accelerator := _accelerator()) is not None:
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator)}"
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # under a prefix, since the file may start another group by the same store
        store = dist.PrefixStore("torch_gradcheck", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise ProcessGroupError(f"the process group could not be started: {error}") from error


def _accelerator() -> torch.device | None:
    """The accelerator of which each rank of this machine has one; None where there are fewer."""
    if not torch.accelerator.is_available():
        return None
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ["WORLD_SIZE"])
    enough = torch.accelerator.device_count() >= local_ranks
    return torch.accelerator.current_accelerator() if enough else None
