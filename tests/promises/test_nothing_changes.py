"""Promise: nothing of the caller's changes, not by one bit, on return and on any exception."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from tests.zoo.interruptions import exception_of
from tests.zoo.losses import probe, squared_error
from tests.zoo.snapshot import Snapshot
from tests.zoo.states import STATES, Setup, State
from torch_gradcheck import check_closure, check_module
from torch_gradcheck.errors import (
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
)

every_state = pytest.mark.parametrize("state", STATES, ids=lambda state: state.id)


@pytest.fixture(autouse=True)
def seeded_and_put_back() -> Iterator[None]:
    """Rows that meddle with the process must not reach other tests."""
    switches = (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark)
    torch.manual_seed(11)
    yield
    torch.set_default_dtype(switches[0])
    torch.set_float32_matmul_precision(switches[1])
    torch.backends.cudnn.benchmark = switches[2]
    torch.use_deterministic_algorithms(False)


def built(state: State) -> tuple[Setup, Snapshot]:
    setup = state.build()
    return setup, Snapshot(model=setup.model, loss=setup.loss_fn, batch=setup.batch, **setup.watched)


@pytest.mark.slow_but_for(7)
@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@every_state
def test_after_a_check(state: State, mode: str) -> None:
    setup, before = built(state)
    check_module(setup.model, setup.loss_fn, setup.batch, mode=mode)
    assert before.changes() == []


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("state", STATES[::3], ids=lambda state: state.id)
def test_after_a_check_of_second_order(state: State) -> None:
    setup, before = built(state)
    with suppress(InvalidRequestError):  # a reentrant checkpoint has no double backward
        check_module(setup.model, setup.loss_fn, setup.batch, order=2)
    assert before.changes() == []


@pytest.mark.slow_but_for(4)
@every_state
def test_after_a_check_in_float32(state: State) -> None:
    setup, before = built(state)
    check_module(setup.model, setup.loss_fn, setup.batch, dtype=torch.float32)
    assert before.changes() == []


def test_after_a_check_of_a_closure() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(4, 3)
    parameters = list(model.parameters())
    closure = lambda: probe(model(x)) + sum(p.square().sum() for p in parameters)  # noqa: E731
    before = Snapshot(model=model, x=x, parameters=parameters, closure=closure)
    assert check_closure(model, closure, mode="train").passed
    assert before.changes() == []


# Exceptions at the k-th call --------------------------------------------------------------------------------------


class UserError(Exception):
    """What the user's code raises."""


class Countdown:
    """Raises at the k-th call, and counts them."""

    def __init__(self, k: int, error: BaseException) -> None:
        self.k, self.error, self.calls = k, error, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.k:
            raise self.error


def raising_loss(setup: Setup, countdown: Countdown) -> Callable[..., Tensor]:
    def loss_fn(*arguments: Any) -> Tensor:
        countdown()
        return setup.loss_fn(*arguments)

    return loss_fn


def raising_forward(setup: Setup, countdown: Countdown) -> Callable[..., Tensor]:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        countdown()

    setup.model.register_forward_hook(hook)
    return setup.loss_fn


def small_batch_norm() -> Setup:
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5), nn.Linear(1, 1, bias=False))
    model[0].eval()
    model[2].weight.grad = torch.ones(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model[2].weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    return Setup(model, batch=torch.randn(4, 1), watched={"optimizer": optimizer})


def small_spectral_norm() -> Setup:
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 1, bias=False))
    return Setup(model.half(), batch=torch.randn(2, 2).half())


def small_writer() -> Setup:
    class Writer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.add_(1)
            return super().forward(x)

    return Setup(Writer(2, 1, bias=False), batch=torch.randn(2, 2))


