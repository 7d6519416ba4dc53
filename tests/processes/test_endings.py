"""One end for all ranks: whatever a rank ends in, and wherever, the others are told, and nobody is left waiting."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import InvalidRequestError, NonFiniteLossError, ProcessGroupError, check_module

LIMIT = 60.0
"""Seconds within which every rank has to end, however busy the machine is: below the timeout of the group."""

PREFLIGHT, NOISE, SHARE = 1, 8, 30
"""Evaluations of J on a rank at which it is in that stage, see `Faulty`."""


class Ending(NamedTuple):
    """How a check ended on a rank, and what it left behind."""

    kind: str
    text: str
    notes: str
    seconds: float
    is_as_before: bool
    sum_of_ranks: float
    works_again: bool


class Faulty:
    """A loss that on one rank does something at the n-th evaluation of J."""

    def __init__(self, rank: int, at: int, fault: Callable[[], object]) -> None:
        self.faulty, self.at, self.fault = dist.get_rank() == rank, at, fault
        self.evaluations = 0

    def __call__(self, y: Tensor, target: Tensor) -> Tensor:
        self.evaluations += 1
        if self.faulty and self.evaluations == self.at:
            self.fault()
        return nn.functional.mse_loss(y, target)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 5, generator=generator)


def ending(check: Callable[[nn.Module], object]) -> Ending:
    """Runs a check, then another one that has no fault, and a collective of the caller's own."""
    model, started = small_model(), time.monotonic()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kind = text = notes = ""
    try:
        check(model)
    except BaseException as error:
        kind, text, notes = type(error).__name__, str(error), "\n".join(getattr(error, "__notes__", ()))
    seconds = time.monotonic() - started
    ones = torch.ones(1)
    dist.all_reduce(ones)
    after = model.state_dict()
    same = all(torch.equal(before[name], after[name]) for name in before)
    handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    report = check_module(model, nn.functional.mse_loss, batch(), group=dist.group.WORLD)
    return Ending(kind, text, notes, seconds, same and handler, float(ones), report.passed)


def assert_all_ended(endings: list[Ending]) -> None:
    assert all(each.seconds < LIMIT for each in endings)
    assert all(each.is_as_before and each.works_again and each.sum_of_ranks == 2 for each in endings)


class WithFieldsError(Exception):
    """Can be pickled."""

    def __init__(self, text: str, size: int = 0) -> None:
        super().__init__(text)
        self.size = size


class NeedsTwoError(Exception):
    """Its pickle cannot be read."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


class ReadAsAnotherError(Exception):
    """Is another exception when its pickle is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return ValueError, ("another",)


