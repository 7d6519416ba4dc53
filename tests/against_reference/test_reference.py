"""The reference's own check: what is wrong with it is said first, and no candidate is accused beside it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

from torch_gradcheck import NonFiniteLossError, check_function, check_module


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class WeightIsScaled(Function):
    """x · w whose gradient of w is 1 % too large."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        return g * w, 1.01 * (g * x).sum(0)


def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * w


def test_a_wrong_reference_is_told_first_and_accuses_nobody() -> None:
    report = check_function(product, (numbers(7, 5), numbers(5)), reference=WeightIsScaled.apply)
    assert not report.passed
    assert not report.mismatches
    assert report.has_wrong_reference
    assert [(row.name, row.status) for row in report] == [("x", "match"), ("w", "undecided"), ("output", "match")]
    assert "the reference's own gradient" in report["w"].reason
    first = report.notes[0]
    assert "reference" in first
    assert "w" in first
    assert "1.01" in first
    assert "WeightIsScaled" in first


def test_a_wrong_candidate_beside_a_wrong_reference_is_still_accused_in_other_rows() -> None:
    report = check_function(
        lambda x, w: (x * w) * 2 - (x * w).detach(), (numbers(7, 5), numbers(5)), reference=WeightIsScaled.apply
    )
    assert report["x"].status == "mismatch"
    assert report["w"].status == "undecided"


def test_rows_of_the_reference_are_named_after_the_candidates_arguments() -> None:
    report = check_function(product, (numbers(7, 5), numbers(5)), reference=lambda a, b: a * b.detach())
    assert report.reference is not None
    assert [row.name for row in report.reference] == ["x", "w"]
    assert report["w"].status == "undecided"
    assert report["x"].status == "match"


def test_a_detached_reference_is_right_with_held_values() -> None:
    def straight_through(x: torch.Tensor) -> torch.Tensor:
        return x + (x.round() - x).detach()

    inputs = (numbers(7, 5),)
    assert check_function(straight_through, inputs, reference=straight_through, hold_detached=True).passed


