"""A loss scale that overflows: the scaler skips that step, so what only the scale has spoilt is not called wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor, Report

SCALE = 2.0**120
LARGE = 1e10
"""A slope that this scale makes infinite in float32; one of 1 stays finite."""

Spoil = Callable[[nn.Linear], None]


def net(dropout: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5 if dropout else 0.0))


def partly(y: Tensor, coefficients: Tensor) -> Tensor:
    return (y * coefficients).sum()


def batch(first: float = LARGE, second: float = 1.0) -> tuple[Tensor, Tensor]:
    return torch.linspace(0.5, 1, 12).view(4, 3), torch.tensor([first, second])


def nothing(_: nn.Linear) -> None:
    pass


def monitored(
    model: nn.Sequential,
    *,
    spoil: Spoil = nothing,
    clip: str = "",
    unscale: bool = False,
    declared: bool = True,
    loss: Callable[..., Tensor] = partly,
    accumulate: int = 1,
    scale: float = SCALE,
    on: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> GradientMonitor:
    """A monitor after one step of a loop with a scaler, which clips as it says and is spoilt before the check."""
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=scale)
    options |= {f"clip_{clip}": 1.0} if clip else {}
    given = scaler if declared else None
    monitor = GradientMonitor(model, loss, scaler=given, accumulate=accumulate, **options)
    x, target = on or batch()
    for index in range(accumulate):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            value = loss(model(x), target) / accumulate
        scaler.scale(value).backward()
        if index + 1 < accumulate:
            monitor.step((x, target))
    if unscale or clip:
        scaler.unscale_(optimizer)
    if clip:
        {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[clip](model.parameters(), 1.0)
    spoil(model[0])  # type: ignore[arg-type]
    monitor.step((x, target))
    return monitor


def in_grad(monitor: GradientMonitor) -> Report:
    found = monitor.reports[0].in_grad
    assert found is not None
    return found


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"unscale": True},
        {"clip": "norm"},
        {"accumulate": 2},
        {"dtype": torch.float16, "scale": 2.0**24, "on": batch(first=1.0)},
        {"dtype": torch.bfloat16},
    ],
    ids=["scaled", "unscaled", "norm clipped", "window", "float16", "bfloat16"],
)
def test_what_the_scaler_skips_is_undecided(how: dict[str, Any]) -> None:
    monitor = monitored(net(), **how)
    report = monitor.reports[0]
    assert [str(row.status) for row in report] == ["undecided"] * 2
    assert all("loss scale" in row.reason and "skips" in row.reason for row in report)
    assert not report.proven
    assert report.relative_error is None
    assert "none wrong, .grad not judged on 1\n  step 0: 2 of 2 parameters are undecided, .grad: the" in monitor.summary


def test_a_random_step_too() -> None:
    assert not monitored(net(dropout=True).train()).reports[0].mismatches


def test_a_limited_value_of_what_overflows_is_not_called_wrong() -> None:
    small = batch(first=2.0**20, second=0.01)  # 2**20 times the loss scale is infinite, and its limit is 1
    report = in_grad(monitored(net(), clip="value", on=small))
    assert {str(row.status) for row in report} <= {"match", "undecided"}


def doubled(layer: nn.Linear) -> None:
    layer.weight.grad[1] *= 2  # type: ignore[index]


def infinite(layer: nn.Linear) -> None:
    layer.weight.grad[1, 0] = torch.inf  # type: ignore[index]


def overflowing_itself(y: Tensor, coefficients: Tensor) -> Tensor:
    """A loss whose backward overflows in float32 without any scale."""
    return partly(y * 1e-30 * 1e-30 * 1e30 * 1e30, coefficients)


@pytest.mark.parametrize(
    ("how", "mismatched"),
    [
        ({"spoil": doubled}, 3),
        ({"spoil": doubled, "unscale": True}, 3),
        ({"spoil": infinite}, 1),
        ({"loss": overflowing_itself, "scale": 4.0}, 6),
        ({"declared": False}, 6),
    ],
    ids=["finite and wrong", "unscaled and wrong", "infinite in .grad only", "infinite without scale", "no scaler"],
)
def test_what_is_wrong_stays_wrong(how: dict[str, Any], mismatched: int) -> None:
    monitor = monitored(net(), on_mismatch="record", **how)
    row = in_grad(monitor)["0.weight"]
    assert (str(row.status), row.mismatched) == ("mismatch", mismatched)


def test_infinity_that_the_scaler_did_not_find_is_wrong() -> None:
    monitor = monitored(net(), spoil=infinite, unscale=True, on=batch(first=1.0), on_mismatch="record")
    assert in_grad(monitor)["0.weight"].mismatched == 1


# Two optimizers ----------------------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Two layers, each of them for an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


SMALL, A_OVERFLOWS, B_OVERFLOWS = [1.0] * 4, [LARGE, 1.0, 1.0, 1.0], [1.0, 1.0, LARGE, 1.0]


def of_pair(
    coefficients: list[float],
    unscaled: str = "",
    clipped: str = "",
    spoil: Callable[[Pair], None] = lambda _: None,
    before: bool = False,
    together: bool = False,
    **options: Any,
) -> list[str]:
    """The status of each `.grad` of a and b, after a step whose loop unscales and clips parts by their letters.

    Args:
        coefficients: the slopes.
        unscaled: the optimizers whose gradients are unscaled.
        clipped: the layers whose norm is limited, "ab" that of both together, "a b" one after the other.
        spoil: changes `.grad` before the check.
        before: clipped before unscaled.
        together: one optimizer steps both.
        options: of the monitor.
    """
    model = Pair()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10 if coefficients is SMALL else SCALE)
    optimizers = {"a": torch.optim.SGD((model if together else model.a).parameters())}
    optimizers |= {} if together else {"b": torch.optim.SGD(model.b.parameters())}
    options |= {"clip_norm": 1.0} if clipped else {}
    monitor = GradientMonitor(model, partly, scaler=scaler, on_mismatch="record", **options)
    x, target = torch.linspace(0.5, 1, 12).view(4, 3), torch.tensor(coefficients)
    scaler.scale(partly(model(x), target)).backward()

    def unscale() -> None:
        for letter in unscaled:
            scaler.unscale_(optimizers[letter])

    def clip() -> None:
        for letters in clipped.split():
            parts = [weight for letter in letters for weight in getattr(model, letter).parameters()]
            nn.utils.clip_grad_norm_(parts, 1.0)

    for act in (clip, unscale) if before else (unscale, clip):
        act()
    spoil(model)
    monitor.step((x, target))
    return [str(row.status) for row in in_grad(monitor)]


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({"coefficients": SMALL, "unscaled": "ab"}, "mmmm"),
        ({"coefficients": SMALL, "unscaled": "a"}, "mmmm"),
        ({"coefficients": SMALL, "unscaled": "ab", "clipped": "ab"}, "mmmm"),
        ({"coefficients": SMALL, "unscaled": "ab", "clipped": "a b"}, "mmmm"),
        ({"coefficients": SMALL, "unscaled": "a", "clipped": "a"}, "mmmm"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "ab"}, "uumm"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "a"}, "uumm"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "b"}, "uumm"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "ab", "clipped": "ab"}, "uuuu"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "ab", "clipped": "a b"}, "uumm"),
        ({"coefficients": B_OVERFLOWS, "unscaled": "a", "clipped": "a"}, "mmuu"),
        ({"coefficients": SMALL, "unscaled": "a", "clipped": "ab", "together": True, "include": "b*"}, "mm"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "a", "clipped": "ab", "together": True, "include": "b*"}, "uu"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "ab", "clipped": "ab", "include": "a.bias"}, "u"),
        ({"coefficients": A_OVERFLOWS, "unscaled": "ab", "clipped": "a b", "include": "b*"}, "mm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{v}" for v in list(value.values())[1:]),
)
def test_each_optimizer_is_unscaled_clipped_and_skipped_by_itself(how: dict[str, Any], found: str) -> None:
    """What is clipped by the norm of an overflow is undecided, all of it."""
    words = {"m": "match", "u": "undecided"}
    assert of_pair(**how) == [words[letter] for letter in found]


def b_doubled(model: Pair) -> None:
    model.b.weight.grad[1] *= 2  # type: ignore[index]


def b_zeroed(model: Pair) -> None:
    for weight in model.b.parameters():
        weight.grad = torch.zeros_like(weight)


def a_unscaled_again(model: Pair) -> None:
    for weight in model.a.parameters():
        weight.grad /= 2.0**10


@pytest.mark.parametrize(
    "how",
    [
        {"coefficients": SMALL, "unscaled": "ab", "spoil": a_unscaled_again},
        {"coefficients": SMALL, "unscaled": "ab", "clipped": "ab", "before": True},
        {"coefficients": SMALL, "unscaled": "a", "clipped": "ab", "before": True, "together": True, "include": "b*"},
        {"coefficients": SMALL, "unscaled": "a", "clipped": "ab"},
        {"coefficients": SMALL, "unscaled": "ab", "clipped": "a"},
        {"coefficients": A_OVERFLOWS, "unscaled": "a", "spoil": b_doubled},
        {"coefficients": A_OVERFLOWS, "unscaled": "ab", "spoil": b_doubled},
        {"coefficients": A_OVERFLOWS, "unscaled": "ab", "spoil": b_zeroed, "include": "b*"},
        {"coefficients": SMALL, "unscaled": "a", "clipped": "ab", "spoil": b_zeroed, "together": True, "include": "b*"},
    ],
    ids=[
        "unscaled twice", "clipped before", "clipped before, some checked", "one clipped with its scale",
        "one not clipped", "doubled, not unscaled", "doubled, unscaled", "zeroed, not clipped", "zeroed, no overflow",
    ],
)  # fmt: skip
def test_mistakes_with_one_optimizer_of_two_stay_wrong(how: dict[str, Any]) -> None:
    assert "mismatch" in of_pair(**how)
