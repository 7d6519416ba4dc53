"""`.grad` of tensors of the batch, as training steps leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.promises.test_inputs_on_trial import MSE, Y, leaf, net, rows_of
from torch_gradcheck import GradientMonitor, InvalidRequestError, Report, check_module


def nothing(_: Tensor) -> None:
    """What a right loop does to a tensor of the batch after its backward."""


def doubled(x: Tensor) -> None:
    assert x.grad is not None
    x.grad *= 2


def retained(x: Tensor) -> Tensor:
    made = x * 1
    made.retain_grad()
    return made


def trained(
    of_batch: Callable[[Tensor], Tensor] = lambda x: x,
    *,
    of_forward: Callable[[Tensor], Tensor] = lambda x: x,
    tampered: Callable[[Tensor], None] = nothing,
    wrong: bool = False,
    steps: int = 1,
    accumulate: int = 1,
    reused: bool = False,
    scaler: Any = None,
    **options: Any,
) -> Report:
    """The report on the last of some steps of a loop whose batches hold tensors that require a gradient."""
    model, x = net(wrong), leaf()
    optimizer, reports = torch.optim.SGD(model.parameters(), lr=0.1), list[Report | None]()
    declared = {"at": steps - 1, "on_mismatch": "record", "accumulate": accumulate, "scaler": scaler, **options}
    with GradientMonitor(model, MSE, **declared) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            for part in range(accumulate):
                given = of_batch(x if reused else leaf(seed=10 * step + part))
                loss = MSE(model(of_forward(given)), Y) / accumulate
                (loss if scaler is None else scaler.scale(loss)).backward()
                tampered(given)
                if scaler is not None:
                    scaler.unscale_(optimizer)
                if "clip_norm" in options:
                    nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
                reports.append(monitor.step((given, Y)))
            optimizer.step()
    [report] = [each for each in reports if each is not None]
    return report


RIGHT: dict[str, dict[str, Any]] = {
    "a leaf": {},
    "retain_grad": {"of_batch": retained},
    "clipped parameters": {"clip_norm": 0.05},
    "a scaler that has unscaled": {"scaler": torch.amp.GradScaler("cpu", init_scale=8.0)},
}


@pytest.mark.parametrize("loop", RIGHT.values(), ids=RIGHT)
def test_grad_of_the_batch_is_on_trial(loop: dict[str, Any]) -> None:
    report = trained(**loop)
    assert report.in_grad is not None
    assert report.proven, str(report)
    assert rows_of(report) == {"batch[0]": ("match", "input")}
    assert report.in_grad["batch[0]"].status == "match"


@pytest.mark.parametrize(
    ("loop", "kind"),
    [
        ({"tampered": doubled}, "scaled"),
        ({"of_batch": retained, "tampered": doubled}, "scaled"),
        ({"tampered": doubled, "steps": 2}, "scaled"),
    ],
    ids=["changed afterwards", "of no leaf", "of a later step"],
)
def test_a_wrong_grad_of_the_batch_is_told(loop: dict[str, Any], kind: str) -> None:
    report = trained(**loop)
    assert report.in_grad is not None
    assert rows_of(report) == {"batch[0]": ("mismatch", "input")}
    diagnosis = report.in_grad["batch[0]"].diagnosis
    assert diagnosis is not None
    assert diagnosis.kind == kind
    assert report["batch[0]"].reason.startswith(".grad: ")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_was_there_before_the_step_is_not_judged(accumulate: int) -> None:
    """A right loop over cached batches: no optimizer reads their `.grad`, so nobody sets it to None."""
    report = trained(steps=2, reused=True, accumulate=accumulate)
    name = "batch[0]" if accumulate == 1 else "batches[0][0]"
    assert report.in_grad is not None
    assert report.proven, str(report)
    assert rows_of(report) == {name: ("match", "input")}
    assert rows_of(report.in_grad) == {}
    assert any(note.startswith(f".grad of {name} is not judged: it held") for note in report.notes)
    of_model = trained(steps=2, reused=True, accumulate=accumulate, wrong=True)
    assert rows_of(of_model) == {name: ("mismatch", "input")}


def test_parameters_are_judged_whatever_their_grad_held_before() -> None:
    model, x = net(False), leaf()
    with GradientMonitor(model, MSE, at=1, on_mismatch="record") as monitor:
        for _ in range(2):
            MSE(model(x), Y).backward()
            report = monitor.step((x, Y))
    assert report is not None
    assert {row.name for row in report.mismatches} == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    "loop",
    [{"of_batch": lambda x: x * 1}, {"of_forward": torch.Tensor.detach}],
    ids=["no leaf", "the loop ran on a copy"],
)
def test_without_a_grad_there_is_nothing_to_judge_but_the_backward(loop: dict[str, Any]) -> None:
    report = trained(**loop)
    assert report.in_grad is not None
    assert report.proven
    assert rows_of(report) == {"batch[0]": ("match", "input")}
    assert rows_of(report.in_grad) == {}
    assert any(note.startswith("no .grad to judge on batch[0]") for note in report.notes)
    wrong = trained(**loop, wrong=True)
    assert rows_of(wrong) == {"batch[0]": ("mismatch", "input")}
    assert wrong.culprit == "0"


def test_the_batches_of_a_window_are_counted() -> None:
    assert rows_of(trained(accumulate=2)) == dict.fromkeys(("batches[0][0]", "batches[1][0]"), ("match", "input"))
    shared = trained(accumulate=2, reused=True)
    assert rows_of(shared) == {"batches[0][0]": ("match", "input")}
    assert shared["batches[0][0]"].aliases == ("batches[1][0]",)


def test_grad_as_a_step_left_it() -> None:
    model, x = net(False), leaf()
    MSE(model(x), Y).backward()
    assert rows_of(check_module(model, MSE, (x, Y), gradients="grad")) == {"batch[0]": ("match", "input")}
    x.grad = None
    report = check_module(model, MSE, (x, Y), gradients="grad")
    assert report.proven
    assert rows_of(report) == {}
    with pytest.raises(InvalidRequestError, match=r"no \.grad to judge on batch\[0\] .* nothing else is selected"):
        check_module(model, MSE, (x, Y), gradients="grad", include="batch*")


@pytest.mark.parametrize("tampered", [doubled, lambda x: x.grad.fill_(torch.nan)], ids=["doubled", "not finite"])
def test_a_grad_that_may_have_been_there_is_not_called_wrong(tampered: Callable[[Tensor], None]) -> None:
    """Nobody saw the forward."""
    model, x = net(False), leaf()
    MSE(model(x), Y).backward()
    tampered(x)
    report = check_module(model, MSE, (x, Y), gradients="grad")
    assert rows_of(report) == {"batch[0]": ("undecided", "input")}
    assert "set .grad of this input to None before the step's forward" in report["batch[0]"].reason
    assert not report.mismatches
    assert report.relative_error is not None
    assert report.relative_error < 1e-5
    monitor = GradientMonitor.of_closure(model, lambda batch: MSE(model(batch[0] * 1), batch[1]))
    for _ in range(2):
        model.zero_grad()
        MSE(model(x * 1), Y).backward()
        seen = monitor.step((x, Y))
        assert seen is None or seen.passed
    monitor.close()


@pytest.mark.parametrize("options", [{}, {"exclude": "scale"}], ids=["on trial", "left out"])
def test_a_closure_of_a_monitor_captures_no_grad(options: dict[str, Any]) -> None:
    """`.grad` of what it captures may be of other steps; their gradient of J is on trial."""
    model, scale = net(False), leaf(3)
    scale.grad = torch.ones(3)

    def closure(batch: tuple[Tensor, Tensor]) -> Any:
        return MSE(model(batch[0] * scale), batch[1])

    monitor = GradientMonitor.of_closure(model, closure, on_mismatch="record", **options)
    batch = leaf(), Y
    closure(batch).backward()
    report = monitor.step(batch)
    monitor.close()
    assert report is not None
    assert report.in_grad is not None
    captured = {} if options else {"scale": ("match", "captured")}
    assert rows_of(report) == {"batch[0]": ("match", "input"), **captured}
    assert rows_of(report.in_grad) == {"batch[0]": ("match", "input")}
