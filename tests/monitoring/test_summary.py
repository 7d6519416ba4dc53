"""The summary of a monitored run tells what was wrong, what was not proven or not checked, and what never came."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reporting.render.samples import facts, report_of, wrong
from torch_gradcheck import Diagnosis, DiagnosisKind, GradientMismatchWarning, GradientMonitor
from torch_gradcheck.monitoring.summary import never_came, unfinished, wrong_in_words

mse = nn.MSELoss()
X, Y = torch.ones(3, 2), torch.zeros(3, 1)


def trained(steps: int, loss_fn: Any = mse, model: nn.Module | None = None, **options: Any) -> GradientMonitor:
    torch.manual_seed(0)
    model = model or nn.Linear(2, 1)
    with GradientMonitor(model, loss_fn, **options) as monitor:
        for _ in range(steps):
            model.zero_grad()
            loss_fn(model(X), Y).backward()
            monitor.step((X, Y))
    return monitor


@pytest.mark.parametrize(
    ("steps", "options", "line"),
    [
        pytest.param(2, {"at": [0, 500]}, "step 500: scheduled and never reached", id="one"),
        pytest.param(1, {"at": range(0, 9, 2)}, "steps 2, 4, 6 and 1 more: scheduled and never reached", id="many"),
        pytest.param(0, {"at": (), "every": 1000}, "step 0: scheduled and never reached", id="every, and no step"),
    ],
)
def test_steps_that_never_came_are_named(
    steps: int, options: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = trained(steps, **options)
    checked = f"gradients checked on {min(steps, 1)} of {steps} training steps" + (", none wrong" if steps else "")
    assert monitor.summary.splitlines() == [checked, f"  {line}"]
    assert [(record.levelname, record.message) for record in caplog.records] == [("WARNING", monitor.summary)]


def test_while_the_run_goes_on_they_are_still_to_come() -> None:
    monitor = GradientMonitor(nn.Linear(2, 1), mse, at=[0, 5])
    assert monitor.summary.splitlines()[1:] == ["  steps 0, 5: still to come"]


@pytest.mark.parametrize("options", [{"at": 0}, {"at": (), "every": 2}, {"at": ()}], ids=["at", "every", "nothing"])
def test_where_all_came_nothing_is_said(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "torch_gradcheck"):
        monitor = trained(3, **options)
    assert "\n" not in monitor.summary
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_body_that_raises_is_summed_up_too(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), GradientMonitor(nn.Linear(2, 1), mse, at=3):
        raise ZeroDivisionError
    assert "step 3: scheduled and never reached" in caplog.text


def test_a_check_that_the_users_code_ended_is_told() -> None:
    model = nn.Linear(2, 1)

    def broken(_: Tensor, __: Tensor) -> Tensor:
        raise KeyError("labels")

    monitor = GradientMonitor(model, broken)
    mse(model(X), Y).backward()
    with pytest.raises(KeyError):
        monitor.step((X, Y))
    monitor.close()
    assert monitor.summary.splitlines()[1:] == ["  step 0: its check was ended by KeyError"]


def test_steps_that_could_not_be_checked_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    monitor = trained(1, lambda output, target: mse(output, target) * torch.nan, on_mismatch="record")
    first, line = monitor.summary.split("\n", 1)
    assert first == "gradients checked on 0 of 1 training steps, 1 could not be checked"
    assert line.startswith("  step 0: could not be checked: J(θ) = nan")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def nothing_proven(output: Tensor, target: Tensor) -> Tensor:
    """Flat: the loss reaches the parameters and does not depend on them."""
    return (output * 0).sum()


@pytest.mark.parametrize("on_mismatch", ["raise", "warn", "record"])
def test_a_step_on_which_nothing_was_proven_is_told_and_no_mismatch(on_mismatch: Any, recwarn: Any) -> None:
    monitor = trained(1, nothing_proven, on_mismatch=on_mismatch)
    assert not monitor.reports[0].mismatches
    assert monitor.summary.splitlines() == [
        "gradients checked on 1 of 1 training steps, none wrong, nothing proven on 1",
        "  step 0: nothing was proven: 2 flat",
    ]
    assert not [each for each in recwarn if isinstance(each.message, GradientMismatchWarning)]


def test_a_wrong_step_is_not_told_to_be_unproven() -> None:
    model = nn.Linear(2, 1)
    with GradientMonitor(model, mse, on_mismatch="record") as monitor:
        (3 * mse(model(X), Y)).backward()
        monitor.step((X, Y))
    first, line = monitor.summary.splitlines()
    assert first == "gradients checked on 1 of 1 training steps, 1 wrong"
    assert line.startswith("  step 0: gradients WRONG in 2 of 2 parameters; dθ = 3 × the right gradient")


def test_of_a_wrong_step_the_culprit_is_named_with_its_line() -> None:
    report = report_of(facts(wrong("weight"), culprit="1", place="the backward of Mine at mine.py:3"))
    assert (
        wrong_in_words(report) == "gradients WRONG in 1 of 1 parameter; culprit: 1, the backward of Mine at mine.py:3"
    )


def test_of_a_wrong_step_the_mistake_that_most_rows_share_is_named() -> None:
    messages = ["dθ = 2 × the right gradient", "of another batch", "of another batch"]
    rows = [wrong(f"w{k}", diagnosis=Diagnosis(DiagnosisKind.UNKNOWN, words)) for k, words in enumerate(messages)]
    assert wrong_in_words(report_of(facts(*rows))) == "gradients WRONG in 3 of 3 parameters; of another batch"


def test_the_lines() -> None:
    assert never_came([], over=True) == ""
    assert never_came([4], over=False) == "step 4: still to come"
    assert unfinished(4, 2, 3, over=False) == "step 4: 2 of its 3 batches came so far"
