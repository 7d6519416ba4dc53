"""Windows of accumulated batches: weights by tokens or samples, windows that end early, and what loops do wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor, InvalidRequestError, Report

cross_entropy = nn.CrossEntropyLoss()
Batch = tuple[Tensor, Tensor]
SIZES, TOTAL = (2, 8, 5), 15


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 3))


def batches(sizes: Sequence[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator)) for size in sizes
    ]


def run(
    factors: Sequence[float],
    sizes: Sequence[int] = SIZES,
    weights: Sequence[Any] = (),
    ends: Sequence[int] = (2,),
    said: Sequence[int] = (),
    clip: float | None = None,
    zeroed_after: int | None = None,
    **options: Any,
) -> GradientMonitor:
    """A loop that multiplies each batch's mean loss by a factor, in windows that end after the batches `ends`.

    Args:
        factors: one a batch.
        sizes: of the batches.
        weights: what `step` is told of each batch.
        ends: the optimizer steps after these.
        said: those of them of which `step` is told that they are the last.
        clip: the norm that the loop clips to.
        zeroed_after: a batch after which the gradients are zeroed by mistake.
        options: of the monitor.
    """
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with GradientMonitor(model, cross_entropy, **{"accumulate": 3, "on_mismatch": "record"} | options) as monitor:
        for i, batch in enumerate(batches(sizes)):
            (cross_entropy(model(batch[0]), batch[1]) * factors[i]).backward()
            if clip and i in ends:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            monitor.step(batch, weight=weights[i] if weights else None, last=i in said)
            if i in ends:
                optimizer.step()
            if i in ends or i == zeroed_after:
                optimizer.zero_grad()
    return monitor


def statuses(report: Report) -> set[str]:
    return {str(row.status) for row in report.in_grad or ()}


def said_of(report: Report) -> tuple[set[str], str]:
    """The kinds of mistake and the message, which is one for all parameters but for residuals."""
    found = [row.diagnosis for row in report.mismatches if row.diagnosis]
    assert len(found) == len(report) == 4
    return {str(diagnosis.kind) for diagnosis in found}, min(diagnosis.message for diagnosis in found)


BY_SAMPLES = [size / TOTAL for size in SIZES]


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(SIZES, id="integers"),
        pytest.param([0.5 * size for size in SIZES], id="floats"),
        pytest.param([torch.tensor(size) for size in SIZES], id="tensors"),
    ],
)
def test_a_window_weighted_as_declared_is_right(weights: Sequence[Any]) -> None:
    monitor = run(BY_SAMPLES, weights=weights)
    assert statuses(monitor.reports[0]) == {"match"}
    assert monitor.summary == "gradients checked on 1 of 1 training steps, none wrong"
    by_hand = sum(size * row for size, row in zip(SIZES, losses(), strict=True)) / TOTAL
    assert monitor.reports[0].loss == pytest.approx(by_hand, rel=1e-6)


def losses() -> list[float]:
    """Each batch's mean loss, as the check computes it: without dropout."""
    model = net().eval()
    return [float(cross_entropy(model(x), y).detach()) for x, y in batches(SIZES)]


EQUAL = [1 / 3] * 3


@pytest.mark.parametrize(
    ("factors", "options", "kind", "words"),
    [
        pytest.param(EQUAL, {"weights": SIZES}, "weighted", "were averaged with equal weights", id="the mean of means"),
        pytest.param([1] * 3, {"weights": SIZES}, "weighted", "dθ is 3 × the mean", id="their sum"),
        pytest.param(
            EQUAL, {"weights": SIZES, "clip": 0.05, "clip_norm": 0.05}, "weighted", "averaged with equal weights",
            id="the mean of means, clipped",
        ),
        pytest.param(
            [1] * 3, {"weights": SIZES, "clip": 9.0, "clip_norm": 9.0}, "weighted", "dθ is 3 × the mean",
            id="their sum, within the norm",
        ),
        pytest.param(BY_SAMPLES, {}, "weighted", "0.133, 0.533, 0.333, where equal", id="weights are not declared"),
        pytest.param(SIZES, {"weights": SIZES}, "scaled", "not divided by the sum of the weights, 15", id="undivided"),
        pytest.param(
            [size / 3 for size in SIZES], {"weights": SIZES}, "scaled", "but by 3 accumulation steps",
            id="divided by the number of batches",
        ),
        pytest.param(
            [share / 3 for share in BY_SAMPLES], {"weights": SIZES}, "scaled", "were divided by 3 accumulation steps",
            id="divided twice",
        ),
        pytest.param([1] * 3, {}, "scaled", "not divided by 3 accumulation steps", id="equal, no division"),
        pytest.param(EQUAL, {"zeroed_after": 0}, "weighted", "nothing of batch 1 of the 3", id="zeroed within"),
    ],
)  # fmt: skip
@pytest.mark.slow_but_for(3)
def test_a_mistake_in_weighting_is_named(factors: list[float], options: dict[str, Any], kind: str, words: str) -> None:
    kinds, message = said_of(run(factors, **options).reports[0])
    assert kinds == {kind}
    assert words in message


