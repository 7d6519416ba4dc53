"""Wrong gradients at ties are found along joint directions; right ones, of whatever convention, are not accused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_function, check_module
from torch_gradcheck.methods import choice

Backward = Callable[..., Any]


def function(forward: Callable[..., Tensor], backward: Backward) -> Callable[..., Tensor]:
    """A Function of one or several tensors; `backward` takes the gradient and these tensors."""

    class Written(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *xs: Tensor) -> Tensor:
            ctx.save_for_backward(*xs)
            return forward(*xs)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return backward(grad, *ctx.saved_tensors)

    return Written.apply  # type: ignore[no-any-return]


class Tied(nn.Module):
    """J = 1.3 · f(θ₀, θ₁, ...) + Σ θ²."""

    def __init__(self, f: Callable[..., Tensor], *values: Tensor) -> None:
        super().__init__()
        self.f, self.theta = f, nn.ParameterList([value.double().clone() for value in values])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.f(*[1.0 * each for each in self.theta]) + sum(each.square().sum() for each in self.theta)


def checked(f: Callable[..., Tensor], *values: Tensor, **options: Any) -> Report:
    x = torch.tensor(1.3, dtype=torch.float64)
    return check_module(Tied(f, *values), lambda y: y, x, progress=False, **options)


def wrong(report: Report) -> dict[str, int]:
    return {row.name: row.mismatched for row in report.mismatches}


THREE = torch.tensor([1.0, 0.2, -1.0, -0.3, 1.0])
"""Three entries tie for the infinity norm, two of them for the maximum."""
PAIR = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 1.5, 0.5])
"""Two tensors, whose first and last entries tie."""
WEIGHTS = torch.tensor([0.3, 0.5, -0.9], dtype=torch.float64)


def of_norm(share: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The infinity norm, whose gradient goes to the tied entries by shares."""
    return function(
        lambda x: x.abs().amax(), lambda grad, x: grad * x.sign() * share((x.abs() == x.abs().amax()).to(x))
    )


def first(ties: Tensor) -> Tensor:
    return torch.zeros_like(ties).scatter(0, ties.argmax()[None], 1.0)


SHARES: dict[str, Callable[[Tensor], Tensor]] = {
    "equal": lambda ties: ties / ties.sum(),
    "the first": first,
    "the last": lambda ties: first(ties.flip(0)).flip(0),
    "uneven": lambda ties: ties * (w := torch.arange(1.0, 6.0)) / (ties * w).sum(),
}


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("share", SHARES)
def test_however_a_gradient_is_shared_between_the_tied_it_is_right(share: str) -> None:
    report = checked(of_norm(SHARES[share]), THREE)
    assert report.passed, str(report)
    assert report["theta.0"].status == "kink"


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(lambda ties: ties, id="all to each"),
        pytest.param(lambda ties: ties / 2, id="half to each of three"),  # the middle of the two slopes: no kink to see
        pytest.param(lambda ties: 0 * ties, id="nothing to any", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_shared_between_the_tied_is_wrong(share: Callable[[Tensor], Tensor]) -> None:
    report = checked(of_norm(share), THREE)
    assert wrong(report) == {"theta.0": 3}, str(report)
    row = report["theta.0"]
    assert {each.index: each.numeric for each in row.worst if each.status == "mismatch"} == pytest.approx(
        {(k,): float(THREE[k].sign()) * (1.3 / 3 + 2) for k in (0, 2, 4)}, rel=1e-4
    )
    assert "only one slope along a direction through them all" in row.reason


def windows(grad: Tensor) -> Tensor:
    """Each of four windows' gradient at all of its entries."""
    return grad.repeat_interleave(2, -1).repeat_interleave(2, -2)


def pool(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 2)


def of_larger(x_wins: str, y_wins: str) -> Callable[..., Tensor]:
    """Σ weights · max(x, y), whose backward compares by these words."""

    def backward(grad: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return grad * getattr(x, x_wins)(y), grad * getattr(y, y_wins)(x)

    larger = function(torch.maximum, backward)
    return lambda x, y: (WEIGHTS * larger(x, y)).sum()


def two_largest(grad: Tensor, x: Tensor, shared: bool) -> Tensor:
    values = x.topk(2).values
    masks = [(x == value).to(x) for value in values]
    return sum(g * mask / (mask.sum() if shared else 1.0) for g, mask in zip(grad, masks, strict=True))  # type: ignore[return-value]


def of_two_largest(shared: bool) -> Callable[[Tensor], Tensor]:
    top = function(lambda x: x.topk(2).values, lambda grad, x: two_largest(grad, x, shared))
    return lambda x: (WEIGHTS[:2] * top(x)).sum()


IMAGE = torch.ones(1, 1, 4, 4)
OTHERS = torch.tensor([1.0, 0.2, 1.0, -0.3, 1.0])
RIGHT_AND_WRONG = [
    pytest.param(
        lambda x: function(pool, lambda grad, x: windows(grad) / 4)(x).sum(),
        lambda x: function(pool, lambda grad, x: windows(grad))(x).sum(),
        (IMAGE,),
        id="a pool over a constant image",
        marks=pytest.mark.slow,
    ),
    pytest.param(of_larger("ge", "gt"), of_larger("ge", "ge"), PAIR, id="the larger of two, to both"),
    pytest.param(
        of_larger("gt", "ge"), of_larger("gt", "gt"), PAIR, id="the larger of two, to none", marks=pytest.mark.slow
    ),
    pytest.param(of_two_largest(True), of_two_largest(False), (OTHERS,), id="topk", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("right", "mistaken", "values"), RIGHT_AND_WRONG)
def test_ties_of_other_operations(
    right: Callable[..., Tensor], mistaken: Callable[..., Tensor], values: tuple[Tensor, ...]
) -> None:
    assert not checked(right, *values).mismatches
    assert set(wrong(checked(mistaken, *values))) == {f"theta.{k}" for k in range(len(values))}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"method": "projected"}], ids=["exact", "projected"])