small = pytest.mark.parametrize("build", [small_batch_norm, small_spectral_norm, small_writer])


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("place", [raising_loss, raising_forward])
@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, SystemExit])
@small
def test_after_an_exception_at_every_call(build: Callable[[], Setup], error: type[BaseException], place: Any) -> None:
    for k in itertools.count(1):
        torch.manual_seed(k)
        setup, raised = build(), error("at a call")
        countdown = Countdown(k, raised)
        loss_fn = place(setup, countdown)
        before = Snapshot(model=setup.model, loss=loss_fn, batch=setup.batch, **setup.watched)
        caught = exception_of(check_module, setup.model, loss_fn, setup.batch, mode="train")
        assert before.changes() == [], f"at call {k}"
        if caught is None:
            break
        assert caught is raised
    coordinates = sum(p.numel() for p in setup.model.parameters())
    assert k > 2 * coordinates, "the loop must have gone through every evaluation"
    assert countdown.calls == k - 1


@small
def test_after_an_exception_in_the_backward(build: Callable[[], Setup]) -> None:
    setup = build()
    raised = UserError("in the backward")

    def refuse(grad: Tensor) -> None:
        raise raised

    next(setup.model.parameters()).register_hook(refuse)
    before = Snapshot(model=setup.model, batch=setup.batch, **setup.watched)
    with pytest.raises(UserError) as caught:
        check_module(setup.model, setup.loss_fn, setup.batch)
    assert caught.value is raised
    assert before.changes() == []


@pytest.mark.parametrize(
    ("loss_fn", "error"),
    [
        (lambda y: y, NonScalarLossError),
        (lambda y: y.sum() * float("nan"), NonFiniteLossError),
        (lambda y: y.sum() * time.perf_counter(), NonDeterministicLossError),
        (lambda y: "loss", NonScalarLossError),
    ],
    ids=["not scalar", "not finite", "not deterministic", "not a tensor"],
)
@small
def test_after_an_error_of_the_check(
    build: Callable[[], Setup], loss_fn: Callable[..., Any], error: type[Exception]
) -> None:
    setup = build()
    before = Snapshot(model=setup.model, batch=setup.batch, **setup.watched)
    assert isinstance(exception_of(check_module, setup.model, loss_fn, setup.batch, mode="train"), error)
    assert before.changes() == []


@pytest.mark.parametrize(
    "options",
    [{"include": "nothing"}, {"mode": "test"}, {"eps": -1.0}, {"gradients": {"unknown": torch.ones(1)}}, {"dtype": 3}],
    ids=str,
)
def test_after_a_refused_request(options: dict[str, Any]) -> None:
    setup = small_batch_norm()
    before = Snapshot(model=setup.model, batch=setup.batch, **setup.watched)
    with pytest.raises((TypeError, ValueError)):
        check_module(setup.model, setup.loss_fn, setup.batch, **options)
    assert before.changes() == []


# What the caller had going on -------------------------------------------------------------------------------------


def test_a_graph_built_before_can_still_go_backward() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), torch.randn(4, 3)
    loss = probe(model(x))
    expected = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    check_module(model, probe, x, mode="train")
    loss.backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.dtype is torch.float32
        assert torch.equal(parameter.grad, grad)


def test_hooks_on_the_accumulating_node_sleep_during_the_check_and_work_after() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    node = get_gradient_edge(model.weight).node
    fired: list[str] = []
    node.register_hook(lambda *grads: fired.append("node"))
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    check_module(model, probe, x)
    assert fired == []
    assert model.weight.grad is None
    assert get_gradient_edge(model.weight).node is node
    probe(model(x)).backward()
    assert sorted(fired) == ["accumulated", "node"]


def test_tensor_hooks_belong_to_the_gradient_on_trial() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    model.weight.register_hook(lambda g: 2 * g)
    report = check_module(model, probe, x)
    assert [row.name for row in report.mismatches] == ["weight"]
    probe(model(x)).backward()
    doubled = model.weight.grad
    assert doubled is not None
    plain = nn.Linear(3, 2)
    plain.load_state_dict(model.state_dict())
    probe(plain(x)).backward()
    assert plain.weight.grad is not None
    assert torch.equal(doubled, 2 * plain.weight.grad)


