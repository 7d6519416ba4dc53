"""`.grad` summed over micro-batches in float32, beside one backward of the whole batch: right sums, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import GradientMonitor, Report, check_module

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": nn.CrossEntropyLoss(),
    "squared error": nn.MSELoss(),
}


def problem(loss: str, batches: int, seed: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    """A model, and three rows a micro-batch in the order of their targets, so that what the batches add up cancels."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7))
    size, rows = 10 ** float(torch.rand(1, generator=generator) * 2 - 0.5), 3 * batches
    x = size * torch.randn(rows, 5, generator=generator) + (1 - seed % 2)
    if loss == "cross entropy":
        targets = torch.randint(0, 7, (rows,), generator=generator)
        order = targets.argsort()
    else:
        targets = torch.randn(rows, 7, generator=generator)
        order = targets[:, 0].argsort()
    return model, x[order], targets[order]


def fit(model: nn.Module, loss: str, x: Tensor, targets: Tensor) -> None:
    """Training until the loss is nearly 0: gradients are then made of small differences of large numbers."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = LOSSES[loss](model(x), targets)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    optimizer.zero_grad()


def parts_of(x: Tensor, targets: Tensor, batches: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.chunk(batches), targets.chunk(batches), strict=True))


def report_on_whole(loss: str, batches: int, seed: int, fitted: bool) -> Report:
    """The report on a sum over micro-batches, as the gradient of the whole batch."""
    model, x, targets = problem(loss, batches, seed)
    if fitted:
        fit(model, loss, x, targets)
    for inputs, wanted in parts_of(x, targets, batches):
        (LOSSES[loss](model(inputs), wanted) / batches).backward()
    return check_module(model, LOSSES[loss], (x, targets), gradients="grad")


def report_on_window(loss: str, batches: int, shares: Sequence[float]) -> Report:
    """The report on a window that a monitor has seen; `shares` are what each micro-batch counts in the loop."""
    model, x, targets = problem(loss, batches, seed=0)
    with GradientMonitor(model, LOSSES[loss], accumulate=batches, on_mismatch="record") as monitor:
        for part, share in zip(parts_of(x, targets, batches), shares, strict=True):
            (LOSSES[loss](model(part[0]), part[1]) * share / batches).backward()
            monitor.step(part)
    in_grad = monitor.reports[0].in_grad
    assert in_grad is not None
    return in_grad


@pytest.mark.slow_but_for(4)
@pytest.mark.parametrize(
    ("loss", "batches", "seed"),
    [
        ("cross entropy", 4, 22),
        ("cross entropy", 4, 23),
        ("cross entropy", 8, 2),
        ("cross entropy", 8, 36),
        ("squared error", 2, 19),
        *[(loss, batches, seed) for loss in LOSSES for batches in (2, 16, 64) for seed in range(4)],
    ],
)
def test_a_right_sum_of_a_fitted_model_is_not_accused(loss: str, batches: int, seed: int) -> None:
    report = report_on_whole(loss, batches, seed, fitted=True)
    assert not report.mismatches, str(report)


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("batches", [2, 16, 64])
def test_a_right_sum_is_proven(loss: str, batches: int) -> None:
    assert report_on_whole(loss, batches, seed=0, fitted=False).proven


WINDOWS = {"right": (1.0, "match"), "one lost": (0.0, "mismatch"), "one counts 1 % too much": (1.01, "mismatch")}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("batches", [2, 8])
@pytest.mark.parametrize(("last", "status"), WINDOWS.values(), ids=WINDOWS)
def test_a_micro_batch_that_does_not_count_as_it_should_is_found(last: float, status: str, batches: int) -> None:
    report = report_on_window("cross entropy", batches, [*[1.0] * (batches - 1), last])
    assert {str(row.status) for row in report} == {status}, str(report)
