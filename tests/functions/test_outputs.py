"""What a function returns: which of it J is made of, under which gradients, and for which of them a row is wrong."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from torch_gradcheck import check_function
from torch_gradcheck.errors import InvalidRequestError, NonDeterministicLossError, NonFiniteLossError
from torch_gradcheck.objective.function_outputs import Cotangents, inner, outputs_of
from torch_gradcheck.reporting.facts import DiagnosisKind

RNG = torch.Generator().manual_seed(18)
X = torch.randn(3, 4, generator=RNG)
Pair = namedtuple("Pair", "mean rest")


@dataclass
class Moments:
    mean: Tensor
    others: dict[str, Any]


NESTS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "a tensor": (lambda x: x.sin(), ["output"]),
    "a tuple": (lambda x: (x.sin(), None, 3, "x", x.cos()), ["output[0]", "output[4]"]),
    "named": (lambda x: Pair(x.sin(), [x.cos()]), ["output[0]", "output[1][0]"]),
    "a mapping": (lambda x: {"a": x.sin(), "b": (x.cos(),)}, ["output['a']", "output['b'][0]"]),
    "a dataclass": (lambda x: Moments(x.sin(), {"var": x.cos()}), ["output.mean", "output.others['var']"]),
}


@pytest.mark.parametrize(("function", "names"), NESTS.values(), ids=NESTS)
def test_any_nest_of_tensors_is_an_output(function: Callable[[Tensor], Any], names: list[str]) -> None:
    assert [name for name, _ in outputs_of(function(X))] == names
    assert check_function(function, (X,)).passed


RIGHT: dict[str, Callable[[Tensor], Any]] = {
    "an argument": lambda x: x,
    "a view of it": lambda x: x[1:],
    "one tensor twice": lambda x: (x, x),
    "0-dim": lambda x: x.sum(),
    "one of them empty": lambda x: (x.sin(), x[:0]),
    "complex": lambda x: torch.complex(x, x.square()),
    "sparse": lambda x: x.exp().to_sparse(),
    "sorted, and where": lambda x: x.sort(),
}


@pytest.mark.parametrize("function", RIGHT.values(), ids=RIGHT)
def test_outputs_of_every_kind(function: Callable[[Tensor], Any]) -> None:
    assert check_function(function, (X,)).passed


class Marks(Function):
    """Two outputs, of which it marks one as not differentiable: a floating one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        signs = x.sign()
        ctx.mark_non_differentiable(signs)
        return x.square(), signs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_outputs_without_a_graph_are_left_out_and_told() -> None:
    for function in (Marks.apply, lambda x: (x.square(), x.detach() * 2)):
        report = check_function(function, (X,))
        assert report["x"].status.value == "match"
        assert any(note.startswith("output[1] has no graph") for note in report.notes)