def trained(checked: bool) -> list[Tensor]:
    """Five training steps with momentum, dropout and statistics; optionally with a check before each."""
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    for _ in range(5):
        x = torch.randn(6, 3) * random.random() + float(np.random.rand())
        batch = (x, x.sum(1, keepdim=True))
        loss = squared_error(model(x), batch[1])
        if checked:
            check_module(model, squared_error, batch, mode="train")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [*model.state_dict().values(), *(p.grad for p in model.parameters()), torch.rand(3)]


def test_training_is_bit_for_bit_the_same_with_checks_between_the_steps() -> None:
    for plain, checked in zip(trained(False), trained(True), strict=True):
        assert torch.equal(plain, checked)


@contextmanager
def half_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float16)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "default dtype": half_by_default,
    "deterministic": deterministic_algorithms,
    "cached parametrizations": nn.utils.parametrize.cached,
    "default device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_inside_a_context_of_the_callers(context: Callable[[], Any]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(4, 3)
    with context():
        before = Snapshot(model=model, x=x)
        report = check_module(model, probe, x)
        assert {row.status for row in report} == {"match"}
        assert before.changes() == []


def test_two_checks_give_the_same_report() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2)), torch.randn(4, 3)
    first, second = (check_module(model, probe, x, mode="train", seed=3) for _ in range(2))
    assert [(r.name, r.status, r.relative_error, r.eps) for r in first] == [
        (r.name, r.status, r.relative_error, r.eps) for r in second
    ]
    assert first.loss == second.loss