@pytest.mark.parametrize("right", [True, False], ids=["right", "the mean of means"])
def test_windows_in_bfloat16(right: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
    with GradientMonitor(model, cross_entropy, accumulate=3, on_mismatch="record") as monitor:
        for batch, share in zip(batches(SIZES), BY_SAMPLES if right else EQUAL, strict=True):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = cross_entropy(model(batch[0]), batch[1])
            (loss * share).backward()
            monitor.step(batch, weight=len(batch[1]))
    (report,) = monitor.reports.values()
    assert {str(row.diagnosis.kind) for row in report.mismatches if row.diagnosis} == (set() if right else {"weighted"})
    assert bool(report.mismatches) is not right


SHORT: dict[str, Any] = {"sizes": [4] * 8, "ends": (2, 4, 7), "at": [0, 1, 2]}
"""Windows of 3, of 2, and of 3 batches."""


def test_a_window_that_ends_early_is_divided_by_its_own_length() -> None:
    right = [1 / 3] * 3 + [1 / 2] * 2 + [1 / 3] * 3
    monitor = run(right, said=(4,), **SHORT)
    assert [statuses(report) for report in monitor.reports.values()] == [{"match"}] * 3
    assert monitor.summary == "gradients checked on 3 of 3 training steps, none wrong"


def test_a_window_that_ends_early_and_is_divided_by_a_whole_one_is_named() -> None:
    monitor = run([1 / 3] * 8, said=(4,), **SHORT)
    assert [report.passed for report in monitor.reports.values()] == [True, False, True]
    kinds, message = said_of(monitor.reports[1])
    assert kinds == {"scaled"}
    assert "dθ = 0.6667 × the right gradient" in message
    assert "this window has 2 batches, and their losses were divided by 3 (accumulate=)" in message


def test_a_weighted_window_may_end_early_too() -> None:
    sizes = [*SIZES, 6, 2]
    monitor = run([*BY_SAMPLES, 6 / 8, 2 / 8], sizes=sizes, weights=sizes, ends=(2, 4), said=(4,), at=1)
    assert statuses(monitor.reports[1]) == {"match"}


def test_a_window_that_ended_early_and_did_not_say_so_is_not_accused() -> None:
    """The optimizer steps between batch 2 and batch 3 of what the monitor takes for a window."""
    monitor = run([1 / 3] * 3 + [1 / 2] * 2 + [1 / 3] * 3, **SHORT | {"at": [1]})
    assert monitor.reports[1].passed
    assert "between batch 2 and batch 3 of the 3 that make up this step" in monitor.summary
    assert "step(batch, last=True)" in monitor.summary


def test_a_window_that_never_ended_is_told() -> None:
    monitor = run([1 / 3] * 5, sizes=[4] * 5, ends=(2,), at=[0, 1])
    assert list(monitor.reports) == [0]
    assert monitor.summary.splitlines() == [
        "gradients checked on 1 of 1 training steps, none wrong",
        "  step 1: 2 of its 3 batches came. Say step(batch, last=True) where a window ends early",
    ]


# --- clipping that was declared ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"clip_norm": 0.05}, "clip_norm=0.05 was declared, and the gradients were not clipped: their norm "
                     "is 0.77", id="norm"),
        pytest.param({"clip_norm": 0.05, "include": "0.*"}, "their norm is 0.49", id="norm, some parameters"),
        pytest.param({"clip_value": 0.01}, "clip_value=0.01 was declared, and the gradients were not clipped: their "
                     "largest entry is 0.4", id="value"),
    ],
)  # fmt: skip
def test_clipping_that_is_declared_and_not_done_is_said(options: dict[str, Any], words: str) -> None:
    report = run(EQUAL, **options).reports[0]
    assert report.mismatches
    assert all(words in row.diagnosis.message for row in report.mismatches if row.diagnosis)


def test_a_wrong_gradient_is_not_said_to_be_unclipped() -> None:
    report = run([5.0] * 3, clip_norm=0.05).reports[0]
    assert report.mismatches
    assert not any("was declared" in row.diagnosis.message for row in report.mismatches if row.diagnosis)


# --- weights that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        pytest.param(0, "weight must be a positive finite number, got 0.0", id="zero"),
        pytest.param(-2.0, "weight must be a positive finite number", id="negative"),
        pytest.param(float("nan"), "weight must be a positive finite number", id="NaN"),
        pytest.param(torch.tensor([1.0, 2.0]), "weight must be a positive number, got Tensor", id="two numbers"),
        pytest.param("3", "weight must be a positive number, got str '3'", id="text"),
        pytest.param(True, "weight must be a positive number, got bool", id="bool"),
    ],
)
def test_a_weight_that_is_none(weight: Any, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        run(EQUAL, weights=[weight, 1, 1])


def test_a_window_has_weights_for_all_batches_or_none() -> None:
    with pytest.raises(
        InvalidRequestError, match="with every batch of a window, or with none: 1 of 2 batches have one"
    ):
        run(EQUAL, weights=[3, None, 2])