@pytest.mark.parametrize("each", [False, True], ids=["right", "wrong"])
def test_ties_that_weights_upstream_make(each: bool, options: dict[str, Any]) -> None:
    """All rows of a layer are equal, so that its outputs tie in every row of the batch; the Function is named."""
    share = (lambda ties: ties) if each else (lambda ties: ties / ties.sum(1, keepdim=True))
    largest = function(lambda x: x.amax(1), lambda grad, x: grad[:, None] * share((x == x.amax(1, keepdim=True)).to(x)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Identity(), nn.Tanh(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight[:1].clone().expand(4, 3))
        model[0].bias.fill_(0.1)
    model[1].register_forward_hook(lambda module, given, y: torch.stack([largest(y * k) for k in range(1, 6)], 1))
    batch = (torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2)
    report = check_module(model, nn.CrossEntropyLoss(), batch, progress=False, **options)
    assert wrong(report) == ({"0.weight": 12, "0.bias": 4} if each else {}), str(report)
    assert report.culprit == ("1" if each else None), str(report)


def test_a_gradient_given_by_hand() -> None:
    ties = (THREE.abs() == 1).double()
    given = 1.3 * ties * THREE.sign() + 2 * THREE
    assert wrong(checked(lambda x: x.abs().amax(), THREE, gradients={"theta.0": given})) == {"theta.0": 3}


# Kinks of several operations ---------------------------------------------------------------------------------------

ZEROS = torch.zeros(3)


def relu_by(slope: float) -> Callable[[Tensor], Tensor]:
    """ReLU with this slope at 0."""
    return function(torch.relu, lambda grad, x: grad * ((x > 0) + slope * (x == 0)))


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda x: (x.relu() - (-x).relu()).sum(), id="x"),
        pytest.param(lambda x: (x.relu() - 0.1 * (-x).relu()).sum(), id="leaky"),
        pytest.param(lambda x: ((x + 1).clamp(min=1) + (x - 1).clamp(max=-1)).sum(), id="both clamped"),
        pytest.param(lambda x: (relu_by(0.3)(x) - (-x).relu()).sum(), id="a choice of one's own"),
        pytest.param(lambda x: (relu_by(1.0)(x) - 0.1 * relu_by(1.0)(-x)).sum(), id="leaky, of one's own"),
    ],
)
def test_slopes_chosen_one_by_one_where_kinks_meet_are_no_mistake(f: Callable[[Tensor], Tensor]) -> None:
    report = checked(f, ZEROS)
    assert not report.mismatches, str(report)
    assert report["theta.0"].status in ("undecided", "kink")