@pytest.mark.slow
def test_in_another_thread() -> None:
    model, x = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half(), torch.randn(4, 3).half()
    outcome: list[Any] = []

    def work() -> None:
        before = Snapshot(model=model, x=x)
        outcome.extend([check_module(model, probe, x, mode="train").passed, before.changes()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [True, []]


# The snapshot itself must be able to fail -------------------------------------------------------------------------


def _nudge(model: nn.Module) -> None:
    model[0].weight.data[0, 0] = torch.nextafter(model[0].weight.data[0, 0], torch.tensor(9.0))


def _rewrite(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.clone())


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "one bit of a weight": _nudge,
    "a version counter": _rewrite,
    "a storage": lambda m: setattr(m[0].weight, "data", m[0].weight.data.clone()),
    "a flag": lambda m: m[1].eval(),
    "a buffer": lambda m: m[1].running_mean.add_(1),
    "a count": lambda m: m[1].num_batches_tracked.add_(1),
    "a gradient": lambda m: setattr(m[0].bias, "grad", torch.zeros(2)),
    "requires_grad": lambda m: m[0].bias.requires_grad_(False),
    "a parameter object": lambda m: setattr(m[0], "bias", nn.Parameter(m[0].bias.data)),
    "a hook": lambda m: m[0].weight.register_hook(lambda g: g),
    "a forward hook": lambda m: m[0].register_forward_hook(lambda *a: None),
    "an attribute": lambda m: setattr(m[0], "extra", 1),
    "a random number": lambda m: torch.rand(1),
    "a numpy random number": lambda m: np.random.rand(),
    "a python random number": lambda m: random.random(),
    "a default dtype": lambda m: torch.set_default_dtype(torch.float64),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_snapshot_notices(change: Callable[[nn.Sequential], Any]) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = Snapshot(model=model)
    assert before.changes() == []
    change(model)
    assert before.changes() != []


# Closures that take a step -----------------------------------------------------------------------------------------


class Steps:
    """A training step as one closure: an optimizer, a scheduler, a scaler (of float32 only) and a moving average."""

    def __init__(self, kind: type[torch.optim.Optimizer], countdown: Callable[[], None] = lambda: None) -> None:
        self.model, self.x, self.countdown = nn.Linear(3, 2), torch.randn(4, 3), countdown
        scales = kind is torch.optim.AdamW
        options: dict[str, Any] = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        self.optimizer = kind(self.model.parameters(), lr=0.1, **options)  # type: ignore[call-arg]
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scales)
        self.averaged = torch.optim.swa_utils.AveragedModel(self.model)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = probe(self.model(self.x))
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.averaged.update_parameters(self.model)
        self.scheduler.step(1.0)
        self.countdown()
        return loss

    def state(self) -> list[Any]:
        """All that a step may change, in a form that == compares."""
        kept = [self.optimizer.state, self.optimizer.param_groups, vars(self.scheduler), vars(self.scaler)]
        return [*map(repr, kept), repr(self.averaged.state_dict()), *map(type, kept)]


@pytest.mark.parametrize("steps_before", [0, 2], ids=["new", "used"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD], ids=lambda kind: kind.__name__)
def test_after_a_closure_that_steps(kind: type[torch.optim.Optimizer], steps_before: int) -> None:
    step = Steps(kind)
    for _ in range(steps_before):
        step.closure()
    before = step.state()
    dtype = torch.float32 if step.scaler.is_enabled() else torch.float64
    report = check_closure(step.model, step.closure, dtype=dtype)
    assert step.state() == before
    assert any(f"steps {kind.__name__} (put back each time)" in note for note in report.notes)


def test_after_an_exception_in_a_closure_that_steps() -> None:
    step = Steps(torch.optim.Adam, Countdown(2, UserError()))
    before = step.state()
    with pytest.raises(UserError):
        check_closure(step.model, step.closure)
    assert step.state() == before


@pytest.mark.parametrize("lr", [0.1, 0.0], ids=["moves the weights", "does not"])
def test_a_loss_after_the_closures_own_step_is_refused(lr: float) -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def closure() -> Tensor:
        probe(model(x)).backward()
        optimizer.step()
        return probe(model(x))

    if lr:
        with pytest.raises(InvalidRequestError, match="the closure steps SGD, and its loss is computed"):
            check_closure(model, closure)
    else:
        assert check_closure(model, closure).passed
    assert not optimizer.state


class Unseen(torch.optim.Optimizer):
    """Writes past autograd."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__(weights, {"lr": 0.1})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for weight in self.param_groups[0]["params"]:
            weight.data -= 0.1 * weight.grad


class Wrapped(Unseen):
    """Steps another optimizer, and then moves the weights some more."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        Unseen(self.param_groups[0]["params"]).step()
        for weight in self.param_groups[0]["params"]:
            weight.data *= 0.5


@pytest.mark.parametrize(
    "make",
    [Unseen, torch.optim.Adam, partial(torch.optim.Adam, fused=True), Wrapped],
    ids=["past autograd", "in place", "fused", "a step in a step"],
)
def test_a_backward_behind_the_closures_own_step_is_that_of_the_weights_before(make: Callable[..., Any]) -> None:
    """A graph that is retained is run a second time, when the step has moved the weights that it was made with."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    optimizer = make(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = probe(model(x))
        loss.backward(retain_graph=True)
        optimizer.step()
        return loss

    assert check_closure(model, closure).proven


def test_a_closure_that_steps_other_weights_first_is_one_function_of_its_own() -> None:
    """As a GAN does: the discriminator's step starts from the same state of its optimizer in every evaluation."""
    maker, judge, z = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)), torch.randn(4, 2)
    optimizer = torch.optim.Adam(judge.parameters())
    before = [weight.clone() for weight in judge.parameters()]

    def closure() -> Tensor:
        optimizer.zero_grad()
        probe(judge(maker(z).detach())).backward()
        optimizer.step()
        return probe(judge(maker(z)))

    assert check_closure(maker, closure, hold_detached=True).proven
    assert not optimizer.state
    assert all(map(torch.equal, before, judge.parameters()))
