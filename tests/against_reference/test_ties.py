"""Candidates at ties: inputs of few bits collide, and a right kernel may take another subgradient than is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import Function

from torch_gradcheck import Report, check_function

Kernel = Callable[..., torch.Tensor]


def tied(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Halves from −2 to 2: every ninth entry is 0, and rows have equal maxima."""
    generator = torch.Generator().manual_seed(5)
    return (torch.randint(-4, 5, shape, generator=generator) / 2).to(dtype)


def with_slopes(forward: Kernel, slopes: Callable[..., tuple[torch.Tensor, ...]]) -> Kernel:
    """A Function of `forward` whose gradients are the upstream one times the slopes."""

    class WithSlopes(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(*inputs)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            found = tuple([g * slope.to(g.dtype) for slope in slopes(*ctx.saved_tensors)])
            return found if len(found) > 1 else found[0]

    return WithSlopes.apply


def winner(x: torch.Tensor, last: bool) -> torch.Tensor:
    """1 at the first, or last, of the largest entries of every row."""
    largest = x == x.amax(-1, keepdim=True)
    places = torch.arange(x.shape[-1]).expand_as(x)
    place = torch.where(largest, places, -1).amax(-1) if last else torch.where(largest, places, x.shape[-1]).amin(-1)
    return F.one_hot(place, x.shape[-1]).to(x.dtype)


def row_maximum(last: bool) -> Kernel:
    class RowMaximum(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.amax(-1)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g.unsqueeze(-1) * winner(ctx.saved_tensors[0], last)

    return RowMaximum.apply


def pooled(x: torch.Tensor) -> torch.Tensor:
    """Max pooling of every nine entries in a row, whose gradient goes to the last of the largest."""
    return row_maximum(last=True)(x.reshape(-1, 9)).reshape(x.shape[0], -1)


def relu_like(at_zero: float) -> Kernel:
    return with_slopes(torch.relu, lambda x: (torch.where(x == 0, at_zero, (x > 0).to(x.dtype)),))


RIGHT: dict[str, tuple[Kernel, Kernel, tuple[torch.Tensor, ...]]] = {
    "relu, 1 at 0": (relu_like(1.0), torch.relu, (tied(16, 33),)),
    "relu, ½ at 0": (relu_like(0.5), torch.relu, (tied(16, 33),)),
    "relu of zeros alone": (relu_like(1.0), torch.relu, (torch.zeros(5, 7, dtype=torch.bfloat16),)),
    "abs, 1 at 0": (with_slopes(torch.abs, lambda x: (torch.where(x >= 0, 1.0, -1.0),)), torch.abs, (tied(16, 33),)),
    "leaky relu, 1 at 0": (
        with_slopes(lambda x: F.leaky_relu(x, 0.1), lambda x: (torch.where(x >= 0, 1.0, 0.1),)),
        lambda x: F.leaky_relu(x, 0.1),
        (tied(16, 33),),
    ),
    "clamp, 0 at its bounds": (
        with_slopes(lambda x: x.clamp(-1, 1), lambda x: ((x.abs() < 1).to(x.dtype),)),
        lambda x: x.clamp(-1, 1),
        (tied(16, 33),),
    ),
    "maximum, the first": (
        with_slopes(torch.maximum, lambda a, b: ((a >= b).to(a.dtype), (a < b).to(a.dtype))),
        torch.maximum,
        (tied(16, 33), tied(33, 16).T.contiguous()),
    ),
    "maximum of equal tensors": (
        with_slopes(torch.maximum, lambda a, b: ((a > b).to(a.dtype), (a <= b).to(a.dtype))),
        torch.maximum,
        (tied(16, 33), tied(16, 33)),
    ),
    "largest of a row, the last": (row_maximum(last=True), lambda x: x.max(-1).values, (tied(16, 33),)),
    "largest of a row, the first": (row_maximum(last=False), lambda x: x.amax(-1), (tied(16, 33),)),
    "largest of a row, shared": (lambda x: x.amax(-1), lambda x: x.max(-1).values, (tied(16, 33),)),
    "largest of a constant row": (row_maximum(last=True), lambda x: x.max(-1).values, (torch.ones(4, 33),)),
    "max pooling of relu, the last": (
        lambda x: pooled(x.relu() + 0 * x),
        lambda x: F.max_pool1d(x.relu().unsqueeze(1), 9).squeeze(1),
        (tied(8, 36),),
    ),
    "l1 distance, 1 at equal numbers": (
        with_slopes(
            lambda a, b: (a - b).abs(),
            lambda a, b: (torch.where(a >= b, 1.0, -1.0), torch.where(a >= b, -1.0, 1.0)),
        ),
        lambda a, b: (a - b).abs(),
        (tied(16, 33), tied(33, 16).T.contiguous()),
    ),
    "relu of a product with rows of zeros": (
        lambda x, w: relu_like(1.0)(x @ w),
        lambda x, w: (x @ w).relu(),
        (torch.cat([torch.zeros(3, 8), tied(6, 8, dtype=torch.float32)]).to(torch.bfloat16), tied(8, 5) + 0.25),
    ),
}


def checked(candidate: Kernel, reference: Kernel, inputs: tuple[torch.Tensor, ...]) -> Report:
    return check_function(candidate, inputs, reference=reference)


@pytest.mark.slow_but_for(3)
@pytest.mark.parametrize("case", RIGHT)
def test_another_subgradient_is_a_kink_and_passes(case: str) -> None:
    report = checked(*RIGHT[case])
    assert report.passed, report
    assert "kink" in [row.status for row in report]


WRONG: dict[str, tuple[Kernel, Kernel, tuple[torch.Tensor, ...]]] = {
    "beyond both slopes at 0": (relu_like(1.25), torch.relu, (tied(16, 33),)),
    "below both slopes at 0": (relu_like(-0.25), torch.relu, (tied(16, 33),)),
    "2 % where there is no tie": (
        with_slopes(torch.relu, lambda x: (1.02 * (x > 0).to(torch.float32),)),
        torch.relu,
        (tied(16, 33),),
    ),
    "one entry where there is no tie": (
        with_slopes(torch.relu, lambda x: ((x >= 0).to(x.dtype).index_fill(0, (x[:, 0] == 2).nonzero()[0], 0.5),)),
        torch.relu,
        (tied(16, 33),),
    ),
    "the gradient of a tie to a smaller entry": (
        with_slopes(lambda x: x.amax(-1, keepdim=True).expand_as(x) + 0 * x, lambda x: (winner(-x, last=False),)),
        lambda x: x.amax(-1, keepdim=True).expand_as(x) + 0 * x,
        (tied(16, 33),),
    ),
    "doubled where both are equal": (
        with_slopes(torch.maximum, lambda a, b: (1.5 * (a >= b).to(a.dtype), (a < b).to(a.dtype))),
        torch.maximum,
        (tied(16, 33), tied(16, 33)),
    ),
}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_gradient_at_ties_or_beside_them_is_a_mismatch(case: str) -> None:
    report = checked(*WRONG[case])
    assert not report.passed
    assert report.mismatches, report


UNDECIDED_AT_TIES: dict[str, tuple[Kernel, tuple[torch.Tensor, ...]]] = {
    "sort": (lambda x: x.sort(-1).values, (tied(3, 9),)),
    "a jump": (lambda x, y: torch.where(x > y, x, 2 * y), (tied(3, 9), tied(9, 3).T.contiguous())),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", UNDECIDED_AT_TIES)
def test_a_reference_that_ties_leave_undecided_is_checked_beside_them(case: str) -> None:
    reference, inputs = UNDECIDED_AT_TIES[case]
    report = checked(lambda *inputs: 1 * reference(*inputs), reference, inputs)
    assert report.passed, report
    assert "checked beside the inputs" in " ".join(report.notes)


@pytest.mark.slow
def test_where_many_kinks_meet_a_choice_of_one_slope_for_each_is_undecided_at_worst() -> None:
    x = torch.cat([torch.zeros(1, 3), tied(4, 3, dtype=torch.float32)]).to(torch.bfloat16)
    w = torch.randn((3, 12), generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    report = checked(lambda x, w: relu_like(1.0)(x @ w), lambda x, w: (x @ w).relu(), (x, w))
    assert not report.mismatches, report
    wrong = checked(
        lambda x, w: 1.1 * (x @ w).relu() - 0.1 * (x @ w).relu().detach(), lambda x, w: (x @ w).relu(), (x, w)
    )
    assert [row.status for row in wrong] == ["mismatch", "mismatch", "match"]


@pytest.mark.slow
def test_a_wrong_reference_beside_its_ties_is_wrong() -> None:
    def wrong(x: torch.Tensor) -> torch.Tensor:
        return 1.1 * x.sort(-1).values - 0.1 * x.sort(-1).values.detach()

    report = checked(lambda x: x.sort(-1).values, wrong, (tied(3, 9),))
    assert not report.passed
    assert not report.mismatches
    assert "the reference's own gradient is wrong" in report.notes[0]


def test_more_ties_than_are_tried_are_undecided() -> None:
    report = checked(lambda x: x.amax(-1), lambda x: x.max(-1).values, (torch.ones(2, 200),))
    assert report["x"].status == "undecided"
    assert "numbers tie with more others than were tried" in report["x"].reason
    assert not report.passed


def test_entries_at_kinks_show_both_slopes() -> None:
    x = tied(4, 9)
    row = checked(relu_like(1.0), torch.relu, (x,))["args[0]"]
    kinks = [each for each in row.worst if each.status == "kink"]
    assert kinks
    assert all(x[each.index] == 0 and each.slopes is not None and 0.0 in each.slopes for each in kinks)
    assert "not differentiable" in row.reason


def test_a_smooth_reference_is_run_beside_its_inputs_once_only() -> None:
    calls = 0

    def reference(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return x.sin()

    x = torch.linspace(-3, 3, 15).to(torch.bfloat16)
    checked(torch.sin, reference, (x,))
    of_right, calls = calls, 0
    checked(with_slopes(torch.sin, lambda x: (1.1 * x.cos(),)), reference, (x,))
    assert calls - of_right == 2