class Loses(Function):
    """Marks the only output it has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.square()
        ctx.mark_non_differentiable(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None: ...


@pytest.mark.parametrize("function", [Loses.apply, lambda x: x.detach().sin()], ids=["marked", "detached"])
def test_where_no_output_has_a_graph_the_gradient_is_missing(function: Callable[[Tensor], Tensor]) -> None:
    (row,) = check_function(function, (X,))
    assert row.diagnosis is not None
    assert row.diagnosis.kind is DiagnosisKind.MISSING


def test_only_empty_outputs_prove_nothing() -> None:
    report = check_function(lambda x: x[:0], (X,))
    assert report["x"].status.value == "flat"
    assert not report.passed


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "nothing": (lambda _: None, "<lambda> returns no tensor of floating point or complex numbers: it has no gradient"),
    "integers": (lambda x: x.argmax(-1), r"complex numbers \(output is torch.int64\)"),
    "a constant": (lambda _: torch.ones(2), r"the function does not depend on the one checked argument \(_\)"),
    "nested": (lambda x: torch.nested.as_nested_tensor([x[0], x[1]]), "output is a nested tensor"),
    "meta": (lambda x: (x, x.to("meta")), r"output\[1\] is on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:.*prototype stage:UserWarning")
def test_what_has_no_gradient_is_refused(function: Callable[[Tensor], Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        check_function(function, (X,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])
def test_v_is_signed_not_uniform_and_divided_by_the_size(dtype: torch.dtype) -> None:
    output = torch.zeros(20, 50, dtype=dtype)
    v = Cotangents(0).of(0, output)
    sizes = v.abs() * output.numel()
    assert v.dtype == dtype
    assert v.shape == output.shape
    assert v.is_contiguous()
    assert 0.5 <= float(sizes.min()) < 0.6
    assert 1.4 < float(sizes.max()) <= 1.5
    parts = torch.view_as_real(v) if v.is_complex() else v
    assert 0.4 < float((parts > 0).double().mean()) < 0.6
    assert torch.equal(v, Cotangents(0).of(0, output))
    assert not torch.equal(v, Cotangents(0).of(1, output))
    assert not torch.equal(v, Cotangents(1).of(0, output))


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e8])
@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["right", "wrong"])
def test_an_output_of_large_numbers_hides_no_other(factor: float, scale: float) -> None:
    class Sine(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return factor * gradient * ctx.saved_tensors[0].cos()

    report = check_function(lambda x: (x * scale, Sine.apply(x)), (X,))
    assert report["x"].status == ("match" if factor == 1 else "mismatch")


def test_v_has_the_precision_of_the_check() -> None:
    v = Cotangents(0, torch.float64).of(0, torch.zeros(3, dtype=torch.float16))
    assert v.dtype is torch.float64
    assert torch.allclose(Cotangents(0, torch.float32).of(0, torch.zeros(3)).double(), v)


def test_the_inner_product_of_complex_numbers_is_real() -> None:
    v, y = torch.tensor([1 + 2j]), torch.tensor([3 - 1j])
    assert float(inner(v, y)) == 1 * 3 + 2 * -1


def test_a_function_is_given_v_itself_and_no_view_of_less_memory() -> None:
    given: list[Tensor] = []

    class Looks(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            given.append(gradient)
            return 2 * gradient

    check_function(Looks.apply, (X,), seed=3)
    assert torch.equal(given[0], Cotangents(3).of(0, 2 * X.double()))
    assert given[0].is_contiguous()


class Two(Function):
    """x², x³ with gradients off by `factors`, and one that reacts to both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: tuple[float, float], together: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.factors, ctx.together = factors, together
        return x**2, x**3

    @staticmethod
    def backward(ctx: Any, square: Tensor, cube: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        one, other = ctx.factors
        return 2 * one * x * square + 3 * other * x**2 * cube + ctx.together * square * cube, None, None


WRONG_FOR: dict[str, tuple[tuple[float, float], float, str]] = {
    "the first": (
        (1.01, 1.0),
        0.0,
        "wrong for the gradient of output[0] (1.01 times the right one); right for that of output[1]",
    ),
    "the second": (
        (1.0, 0.9),
        0.0,
        "wrong for the gradient of output[1] (0.9 times the right one); right for that of output[0]",
    ),
    "none of the second": ((1.0, 0.0), 0.0, "of output[1] (it is 0); right for that of output[0]"),
    "both": ((1.5, 0.9), 0.0, "gradients of output[0] (1.5 times the right one), output[1] (0.9 times the right one)"),
    "both together": ((1.0, 1.0), 1e3, "right for the gradient of each output alone, wrong for all together"),
}


@pytest.mark.parametrize(("factors", "together", "words"), WRONG_FOR.values(), ids=WRONG_FOR)
def test_a_wrong_row_says_for_which_gradient(factors: tuple[float, float], together: float, words: str) -> None:
    report = check_function(Two.apply, (X, factors, together))
    assert report["x"].reason.endswith(words)
    assert report.culprit == "Two"


def test_a_right_row_of_several_outputs_says_nothing() -> None:
    report = check_function(Two.apply, (X, (1.0, 1.0), 0.0))
    assert report["x"].status.value == "match"
    assert report["x"].reason == ""


def test_complex_outputs_are_told_apart() -> None:
    z = torch.randn(3, generator=RNG, dtype=torch.complex128)
    report = check_function(lambda z: (z.exp(), z.detach() * z), (z,))
    assert (
        "wrong for the gradient of output[1] (0.5 times the right one); right for that of output[0]"
        in report["z"].reason
    )


def test_errors_are_in_words_of_a_function() -> None:
    with pytest.raises(NonFiniteLossError, match=r"J\(θ\) = nan: it arises in the function; log at .* the first NaN"):
        check_function(lambda x: x.log(), (-X.abs(),))
    with pytest.raises(NonFiniteLossError, match="argument 'x' holds 1 of 12 entries not finite"):
        check_function(lambda x: x.sin(), (X.where(X[0, 0] != X, torch.nan),))
    calls: list[None] = []

    def counts(x: Tensor) -> Tensor:
        calls.append(None)
        return x * len(calls)

    with pytest.raises(NonDeterministicLossError, match=r"it is the function. .* pass it in as an argument"):
        check_function(counts, (X,))


def test_no_note_speaks_of_a_loss_or_of_options_that_a_function_does_not_have() -> None:
    layer = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Dropout(0.5)).eval()
    for report in (check_function(layer, (X,)), check_function(Two.apply, (X, (1.5, 1.0), 0.0))):
        assert not [note for note in report.notes if "loss" in note or "perturb" in note or "eval mode" in note]


def test_outputs_that_are_not_finite_are_named() -> None:
    with pytest.raises(
        NonFiniteLossError, match=r"Not finite are 4 of 12 entries of output\[1\]: a function that masks"
    ):
        check_function(lambda x: (x, x.masked_fill(torch.tensor([True, False, False])[:, None], -torch.inf)), (X,))
