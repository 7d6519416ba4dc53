"""Two processes on loopback that wait for functions to run: a group of ranks that many tests share."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

START = 120.0
"""Seconds that the processes may take to import torch and to find each other."""

TIMEOUT = 120.0
"""Seconds that a test may take before its ranks are ended. A hundredth is enough where nothing else runs."""

GLOO_TIMEOUT = timedelta(seconds=90)
"""What a collective waits for a rank that does not come."""


IMPORTED = (
    "pytest",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch_gradcheck.against_reference.check",
    "torch_gradcheck.check",
    "torch_gradcheck.monitoring.monitor",
)
"""Modules that the ranks find imported: half of what they would take otherwise, and nearly all where one has died."""


class RankError(AssertionError):
    """A function has ended in an exception on a rank; the text is its traceback there."""


class Ranks:
    """Processes that form a gloo group and run functions of a module's top level, all of them at a time.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT) -> list[Any]:
        """What the function returns on each rank; raises RankError where it raises on one, or takes too long."""
        outcomes = self.outcomes(function, *arguments, timeout=timeout)
        failed = [f"rank {rank}:\n{told}" for rank, (ok, told) in enumerate(outcomes) if not ok]
        if failed:
            raise RankError("\n".join(failed))
        return [value for _, value in outcomes]

    def outcomes(
        self, function: Callable[..., Any], *arguments: Any, timeout: float = TIMEOUT
    ) -> list[tuple[bool, Any]]:
        """For each rank whether the function has returned, and what, or its traceback. The ranks start anew after."""
        if not all(process.is_alive() for process, _ in self._processes):
            self.close()  # what ended one between two tests, as a late interrupt, shall not fail the next
        if not self._processes:
            self._start()
        for _, pipe in self._processes:
            pipe.send((function, arguments))
        outcomes = [self._outcome(process, pipe, timeout) for process, pipe in self._processes]
        if not all(ok for ok, _ in outcomes):
            self.close()
        return outcomes

    def _outcome(self, process: Any, pipe: Any, timeout: float) -> tuple[bool, Any]:
        try:
            if pipe.poll(timeout):
                ok, told = pipe.recv()
                return bool(ok), told
        except (EOFError, ConnectionError):
            process.join(10.0)
            return False, f"the process has ended with status {process.exitcode}"
        return False, f"no answer after {timeout:g} s"

    def _start(self) -> None:
        starting = _imported_once()
        store = Path(tempfile.mkdtemp()) / "store"
        for rank in range(self.size):
            here, there = starting.Pipe()
            process = starting.Process(target=_serve, args=(rank, self.size, str(store), there), daemon=True)
            process.start()
            there.close()
            self._processes.append((process, here))
        for _, pipe in self._processes:
            assert pipe.poll(START), "a rank does not start"
            pipe.recv()

    def close(self) -> None:
        """Ends the processes; the next call of `run` starts new ones."""
        for process, pipe in self._processes:
            pipe.close()
            process.kill()
            process.join()
        self._processes = []


def _imported_once() -> Any:
    """How processes are started: by a server that has imported torch for all of them, where there is such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _serve(rank: int, size: int, store: str, pipe: Any) -> None:
    """The life of a rank: joins the group, then runs what it is sent."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    faulthandler.enable()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=GLOO_TIMEOUT)
    pipe.send("ready")
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            outcome = (True, function(*arguments))
        except BaseException:
            outcome = (False, traceback.format_exc())
        pipe.send(outcome)