def test_a_reference_whose_backward_differs_from_run_to_run_decides_nothing() -> None:
    runs = 0

    class Uneven(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            nonlocal runs
            runs += 1
            return g * (2 + 0.5 * (runs % 2))

    report = check_function(lambda x: 2 * x, (numbers(4, 3),), reference=Uneven.apply)
    assert not report.passed
    assert report["x"].status == "undecided"
    assert "reference" in report.notes[0]


@pytest.mark.parametrize("bad", [math.nan, 1e400 - 1e400], ids=["nan", "inf-inf"])
def test_a_reference_that_is_nan_is_an_error_that_names_it(bad: float) -> None:
    with pytest.raises(NonFiniteLossError, match="reference: J"):
        check_function(lambda x: x * 1, (numbers(4, 3),), reference=lambda x: x * bad)


def test_inputs_that_are_nan_are_an_error() -> None:
    with pytest.raises(NonFiniteLossError, match="argument 'x' holds 12 of 12 entries not finite"):
        check_function(lambda x: x * 1, (numbers(4, 3) * math.nan,), reference=lambda x: x * 1)


def test_flat_and_unused_rows_are_those_of_the_reference() -> None:
    x, w = numbers(7, 5), numbers(5)
    unused = check_function(lambda x, w: x * 2, (x, w), reference=lambda x, w: x * 2)
    assert [row.status for row in unused] == ["match", "unused", "match"]
    assert unused.passed
    assert not unused.proven
    flat = check_function(lambda x, w: x * 2 + 0 * w, (x, w), reference=lambda x, w: x * 2 + 0 * w)
    assert [row.status for row in flat] == ["match", "flat", "match"]


def test_a_gradient_where_the_reference_has_none_is_a_mismatch() -> None:
    class Spurious(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            return 2 * g, g.sum(0)

    for reference in (lambda x, w: 2 * x, lambda x, w: 2 * x + 0 * w):
        report = check_function(Spurious.apply, (numbers(7, 5), numbers(5)), reference=reference)
        assert [row.status for row in report] == ["match", "mismatch", "match"]


class Rounded(Function):
    """Multiples of 1/3, and a backward that is no derivative of them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * 3).round() / 3

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 1.7 * g


def test_a_reference_whose_gradient_is_flat_proves_nothing() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((13, 21), generator=generator)
    x = (x * (torch.rand((13, 21), generator=generator) < 0.5)).to(torch.bfloat16)
    report = check_function(Rounded.apply, (x,), reference=Rounded.apply)
    assert report.reference is not None
    assert report.reference["x"].status == "flat"
    assert [row.status for row in report] == ["undecided", "match"]
    assert not report.passed
    assert "the reference's own gradient is not proven: x" in report.notes


@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_a_reference_that_writes_over_its_inputs_is_told_first(is_before: bool) -> None:
    def reference(x: torch.Tensor) -> torch.Tensor:
        before = x.sin()
        x.data.mul_(2)
        return x.sin() if is_before else before

    report = check_function(torch.sin, (numbers(7, 5),), reference=reference)
    assert not report.passed
    assert not report.mismatches
    assert "the reference writes over args[0] past autograd" in report.notes[0]


def test_notes_on_the_reference_say_whose_they_are() -> None:
    report = check_function(lambda x: x * x, (numbers(7, 5),), reference=lambda x: x * x.detach())
    assert all("reference" in note for note in report.notes), report.notes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_outputs_in_another_dtype_are_told(dtype: torch.dtype) -> None:
    report = check_function(lambda x: x.float().sin().to(dtype), (numbers(7, 5),), reference=torch.sin)
    assert report.passed
    assert ("another dtype than the reference" in " ".join(report.notes)) is (dtype is not torch.bfloat16)


def test_outputs_alone_pass_nothing() -> None:
    report = check_function(
        lambda x: x.softmax(-1).sum(-1), (numbers(7, 5),), reference=lambda x: x.softmax(-1).sum(-1)
    )
    assert report["x"].status in ("flat", "undecided")
    assert report["output"].status == "match"
    assert not report.passed


def test_the_options_of_differences_are_those_of_the_reference() -> None:
    def reference(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)

    model, plain = nn.Linear(5, 3).to(torch.bfloat16), nn.Linear(5, 3)
    report = check_module(
        model, lambda y: y.square().mean(), numbers(4, 5), reference=plain, method="projected", tolerance=1e-3, seed=7
    )
    assert report.reference is not None
    assert (report.method, report.tolerance, report.seed, report.reference.method) == (
        "projected",
        1e-3,
        7,
        "projected",
    )
    given = check_function(torch.sin, (numbers(4, 5),), reference=reference, eps=1e-4)
    assert given.reference is not None
    assert [row.eps for row in given.reference] == [1e-4]


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.5),
        lambda x: x * torch.rand(x.shape).to(x.dtype),
        lambda x: x + torch.randn_like(x),
        lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
        lambda x: x * float(np.random.rand()),
    ],
    ids=["dropout", "rand", "randn_like", "bernoulli", "numpy"],
)
def test_both_sides_draw_the_same_numbers(draw: Any) -> None:
    report = check_function(draw, (numbers(9, 7),), reference=draw)
    assert report.passed, report
    assert "both sides draw random numbers" in " ".join(report.notes)


def test_other_draws_are_no_mistake_of_the_kernel() -> None:
    def other(x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand(x.shape) < 0.5).to(x.dtype) * 2

    report = check_function(other, (numbers(9, 7),), reference=lambda x: F.dropout(x, 0.5))
    assert not report.passed
    assert not report.mismatches
    assert "give it the mask" in " ".join(report.notes)


@pytest.mark.parametrize(
    "reference",
    [
        lambda x: x.sin() + torch.rand_like(x),
        lambda x: F.dropout(x.sin(), 0.5),
        lambda x: x.sin() + 1e-1 * torch.rand(1),
    ],
    ids=["noise", "dropout", "little"],
)
def test_a_reference_that_alone_draws_accuses_nobody(reference: Any) -> None:
    report = check_function(torch.sin, (numbers(9, 7),), reference=reference)
    assert not report.passed
    assert not report.mismatches
    assert "only the reference draws" in report.notes[0]


@pytest.mark.parametrize("draw", [F.dropout, lambda x: F.dropout(x.softmax(-1)) @ x.mT], ids=["dropout", "attention"])
def test_a_factor_beside_the_same_mask_is_a_mistake(draw: Any) -> None:
    report = check_function(lambda x: draw(x) * 0.5, (numbers(9, 9),), reference=draw)
    assert [row.status for row in report] == ["mismatch", "mismatch"]


def test_another_random_factor_is_no_mistake() -> None:
    def other(x: torch.Tensor) -> torch.Tensor:
        torch.rand(3)
        return x.relu() * torch.rand(()).to(x.dtype)

    report = check_function(other, (numbers(9, 7),), reference=lambda x: x.relu() * torch.rand(()).to(x.dtype))
    assert not report.passed
    assert not report.mismatches


def test_a_mistake_beside_equal_draws_is_found() -> None:
    class Dropout(Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.mask = F.dropout(torch.ones_like(x), 0.5)
            return x * ctx.mask

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return g * (ctx.mask != 0)

    report = check_function(Dropout.apply, (numbers(9, 7),), reference=lambda x: x * F.dropout(torch.ones_like(x), 0.5))
    assert [row.status for row in report] == ["mismatch", "match"]


class Gain(nn.Module):
    """A weight of 1 that enters squared; the wrong twin's backward forgets the square."""

    def __init__(self, is_wrong: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))
        self.is_wrong = is_wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.is_wrong:
            return x * self.weight.square()
        return x * (self.weight.square() - 2 * self.weight).detach() + x * 2 * self.weight


def test_perturb_moves_both_sides_alike() -> None:
    inputs = numbers(6, 5)
    right, wrong, plain = Gain(False).to(torch.bfloat16), Gain(True).to(torch.bfloat16), Gain(False)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return y.square().mean()

    before = right.weight.detach().clone()
    assert check_module(right, loss, inputs, reference=plain, perturb=0.3).passed
    assert check_module(wrong, loss, inputs, reference=plain).passed  # weights of 1 hide it
    moved = check_module(wrong, loss, inputs, reference=plain, perturb=0.3)
    assert moved["weight"].status == "mismatch"
    assert "perturb" in " ".join(moved.notes) or "N(0, 1)" in " ".join(moved.notes)
    assert torch.equal(before, right.weight)
    assert torch.equal(plain.weight, torch.ones(5))


@pytest.mark.parametrize(("shape", "is_told"), [((4, 8), True), ((4, 7), False), ((1, 8), True)], ids=str)
def test_sizes_that_blocks_divide_are_told(shape: tuple[int, int], is_told: bool) -> None:
    report = check_function(torch.sin, (numbers(*shape),), reference=torch.sin)
    assert ("power of two" in " ".join(report.notes)) is is_told


def test_beside_a_reference_of_which_nothing_is_proven_nothing_matches() -> None:
    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return (x * 3).round() / 3

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            return 1.7 * g

    generator = torch.Generator().manual_seed(3)
    numbers, kept = torch.randn((13, 21), generator=generator), torch.rand((13, 21), generator=generator) < 0.5
    x = (numbers * kept).to(torch.bfloat16)
    report = check_function(StraightThrough.apply, (x,), reference=StraightThrough.apply, seed=3)
    assert report.reference is not None
    assert report.reference["x"].status == "flat"
    assert report["x"].status == "undecided"
    assert not report.passed


def test_a_reference_whose_outputs_are_all_infinite_is_told() -> None:
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    report = check_function(torch.square, (x,), reference=lambda x: x * x / (x - x))
    assert report.has_wrong_reference
    assert not report.passed