def test_it_is_told_why_nothing_is_known_there() -> None:
    reason = checked(lambda x: (x.relu() - (-x).relu()).sum(), ZEROS)["theta.0"].reason
    assert "at 3 of 3 coordinates several kinks of J meet" in reason


@pytest.mark.parametrize(
    "f",
    [
        pytest.param(lambda x: function(lambda x: 1.0 * x, lambda g, x: g * (x != 0))(x).sum(), id="lost at 0"),
        pytest.param(lambda x: torch.where(x == 0, 0.0, x).sum(), id="a branch at 0 without a gradient"),
    ],
)
def test_what_no_kinks_explain_stays_wrong(f: Callable[[Tensor], Tensor]) -> None:
    assert wrong(checked(f, ZEROS)) == {"theta.0": 3}


# Selections among equal numbers ------------------------------------------------------------------------------------

EQUAL = torch.ones(4)


def second(share: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The second smallest number, whose gradient goes to entries by shares of the index and of where it is equal."""

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        value, index = x.kthvalue(2, keepdim=True)
        return grad[..., None] * share(index[..., 0], x == value)

    return function(lambda x: x.kthvalue(2)[0], backward)


def one_hot(index: Tensor, by: int = 0) -> Tensor:
    return nn.functional.one_hot((index + by) % 4, 4).double()


SELECTED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "kthvalue": (lambda x: x.kthvalue(2)[0], EQUAL),
    "mode": (lambda x: x.mode()[0], EQUAL),
    "mode, three of four": (lambda x: x.mode()[0], torch.tensor([3.0, 3.0, 3.0, 0.0])),
    "median": (lambda x: x.median(), EQUAL),
    "sort": (lambda x: x.sort()[0][1], EQUAL),
    "topk": (lambda x: x.topk(2)[0][1], EQUAL),
    "quantile": (lambda x: x.quantile(0.4), EQUAL),
    "of one's own": (second(lambda index, ties: one_hot(index, 2) if ties.all() else one_hot(index)), EQUAL),
    "shared": (second(lambda index, ties: ties / ties.sum()), torch.ones(12)),
}


@pytest.mark.parametrize(("f", "at"), SELECTED.values(), ids=SELECTED)
def test_which_of_equal_numbers_is_selected_is_no_mistake(f: Callable[[Tensor], Tensor], at: Tensor) -> None:
    report = checked(f, at)
    assert not report.mismatches, str(report)
    assert report["theta.0"].status in ("undecided", "kink")


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(lambda index, ties: 2 * one_hot(index), id="a factor"),
        pytest.param(lambda index, ties: -one_hot(index), id="a sign"),
        pytest.param(lambda index, ties: one_hot(index, 1), id="another entry"),
        pytest.param(lambda index, ties: ties.double(), id="all to each"),
    ],
)
def test_a_wrong_gradient_of_what_is_selected_is_found(share: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert check_function(second(share), (torch.ones(3, 4).double(),)).mismatches


@pytest.mark.parametrize("slope", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_another_slope_than_torchs_is_as_right(slope: float) -> None:
    """Units at their kinks, beside a maximum over ties."""
    relu = relu_by(slope)
    report = checked(lambda x: relu(x).sum() + (x - 1).amax() + 0.7 * relu(-x).amax(), ZEROS)
    assert not report.mismatches, str(report)


@pytest.mark.parametrize(("f", "at"), [(torch.amax, OTHERS), (lambda x: x.abs().sum(), ZEROS)], ids=["ties", "zeros"])
def test_where_the_gradient_is_torchs_a_kink_costs_three_evaluations(
    f: Callable[[Tensor], Tensor], at: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To record J, to compare the record with J, and to differentiate it."""
    evaluations = checked(f, at).evaluations
    monkeypatch.setattr(choice, "reconsidered", lambda problem, gradients, trials, progress: trials)
    assert evaluations <= checked(f, at).evaluations + 3


def test_what_is_smooth_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = checked(torch.sum, OTHERS).evaluations
    monkeypatch.setattr(choice, "reconsidered", lambda problem, gradients, trials, progress: trials)
    assert evaluations == checked(torch.sum, OTHERS).evaluations
