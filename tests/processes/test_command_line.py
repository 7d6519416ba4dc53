"""The command in several processes: one report, one message and one exit status, and a group that ends with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist

from tests.processes.ranks import Ranks
from torch_gradcheck.command_line import launch, main

PROBLEMS = """
import torch
import torch.distributed as dist
from torch import nn

def right():
    return nn.Sequential(nn.Linear(6, 4), nn.Tanh()), nn.MSELoss(), (torch.ones(3, 6), torch.zeros(3, 4))

def replicated():
    model, loss_fn, batch = right()
    return nn.parallel.DistributedDataParallel(model), loss_fn, batch

def wrong():
    model, loss_fn, batch = right()
    model[0].weight.register_hook(lambda g: 2 * g)
    return model, loss_fn, batch

def proves_nothing():
    model, _, batch = right()
    return model, lambda y, _: 0 * y.sum(), batch

def function():
    return torch.mul, (torch.ones(2), torch.full((2,), 3.0))

def raises_on_one():
    if dist.get_rank() == 1:
        raise ZeroDivisionError("of mine")
    return right()

def raises_on_one_in_the_loss():
    model, _, batch = right()
    return model, lambda y, _: raises_on_one() and y.sum(), batch

def is_interrupted_on_one():
    if dist.get_rank() == 1:
        raise KeyboardInterrupt
    return right()

def asks(argument):
    return right()

def starts_a_group():
    dist.init_process_group("gloo")
    model, loss_fn, batch = wrong()
    return nn.parallel.DistributedDataParallel(model), loss_fn, batch
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problems_of_ranks.py"
    path.write_text(PROBLEMS)
    return path


class Said(NamedTuple):
    """The outcome of the command on one rank."""

    status: int
    out: str
    err: str
    group_is_alive: bool


def said(*words: str) -> Said:
    """Runs the command on a rank of a group that is there already."""
    sys.modules.pop("problems_of_ranks", None)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(words)
        except SystemExit as left:
            status = int(str(left.code))
    return Said(status, out.getvalue(), err.getvalue(), dist.is_initialized())


@pytest.mark.parametrize(
    ("function", "status"), [("right", 0), ("replicated", 0), ("wrong", 1), ("proves_nothing", 3), ("function", 0)]
)
def test_rank_0_prints_and_all_exit_alike(two_ranks: Ranks, file: Path, function: str, status: int) -> None:
    one, other = two_ranks.run(said, f"{file}:{function}")
    assert one.out.startswith({0: "gradients right", 1: "gradients WRONG", 3: "no gradient proven right"}[status])
    assert one == (status, one.out, "", True)
    assert other == (status, "", "", True)


COULD_NOT = {
    "raises_on_one": "problems_of_ranks.py:raises_on_one ended in ZeroDivisionError",
    "raises_on_one_in_the_loss": "problems_of_ranks.py:raises_on_one_in_the_loss ended in ZeroDivisionError",
    "is_interrupted_on_one": "rank 1 ended the check on all ranks with KeyboardInterrupt",
    "asks": "can be called without arguments",
    "rihgt": "no function 'rihgt'",
}


@pytest.mark.parametrize("function", COULD_NOT)
def test_one_message_says_why_it_could_not_be_checked(two_ranks: Ranks, file: Path, function: str) -> None:
    one, other = two_ranks.run(said, f"{file}:{function}")
    assert COULD_NOT[function] in one.err
    assert one.err.count("torch-gradcheck:") == 1
    assert (one.status, one.out) == (2, "")
    assert other == (2, "", "", True)


@pytest.mark.parametrize("words", [["--mode", "no"], ["--json", "/no/such/folder/report.json"]], ids=" ".join)
def test_words_that_cannot_be_used_are_told_once(two_ranks: Ranks, file: Path, words: list[str]) -> None:
    one, other = two_ranks.run(said, f"{file}:right", *words)
    assert words[-1] in one.err
    assert other == (2, "", "", True)
    assert one.status == 2


def test_rank_0_writes_the_file(two_ranks: Ranks, file: Path) -> None:
    one, other = two_ranks.run(said, f"{file}:right", "--json", "-")
    assert json.loads(one.out)["passed"]
    assert "gradients right" in one.err
    assert other.out == other.err == ""


@pytest.mark.parametrize(
    ("devices", "local_ranks", "backend"),
    [(0, 2, "gloo"), (1, 2, "gloo"), (2, 2, "cpu:gloo,cuda:nccl"), (8, 2, "cpu:gloo,cuda:nccl")],
)
def test_each_rank_gets_an_accelerator_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, devices: int, local_ranks: int, backend: str
) -> None:
    begun: list[object] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_ranks))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "set_device_index", begun.append)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(dist.HashStore(), 1, 4)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: begun.append(backend))
    launch._start()
    assert begun == ([backend] if backend == "gloo" else [1, backend])


def test_a_group_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "not a port",
    }.items():
        monkeypatch.setenv(name, value)
    told = said(f"{file}:right")
    assert (told.status, told.out) == (2, "")
    assert told.err.startswith("torch-gradcheck: the process group could not be started: ")


def by_torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    """What real torchrun makes of the command in two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launcher, "-m", "torch_gradcheck", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_torchrun_starts_a_group_that_gives_way_and_sees_the_same_status_of_all(file: Path) -> None:
    finished = by_torchrun(f"{file}:starts_a_group", "--json", str(file.with_suffix(".json")))
    assert finished.returncode == 1
    assert finished.stdout.count("gradients WRONG in 1 of 2 parameters") == 1
    assert not json.loads(file.with_suffix(".json").read_text())["passed"]
    assert re.findall(r"  exitcode *: (-?\d+)", finished.stderr) == ["1", "1"]
    of_ranks = finished.stderr.partition("Traceback")[0].splitlines()  # what follows is torchrun's own
    assert [line for line in of_ranks if "torch/distributed/elastic" not in line] == []