class RefusesToBeSentError(Exception):
    """Ends whoever pickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise SystemExit("not to be sent")


def raised(name: str) -> None:
    """Raises one of several exceptions."""
    match name:
        case "plain":
            raise RuntimeError("no memory left here")
        case "fields":
            raise WithFieldsError("no memory left here", size=3)
        case "lock":
            error = RuntimeError("no memory left here")
            error.lock = threading.Lock()  # type: ignore[attr-defined]
            raise error
        case "two":
            raise NeedsTwoError("no memory", " left here")
        case "another":
            raise ReadAsAnotherError("no memory left here")
        case "refuses":
            raise RefusesToBeSentError("no memory left here")
        case "huge":
            error = RuntimeError("no memory left here")
            error.model = torch.zeros(2**20)  # type: ignore[attr-defined]
            raise error
        case "exit":
            raise SystemExit("no memory left here")


def raises(rank: int, at: int, name: str) -> Ending:
    loss = Faulty(rank, at, lambda: raised(name))
    return ending(lambda model: check_module(model, loss, batch(), group=dist.group.WORLD))


@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "other"])
@pytest.mark.parametrize("at", [PREFLIGHT, NOISE, SHARE], ids=["preflight", "noise", "share"])
def test_an_exception_ends_the_check_on_all_ranks(two_ranks: Ranks, at: int, rank: int) -> None:
    endings = two_ranks.run(raises, rank, at, "plain", timeout=LIMIT)
    assert_all_ended(endings)
    assert [(each.kind, each.text) for each in endings] == [("RuntimeError", "no memory left here")] * 2
    assert not endings[rank].notes
    assert endings[1 - rank].notes.startswith(f"raised on rank {rank}:")
    assert "test_endings.py" in endings[1 - rank].notes
    assert "/torch/" not in endings[1 - rank].notes


@pytest.mark.parametrize("name", ["fields", "lock", "two", "another", "refuses", "huge", "exit"])
def test_an_exception_that_cannot_be_sent_is_told_in_words(two_ranks: Ranks, name: str) -> None:
    endings = two_ranks.run(raises, 1, SHARE, name, timeout=LIMIT)
    assert_all_ended(endings)
    assert endings[1].text == "no memory left here"
    assert endings[1].kind not in ("", "ProcessGroupError")
    if name == "fields":
        assert endings[0].kind == "WithFieldsError"
        return
    assert endings[0].kind == "ProcessGroupError"
    assert "rank 1 ended the check" in endings[0].text
    assert "no memory left here" in endings[0].text
    assert endings[1].kind in endings[0].text


def wrong_on_one_rank(rank: int, what: str) -> Ending:
    """A call that this rank refuses before J is evaluated."""
    here = dist.get_rank() == rank

    def check(model: nn.Module) -> object:
        options: dict[str, Any] = {"eps": -1.0} if here and what == "option" else {}
        if what == "model" and here:
            return check_module("no model", nn.functional.mse_loss, batch(), group=dist.group.WORLD)  # type: ignore[arg-type]
        lost = nn.LazyLinear(3) if what == "loan" and here else model
        given: Any = () if what == "batch" and here else batch()
        return check_module(lost, nn.functional.mse_loss, given, group=dist.group.WORLD, **options)

    return ending(check)


@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "other"])
@pytest.mark.parametrize("what", ["option", "model", "loan", "batch"])
def test_what_one_rank_refuses_ends_the_check_on_all(two_ranks: Ranks, what: str, rank: int) -> None:
    endings = two_ranks.run(wrong_on_one_rank, rank, what, timeout=LIMIT)
    assert_all_ended(endings)
    assert [each.kind for each in endings] == [InvalidRequestError.__name__] * 2


def not_finite_on_one_rank(rank: int) -> tuple[str, str | None]:
    model = small_model()
    if dist.get_rank() == rank:
        nn.init.constant_(model[0].weight, float("inf"))
    try:
        check_module(model, nn.functional.mse_loss, batch(), group=dist.group.WORLD)
    except NonFiniteLossError as error:
        return str(error), error.module
    return "", None


def test_errors_keep_their_attributes_on_the_way(two_ranks: Ranks) -> None:
    one, other = two_ranks.run(not_finite_on_one_rank, 1, timeout=LIMIT)
    assert one == other
    assert "weight" in one[0]


def absent(others: float) -> Ending:
    """Rank 1 never calls the check that rank 0 calls with a group that waits for this many seconds."""
    dist.barrier()
    group = dist.new_group([0, 1], timeout=timedelta(seconds=others))

    def check(model: nn.Module) -> object:
        return check_module(model, nn.functional.mse_loss, batch(), group=group) if dist.get_rank() == 0 else None

    return ending(check)


def test_a_rank_that_never_calls_the_check_is_missed(two_ranks: Ranks) -> None:
    endings = two_ranks.run(absent, 2.0, timeout=LIMIT)
    assert_all_ended(endings)
    assert endings[0].kind == ProcessGroupError.__name__
    assert "rank 1 has not answered for 2 s, the timeout" in endings[0].text
    assert "every rank has to call the check" in endings[0].text


# Signals --------------------------------------------------------------------------------------------------------------


def interrupt_soon(sent: Path, times: int = 1) -> None:
    """Sends this process SIGINT a little later, and then makes the file."""

    def send() -> None:
        time.sleep(0.25)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.03)
        sent.touch()

    threading.Thread(target=send, daemon=True).start()


def wait_for(sent: Path) -> None:
    """Takes longer than the other rank's interrupt, however busy the machine is."""
    while not sent.exists():
        time.sleep(0.01)
    time.sleep(0.1)


def interrupted_in_its_own_work(rank: int, at: int) -> Ending:
    loss = Faulty(rank, at, lambda: signal.raise_signal(signal.SIGINT))
    return ending(lambda model: check_module(model, loss, batch(), group=dist.group.WORLD))


