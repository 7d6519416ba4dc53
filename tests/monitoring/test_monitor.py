from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import (
    GradientMismatchError,
    GradientMismatchWarning,
    GradientMonitor,
    InvalidRequestError,
    NonFiniteLossError,
    Report,
)

cross_entropy = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 4, generator=generator), torch.randint(0, 3, (8,), generator=generator)) for _ in range(count)
    ]


Spoil = Callable[[nn.Module], None]


class Loop:
    """A training loop, right but for what `spoil` does to `.grad`, or does not zero."""

    def __init__(
        self, model: nn.Module | None = None, zero_grad: bool = True, spoil: Spoil | None = None, lr: float = 0.05
    ) -> None:
        self.model = net() if model is None else model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.zero_grad, self.spoil = zero_grad, spoil
        self.returned: list[Report | None] = []

    def run(self, monitor: GradientMonitor, steps: int) -> None:
        for batch in batches(steps):
            if self.zero_grad:
                self.optimizer.zero_grad()
            cross_entropy(self.model(batch[0]), batch[1]).backward()
            if self.spoil:
                self.spoil(self.model)
            self.returned.append(monitor.step(batch))
            self.optimizer.step()


def monitored(loop: Loop, steps: int, **options: Any) -> GradientMonitor:
    with GradientMonitor(loop.model, cross_entropy, **options) as monitor:
        loop.run(monitor, steps)
    return monitor


def kinds(report: Report) -> set[str]:
    return {str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis}


# --- the schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({}, [0], id="step 0"),
        pytest.param({"at": [0, 2, 3]}, [0, 2, 3], id="some steps"),
        pytest.param({"at": 4}, [4], id="one step"),
        pytest.param({"every": 3}, [0, 3, 6], id="every third"),
        pytest.param({"at": [1], "every": 4}, [0, 1, 4], id="both"),
        pytest.param({"at": []}, [], id="none"),
    ],
)
def test_the_scheduled_steps_are_checked(options: dict[str, Any], expected: list[int]) -> None:
    loop = Loop()
    monitor = monitored(loop, 7, **options)
    assert list(monitor.reports) == expected
    assert [step for step, report in enumerate(loop.returned) if report is not None] == expected
    assert all(loop.returned[step] is monitor.reports[step] for step in expected)
    assert all(report.passed for report in monitor.reports.values())


def test_the_model_is_watched_on_scheduled_steps_only() -> None:
    loop = Loop()
    monitor = GradientMonitor(loop.model, cross_entropy, at=[3])
    hooked = []
    for batch in batches(5):
        hooked.append(len(loop.model._forward_pre_hooks))
        cross_entropy(loop.model(batch[0]), batch[1]).backward()
        monitor.step(batch)
        loop.optimizer.step()
        loop.optimizer.zero_grad()
    assert hooked == [0, 0, 0, 1, 0]


def test_without_with_close_does_what_leaving_does(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    monitor = GradientMonitor(loop.model, cross_entropy, at=[0, 1])
    with caplog.at_level(logging.INFO, "torch_gradcheck"):
        loop.run(monitor, 2)
        monitor.close()
        monitor.close()
    assert caplog.messages == ["gradients checked on 2 of 2 training steps, none wrong"]
    assert not loop.model._forward_pre_hooks
    assert monitor.step(batches(1)[0]) is None


def test_the_summary_names_the_steps_that_are_wrong(caplog: pytest.LogCaptureFixture) -> None:
    monitor = monitored(Loop(spoil=doubled), 3, at=[0, 2], on_mismatch="record")
    first, *steps = monitor.summary.splitlines()
    assert first == "gradients checked on 2 of 3 training steps, 2 wrong"
    for line, step in zip(steps, (0, 2), strict=True):
        assert line.startswith(f"  step {step}: gradients WRONG in 4 of 4 parameters; dθ = 2 × the right gradient")
        assert line.endswith("summed over 2 workers where a mean was meant"), "with its cause, and to the end"
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", monitor.summary)]


# --- what a mismatch does ---------------------------------------------------------------------------------------------


def doubled(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad *= 2  # type: ignore[operator]


def test_raise() -> None:
    loop = Loop(spoil=doubled)
    monitor = GradientMonitor(loop.model, cross_entropy)
    with pytest.raises(GradientMismatchError, match=r"gradients WRONG in 4 of 4[\s\S]*accumulated\s+2\s+times"):
        loop.run(monitor, 1)
    assert not monitor.reports[0].passed
    assert not loop.model._forward_pre_hooks


def test_warn() -> None:
    with pytest.warns(
        GradientMismatchWarning, match="step 1: gradients WRONG in 4 of 4 parameters; dθ = 2 ×"
    ) as caught:
        monitored(Loop(spoil=doubled), 2, at=[1], on_mismatch="warn")
    assert caught[0].filename == __file__


def test_record() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor = monitored(Loop(spoil=doubled), 2, on_mismatch="record")
    assert not monitor.reports[0].passed


@pytest.mark.parametrize("on_mismatch", ["raise", "warn", "record"])
def test_a_step_that_cannot_be_checked_is_treated_alike(on_mismatch: Any) -> None:
    loop = Loop()
    with torch.no_grad():
        loop.model.get_parameter("0.bias")[0] = torch.nan
    monitor = GradientMonitor(loop.model, cross_entropy, on_mismatch=on_mismatch)
    if on_mismatch == "raise":
        with pytest.raises(NonFiniteLossError, match=r"0\.bias"):
            loop.run(monitor, 1)
    elif on_mismatch == "warn":
        with pytest.warns(GradientMismatchWarning, match=r"step 0: J\(θ\) = nan"):
            loop.run(monitor, 1)
    else:
        loop.run(monitor, 1)
    assert isinstance(monitor.errors[0], NonFiniteLossError)
    assert "step 0: could not be checked: J(θ) = nan" in monitor.summary
    assert monitor.reports == {}


# --- the report -------------------------------------------------------------------------------------------------------


class WrongTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x))


class Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(WrongTanh.apply(self.inner(x)))


@pytest.mark.slow
def test_a_wrong_backward_shows_in_both_halves() -> None:
    torch.manual_seed(0)
    report = monitored(Loop(Wrong()), 1, on_mismatch="record").reports[0]
    assert report.in_grad is not None
    wrong = {"inner.weight", "inner.bias"}
    assert {row.name for row in report.mismatches} == wrong
    assert {row.name for row in report.in_grad.mismatches} == wrong
    assert not report["inner.weight"].reason.startswith(".grad"), "the row is that of the model's backward"


def test_where_only_grad_is_wrong_the_row_is_that_of_grad() -> None:
    report = monitored(Loop(spoil=doubled), 1, on_mismatch="record").reports[0]
    row = report["0.weight"]
    assert row.reason.startswith(".grad: ")
    assert row.diagnosis is not None
    assert row.diagnosis.factor == pytest.approx(2, rel=1e-6)
    assert row.relative_error == pytest.approx(1 / 3, rel=1e-4)
    assert report.relative_error == pytest.approx(1 / 3, rel=1e-4)


def test_a_right_step_says_what_became_of_grad() -> None:
    report = monitored(Loop(), 1).reports[0]
    assert report.notes[0] == "in .grad, as the training step left it: 4 match"
    assert "computed in float32" in report.notes[1]
    assert report.to_dict()["in_grad"]["passed"] is True  # type: ignore[index]
    assert report.evaluations > report.in_grad.evaluations  # type: ignore[union-attr]


def test_one_trial_serves_both_halves_where_they_are_of_one_function() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    report = monitored(Loop(model), 1).reports[0]
    assert report.in_grad is not None
    assert report.in_grad.evaluations < sum(row.checked for row in report)  # a trial takes two for each of them
    assert {str(row.status) for row in report.in_grad} == {"match"}


def test_patterns_and_precision_are_those_of_check_module() -> None:
    report = monitored(Loop(), 1, include="3.*", eps=1e-4, seed=5).reports[0]
    assert [row.name for row in report] == ["3.weight", "3.bias"]
    assert (report["3.bias"].eps, report.seed) == (1e-4, 5)


# --- what a loop does wrong -------------------------------------------------------------------------------------------


def halved(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad /= 2  # type: ignore[operator]


def scaled(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad *= 2**16  # type: ignore[operator]


def decayed(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad += 1e-3 * parameter.detach()  # type: ignore[operator]


def clipped(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def clipped_in_value(model: nn.Module) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def zeroed(model: nn.Module) -> None:
    model.zero_grad()


def not_reached(model: nn.Module) -> None:
    model.get_parameter("0.weight").grad = None


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        pytest.param(doubled, "scaled", "accumulated 2 times", id="twice"),
        pytest.param(halved, "scaled", "a mean over 2 workers", id="wrong world size"),
        pytest.param(scaled, "scaled", "2^16, a loss scale", id="loss scale"),
        pytest.param(decayed, "weight_decay", "0.001", id="weight decay by hand"),
        pytest.param(clipped, "clipped", "clip_norm=", id="clipped norm"),
        pytest.param(clipped_in_value, "clipped", "clip_value=", id="clipped value"),
        pytest.param(zeroed, "missing", "zero_grad() came after", id="zeroed too late"),
        pytest.param(not_reached, "missing", "never reached", id="not reached"),
    ],
)
def test_a_mistake_is_named(spoil: Spoil, kind: str, words: str) -> None:
    report = monitored(Loop(spoil=spoil), 1, on_mismatch="record").reports[0]
    assert kinds(report) == {kind}
    assert all(words in row.diagnosis.message for row in report.mismatches if row.diagnosis)
    assert len(report.mismatches) == (1 if spoil is not_reached else 4)


def test_a_missing_zero_grad_is_named() -> None:
    monitor = monitored(Loop(zero_grad=False), 4, at=[0, 3], on_mismatch="record")
    assert monitor.reports[0].passed, "there was nothing to accumulate to yet"
    assert kinds(monitor.reports[3]) == {"accumulated"}
    assert "zero_grad() is missing" in str(monitor.reports[3])


@pytest.mark.parametrize("declared", [{}, {"clip_norm": 0.1}], ids=["clipped", "declared and clipped"])
def test_what_is_accumulated_and_then_clipped_is_named(declared: dict[str, float]) -> None:
    monitor = monitored(Loop(zero_grad=False, spoil=clipped), 2, at=[1], on_mismatch="record", **declared)
    assert kinds(monitor.reports[1]) == {"accumulated"}
    told = [row.diagnosis.message for row in monitor.reports[1].mismatches if row.diagnosis]
    assert all("the norm of all of them together is 0.1: zero_grad() is missing" in message for message in told)


def test_a_stale_gradient_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = GradientMonitor(model, cross_entropy, at=[2], on_mismatch="record")
    before, *others = batches(4)
    for batch in others:
        optimizer.zero_grad()
        cross_entropy(model(before[0]), before[1]).backward()
        monitor.step(batch)
        optimizer.step()
        before = batch
    assert kinds(monitor.reports[2]) == {"stale"}
    assert "the batch before" in str(monitor.reports[2])


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize(
    ("spoil", "options"),
    [
        pytest.param(clipped, {"clip_norm": 0.1}, id="norm"),
        pytest.param(clipped, {"clip_norm": 0.1, "include": "0.*"}, id="norm, some parameters"),
        pytest.param(clipped_in_value, {"clip_value": 0.01}, id="value"),
        pytest.param(lambda _: None, {"clip_norm": 100.0}, id="a norm within the limit"),
    ],
)
def test_clipping_that_is_meant_is_no_mistake(spoil: Spoil, options: dict[str, Any]) -> None:
    report = monitored(Loop(spoil=spoil), 1, **options).reports[0]
    assert report.in_grad is not None
    assert {str(row.status) for row in report.in_grad} == {"match"}


def test_clipping_to_another_norm_is_a_mistake() -> None:
    report = monitored(Loop(spoil=clipped), 1, clip_norm=0.2, on_mismatch="record").reports[0]
    assert not report.passed


# --- accumulation, scaling, other shapes ------------------------------------------------------------------------------


def accumulate(monitor: GradientMonitor, model: nn.Module, divisor: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for number, batch in enumerate(batches(9), 1):
        (cross_entropy(model(batch[0]), batch[1]) / divisor).backward()
        monitor.step(batch)
        if number % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.slow
def test_accumulated_batches_are_one_step() -> None:
    model = net()
    with GradientMonitor(model, cross_entropy, at=[0, 2], accumulate=3) as monitor:
        accumulate(monitor, model, divisor=3)
    assert list(monitor.reports) == [0, 2]
    in_grad = [report.in_grad for report in monitor.reports.values() if report.in_grad is not None]
    assert {str(row.status) for found in in_grad for row in found} == {"match"}


def test_a_loss_that_is_not_divided_is_named() -> None:
    model = net()
    monitor = GradientMonitor(model, cross_entropy, at=[1], accumulate=3, on_mismatch="record")
    accumulate(monitor, model, divisor=1)
    assert kinds(monitor.reports[1]) == {"scaled"}
    assert "not divided by 3 accumulation steps" in str(monitor.reports[1].mismatches[0].diagnosis)


@pytest.mark.parametrize("unscaled", [True, False], ids=["unscaled", "still scaled"])
def test_the_scale_of_a_scaler_is_known(unscaled: bool) -> None:
    model, (batch,) = net(), batches(1)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    monitor = GradientMonitor(model, cross_entropy, scaler=scaler)
    scaler.scale(cross_entropy(model(batch[0]), batch[1])).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    report = monitor.step(batch)
    assert {str(row.status) for row in report.in_grad} == {"match"}  # type: ignore[union-attr]


def test_a_closure_of_the_batch() -> None:
    model = net()

    def closure(batch: Batch) -> Tensor:
        hidden = model[2](model[1](model[0](batch[0])))  # type: ignore[index]
        return cross_entropy(model[3](hidden), batch[1]) + 0.1 * hidden.square().mean()  # type: ignore[index]

    monitor = GradientMonitor.of_closure(model, closure, at=[0, 1])
    for batch in batches(2):
        model.zero_grad()
        with monitor.watch():
            closure(batch).backward()
        report = monitor.step(batch)
        assert {str(row.status) for row in report.in_grad} == {"match"}  # type: ignore[union-attr]


def test_a_closure_of_nothing() -> None:
    model, (batch,) = net().eval(), batches(1)
    closure = lambda: cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    monitor = GradientMonitor.of_closure(model, closure)
    closure().backward()
    report = monitor.step()
    assert report is not None
    assert report.passed


def undecided(model: nn.Module, forward: Callable[[Batch], Tensor]) -> str:
    """Why a step could not be judged."""
    monitor = GradientMonitor(model, cross_entropy)
    (batch,) = batches(1)
    forward(batch).backward()
    report = monitor.step(batch)
    assert report is not None
    assert report.in_grad is not None
    assert {str(row.status) for row in report.in_grad} == {"undecided"}
    return report.in_grad.parameters[0].reason


def test_a_random_step_that_went_by_the_model_says_so() -> None:
    model = net()
    why = undecided(model, lambda batch: cross_entropy(nn.Sequential(*model)(batch[0]), batch[1]))  # type: ignore[misc]
    assert "active dropout in 2" in why
    assert "did not go through a call of the model" in why


def test_a_random_step_of_two_forwards_says_so() -> None:
    model = net()
    why = undecided(model, lambda batch: cross_entropy(model(batch[0]) + model(batch[0]), batch[1]))
    assert "2 forwards were seen in this step where 1 was expected (accumulate=)" in why


def test_weights_that_moved_since_the_forward_say_so() -> None:
    model = net()

    def forward(batch: Batch) -> Tensor:
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward(retain_graph=True)
        with torch.no_grad():
            model.get_parameter("3.bias").add_(0.1)
        return model.get_parameter("0.bias").sum()

    assert "after backward() and before optimizer.step()" in undecided(model, forward)


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        pytest.param({"at": [-1]}, "at must be an integer from 0 on, got int -1", id="at"),
        pytest.param({"at": [0.5]}, "at must be an integer from 0 on, got float 0.5", id="at, a float"),
        pytest.param({"every": 0}, "every must be an integer from 1 on, got int 0", id="every"),
        pytest.param({"accumulate": 0}, "accumulate must be an integer from 1 on", id="accumulate"),
        pytest.param({"on_mismatch": "stop"}, "on_mismatch must be one of 'raise', 'warn', 'record'", id="on_mismatch"),
        pytest.param({"clip_norm": -1}, "clip_norm must be a positive finite number", id="clip_norm"),
        pytest.param({"clip_value": 0}, "clip_value must be a positive finite number", id="clip_value"),
        pytest.param({"tolerance": 0}, "tolerance must be a positive finite number", id="an option of check_module"),
    ],
)
def test_an_argument_that_cannot_be_used(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        GradientMonitor(net(), cross_entropy, **options)


@pytest.mark.parametrize("at", [None, 1.5, "0"], ids=repr)
def test_steps_that_are_none(at: Any) -> None:
    with pytest.raises(InvalidRequestError, match="at must be a step or several"):
        GradientMonitor(net(), cross_entropy, at=at)


def test_a_closure_that_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="closure must be callable, got int 3"):
        GradientMonitor.of_closure(net(), 3)  # type: ignore[arg-type]


def test_the_summary_says_where_grad_was_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (batch,) = batches(1)
    with GradientMonitor(model, cross_entropy) as monitor:
        cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        monitor.step(batch)
    assert "none wrong, .grad not judged on 1\n  step 0: .grad could not be judged: the weights" in monitor.summary
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_loss_function_that_is_none() -> None:
    with pytest.raises(InvalidRequestError, match="loss_fn must be callable"):
        GradientMonitor(net(), 3)  # type: ignore[arg-type]


def test_a_step_without_a_batch() -> None:
    with pytest.raises(InvalidRequestError, match=r"step\(\) was called without a batch"):
        GradientMonitor(net(), cross_entropy).step()


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    yield
    assert not nn.modules.module._global_forward_pre_hooks


class Halved(torch.autograd.Function):
    """x², whose gradient is half of the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * ctx.saved_tensors[0]


class Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = Halved.apply(self.before(x).tanh())
        return y


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # dynamo makes an instance of the Function
def test_the_culprit_in_a_compiled_model_is_the_model_and_not_the_loss() -> None:
    """The loop calls what torch.compile has wrapped the model in, which is no module of the model."""
    torch.manual_seed(0)
    model: Any = torch.compile(Squares(), backend="aot_eager")
    x, labels = torch.randn(6, 4), torch.arange(6) % 3
    monitor = GradientMonitor(model, nn.CrossEntropyLoss(), on_mismatch="record")
    nn.CrossEntropyLoss()(model(x), labels).backward()
    report = monitor.step((x, labels))
    assert report is not None
    assert report.culprit == ""