def interrupted_while_it_waits(rank: int, at: int, sent: Path, times: int = 1) -> Ending:
    """The other rank takes a while over one evaluation, and this one is interrupted meanwhile."""
    loss = Faulty(1 - rank, at, lambda: wait_for(sent))
    me = dist.get_rank()

    def check(model: nn.Module) -> object:
        if me == rank:
            interrupt_soon(sent, times)
        elif at == 0:
            wait_for(sent)
        return check_module(model, loss, batch(), group=dist.group.WORLD)

    return ending(check)


def assert_interrupted(endings: list[Ending], rank: int) -> None:
    assert_all_ended(endings)
    assert endings[rank].kind == "KeyboardInterrupt"
    assert endings[1 - rank].kind == ProcessGroupError.__name__
    assert f"rank {rank} ended the check on all ranks with KeyboardInterrupt" in endings[1 - rank].text


@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "other"])
@pytest.mark.parametrize("at", [PREFLIGHT, NOISE, SHARE], ids=["preflight", "noise", "share"])
def test_an_interrupt_in_its_own_work_ends_all_ranks(two_ranks: Ranks, at: int, rank: int) -> None:
    assert_interrupted(two_ranks.run(interrupted_in_its_own_work, rank, at, timeout=LIMIT), rank)


@pytest.mark.parametrize("rank", [0, 1], ids=["leader", "other"])
@pytest.mark.parametrize("at", [0, PREFLIGHT, SHARE], ids=["call", "meeting", "share"])
def test_an_interrupt_while_it_waits_ends_all_ranks(two_ranks: Ranks, at: int, rank: int, tmp_path: Path) -> None:
    assert_interrupted(two_ranks.run(interrupted_while_it_waits, rank, at, tmp_path / "sent", timeout=LIMIT), rank)


def test_a_second_interrupt_changes_nothing(two_ranks: Ranks, tmp_path: Path) -> None:
    endings = two_ranks.run(interrupted_while_it_waits, 0, SHARE, tmp_path / "sent", 2, timeout=LIMIT)
    assert_interrupted(endings, 0)


def loses_patience(sent: Path) -> Ending:
    """Rank 1 is interrupted twice while rank 0 takes long, and does not wait any longer to tell it."""
    dist.barrier()
    group, me = dist.new_group([0, 1], timeout=timedelta(seconds=2.0)), dist.get_rank()
    loss = Faulty(0, NOISE, lambda: wait_for(sent))

    def check(model: nn.Module) -> object:
        if me == 1:
            interrupt_soon(sent, times=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch_gradcheck.processes.team.PATIENCE", 0.0)
            return check_module(model, loss, batch(), group=group)

    return ending(check)


def test_a_rank_that_is_interrupted_again_ends_alone_and_the_others_by_the_timeout(
    two_ranks: Ranks, tmp_path: Path
) -> None:
    one, other = two_ranks.run(loses_patience, tmp_path / "sent", timeout=LIMIT)
    assert_all_ended([one, other])
    assert other.kind == "KeyboardInterrupt"
    assert one.kind == ProcessGroupError.__name__


class AlarmError(Exception):
    """Raised by the caller's own handler of SIGALRM."""


def alarmed(rank: int) -> Ending:
    def rings(*_: object) -> None:
        raise AlarmError("too long")

    before = signal.signal(signal.SIGALRM, rings)
    loss = Faulty(rank, SHARE, lambda: signal.raise_signal(signal.SIGALRM))
    try:
        return ending(lambda model: check_module(model, loss, batch(), group=dist.group.WORLD))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_the_callers_own_handler_raises_is_what_all_raise(two_ranks: Ranks) -> None:
    endings = two_ranks.run(alarmed, 1, timeout=LIMIT)
    assert_all_ended(endings)
    assert [(each.kind, each.text) for each in endings] == [("AlarmError", "too long")] * 2


def nested() -> Ending:
    inner, group = small_model(), dist.group.WORLD

    def loss(y: Tensor, target: Tensor) -> Tensor:
        check_module(inner, nn.functional.mse_loss, batch(), group=group)
        return nn.functional.mse_loss(y, target)

    return ending(lambda model: check_module(model, loss, batch(), group=group))


def test_a_check_inside_of_a_shared_one_is_refused(two_ranks: Ranks) -> None:
    endings = two_ranks.run(nested, timeout=LIMIT)
    assert_all_ended(endings)
    assert [each.kind for each in endings] == ["InvalidRequestError"] * 2
    assert all("inside of one that is running" in each.text for each in endings)
