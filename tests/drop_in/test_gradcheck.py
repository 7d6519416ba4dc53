"""`gradcheck` and `gradgradcheck` with the signatures, verdicts, exceptions and messages of torch's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.gradcheck import GradcheckError as TorchGradcheckError
from torch.autograd.gradcheck import gradcheck as torch_gradcheck
from torch.autograd.gradcheck import gradgradcheck as torch_gradgradcheck

from torch_gradcheck import (
    GradcheckFailedError,
    GradientMismatchError,
    InvalidRequestError,
    gradcheck,
    gradgradcheck,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's forward mode


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()


class Cubed(Function):
    """x³, whose backward is `factor` times the right one, off by `offset`, and more that can be wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float = 1.0, offset: float = 0.0, noise: float = 0.0) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor, ctx.offset, ctx.noise, ctx.runs = factor, offset, noise, 0
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.runs += 1
        slope = ctx.factor * 3 * x**2 + ctx.noise * (ctx.runs % 3)
        return gradients[0] * slope + ctx.offset, None, None, None


def cubed(**wrong: float) -> Callable[[Tensor], Tensor]:
    values = [wrong.get(name, default) for name, default in (("factor", 1.0), ("offset", 0.0), ("noise", 0.0))]
    return lambda x: Cubed.apply(x, *values)  # type: ignore[no-any-return,no-untyped-call]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(gradcheck, torch_gradcheck), (gradgradcheck, torch_gradgradcheck)], ids=["first", "second"]
)
def test_the_signatures_are_those_of_torch(ours: Callable[..., bool], theirs: Callable[..., bool]) -> None:
    found, expected = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
    assert [(name, each.kind, each.default) for name, each in found.items()] == [
        (name, each.kind, each.default) for name, each in expected.items()
    ]


def test_a_right_function_passes_in_every_way() -> None:
    assert gradcheck(
        lambda x, y: (x @ y, (x * 2).sum()),
        (leaf(2, 2), leaf(2, 1)),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
        check_grad_dtypes=True,
    )
    assert gradcheck(torch.sin, leaf(2), fast_mode=True)
    assert gradgradcheck(torch.mul, [leaf(2), leaf(2)], check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("fast_mode", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize(
    ("options", "factor", "passes"),
    [
        ({}, 1.0009, True),
        ({}, 1.0012, False),
        ({"rtol": 1e-2}, 1.009, True),
        ({"rtol": 0.0, "atol": 1e-6}, 1.0001, False),
        ({"rtol": 0.0, "atol": 1.0}, 1.01, True),
    ],
    ids=["within rtol", "beyond rtol", "larger rtol", "small atol", "large atol"],
)
def test_the_tolerances_decide(options: dict[str, float], factor: float, passes: bool, fast_mode: bool) -> None:
    x = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(cubed(factor=factor), x, raise_exception=False, fast_mode=fast_mode, **options) is passes  # type: ignore[arg-type]


def test_an_error_in_one_entry_that_is_small_beside_the_others_fails() -> None:
    """Under a random upstream gradient it would be one part in a hundred million of the gradient of x[0]."""

    class Steep(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return torch.stack([1e3 * x[0], x[1], x[0] * 0])

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            a, b, c = gradients[0]
            return torch.stack([1e3 * a + 2e-5 * c, b])

    assert not gradcheck(Steep.apply, leaf(2), raise_exception=False)


def test_a_gradient_between_the_slopes_at_a_kink_is_right() -> None:
    assert gradcheck(torch.relu, torch.zeros(2, dtype=torch.float64, requires_grad=True))
    assert gradcheck(torch.abs, torch.zeros(1, dtype=torch.float64, requires_grad=True))


def test_a_failure_is_of_torchs_type_and_of_ours_and_shows_the_table() -> None:
    with pytest.raises(GradcheckFailedError, match="Jacobian mismatch for output 0 with respect to input 0") as caught:
        gradcheck(cubed(factor=1.01), leaf(3))
    assert isinstance(caught.value, TorchGradcheckError)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, GradientMismatchError)
    assert caught.value.report is not None
    assert "1.01 × the right gradient" in str(caught.value)


def test_the_first_wrong_pair_is_named_and_the_entry_that_is_furthest_off() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x.sum(), x * cubed(factor=2.0)(y)

    with pytest.raises(
        GradcheckFailedError, match=r"output 1 with respect to input 1: 2 of 12 entries(.|\n)*output\[1\]\[(\d)\] with"
    ):
        gradcheck(function, (leaf(2), leaf(2)))


COMPLEX = torch.complex128


@pytest.mark.parametrize("fast_mode", [False, True], ids=["slow", "fast"])
@pytest.mark.parametrize(
    "function",
    [lambda z: z * z.conj() + z.exp(), torch.abs, torch.view_as_real],
    ids=["C to C", "C to R", "parts"],
)
def test_complex_numbers_are_checked_in_both_parts(function: Callable[[Tensor], Tensor], fast_mode: bool) -> None:
    assert gradcheck(function, leaf(2, dtype=COMPLEX), fast_mode=fast_mode, check_forward_ad=True)


def test_a_wrong_complex_gradient_is_told_by_its_part() -> None:
    def function(z: Tensor) -> Tensor:
        y = z.clone()
        y.register_hook(lambda gradient: gradient + 1e-2)
        return y

    with pytest.raises(RuntimeError, match="While considering the imaginary part of complex outputs only, Jacobian"):
        gradcheck(function, leaf(2, dtype=COMPLEX))


WRONG: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "not repeatable": (cubed(noise=1e-3), {}, "Backward is not reentrant"),
    "not repeatable enough": (cubed(noise=1e-8), {"nondet_tol": 1e-10}, "Backward is not reentrant"),
    "not multiplied": (cubed(offset=1e-7), {}, "backward not multiplied by grad_output"),
    "detached": (lambda x: x.detach() ** 2, {}, "expected to be zero"),
}


@pytest.mark.parametrize(("function", "options", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_else_does_not_hold_is_told(function: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(GradcheckFailedError, match=message):
        gradcheck(function, leaf(2), **options)
    assert gradcheck(function, leaf(2), raise_exception=False, **options) is False


def test_a_spread_within_nondet_tol_passes() -> None:
    assert gradcheck(cubed(noise=1e-9), leaf(2), nondet_tol=1e-6)


def test_a_shape_that_depends_on_the_input_is_told() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cat([x, x]) if bool((x >= 1).all()) else x

    with pytest.raises(AssertionError, match="return outputs with the same shape when inputs are perturbed"):
        gradcheck(function, torch.ones(1, dtype=torch.float64, requires_grad=True))


class NeedsAGradient(Function):
    """Fails in its backward where its gradient is undefined."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Tensor:
        if gradients[0] is None:
            raise RuntimeError("no gradient")
        return gradients[0] * 2


def test_an_undefined_gradient_is_tried_where_asked() -> None:
    with pytest.raises(GradcheckFailedError, match="Expected backward function to handle undefined output grads"):
        gradcheck(NeedsAGradient.apply, leaf(2))
    assert gradcheck(NeedsAGradient.apply, leaf(2), check_undefined_grad=False)


class ReadsItsGradient(Function):
    """Has a backward that vmap cannot run: it makes a number of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (2.0 if float(gradients[0].detach().sum()) < 1e30 else 3.0)


def test_the_backward_runs_under_vmap_where_asked() -> None:
    assert gradcheck(ReadsItsGradient.apply, leaf(2))
    with pytest.raises(GradcheckFailedError, match="failed while testing batched gradient computation"):
        gradcheck(ReadsItsGradient.apply, leaf(2), check_batched_grad=True)


class WithTangents(Function):
    """2x, whose forward-mode rule has the factor `slope`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * 2, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return tangents[0] * ctx.slope  # type: ignore[no-any-return]


def test_forward_mode_is_compared_where_asked() -> None:
    x = leaf(2)
    assert gradcheck(lambda x: WithTangents.apply(x, 2.0), x, check_forward_ad=True)  # type: ignore[no-untyped-call]
    assert gradcheck(lambda x: WithTangents.apply(x, 2.02), x)  # type: ignore[no-untyped-call]
    for only in (True, False):
        with pytest.raises(GradcheckFailedError, match="Jacobian computed with forward mode mismatch for output 0"):
            gradcheck(
                lambda x: WithTangents.apply(x, 2.02),  # type: ignore[no-untyped-call]
                x,
                check_forward_ad=True,
                check_backward_ad=only,
            )


def test_a_function_without_a_forward_mode_rule_raises_what_torch_raises() -> None:
    with pytest.raises(NotImplementedError, match="jvp"):
        gradcheck(cubed(), leaf(2), check_forward_ad=True)


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "nothing requires a gradient": (
        lambda: gradcheck(torch.sin, torch.ones(2)),
        ValueError,
        "at least one input tensor to require gradient",
    ),
    "stride 0": (
        lambda: gradcheck(torch.sin, leaf(1).expand(2, 2)),
        RuntimeError,
        "The 0th input has a dimension with stride 0",
    ),
    "sparse output": (lambda: gradcheck(lambda x: x.to_sparse(), leaf(2)), ValueError, "Sparse output is not supp"),
    "no mode": (
        lambda: gradcheck(torch.sin, leaf(2), check_backward_ad=False),
        AssertionError,
        "at least one of check_forward_ad or check_backward_ad",
    ),
    "batched without backward": (
        lambda: gradcheck(torch.sin, leaf(2), check_forward_ad=True, check_backward_ad=False, check_batched_grad=True),
        AssertionError,
        "check_batched_grad=True requires check_backward_ad",
    ),
    "batched forward without forward": (
        lambda: gradcheck(torch.sin, leaf(2), check_batched_forward_grad=True),
        AssertionError,
        "check_batched_forward_grad=True requires check_forward_ad",
    ),
    "no mode of second order": (
        lambda: gradgradcheck(torch.sin, leaf(2), check_rev_over_rev=False),
        AssertionError,
        "at least one of check_fwd_over_rev or check_rev_over_rev",
    ),
    "undefined without reverse": (
        lambda: gradgradcheck(torch.sin, leaf(2), check_rev_over_rev=False, check_fwd_over_rev=True),
        AssertionError,
        "check_undefined_grad=True requires check_rev_over_rev",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_arguments_that_cannot_be_used_raise_what_torch_raises(
    call: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        call()
    assert isinstance(caught.value, InvalidRequestError)


def test_errors_of_the_function_come_through() -> None:
    def function(x: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gradcheck(function, leaf(2), raise_exception=False)


def test_a_function_that_ignores_its_argument_and_reads_the_same_tensor_is_checked() -> None:
    """As tests of layers do: `gradcheck(lambda w: layer(x), (layer.weight,))`."""
    layer = torch.nn.Linear(2, 1).double()
    x = torch.randn(3, 2, dtype=torch.float64)
    assert gradcheck(lambda *_: layer(x), tuple(layer.parameters()))
    assert not gradcheck(lambda *_: cubed(factor=1.01)(layer(x)), tuple(layer.parameters()), raise_exception=False)


def test_nothing_of_the_callers_changes() -> None:
    x = leaf(2)
    x.grad = torch.ones(2, dtype=torch.float64)
    before, version, state = x.detach().clone(), x._version, torch.get_rng_state()
    norm = torch.nn.BatchNorm1d(1).double()
    gradcheck(lambda x: x * torch.rand(2, dtype=torch.float64), x)
    gradgradcheck(lambda x: norm(x[:, None]) * torch.rand(2, 1, dtype=torch.float64), x)
    assert norm.num_batches_tracked == 0
    assert torch.equal(x, before)
    assert x._version == version
    assert x.grad.tolist() == [1, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_float32_inputs_are_raised_unless_a_step_is_given_or_the_function_refuses() -> None:
    seen = set()

    def function(x: Tensor) -> Tensor:
        seen.add(x.dtype)
        return x.sin()

    x = leaf(2, dtype=torch.float32)
    assert gradcheck(function, x)
    assert seen == {torch.float64}
    seen.clear()
    with pytest.warns(UserWarning, match="Input #0 requires gradient and is not a double precision"):
        assert gradcheck(function, x, eps=1e-2, atol=1e-2)
    assert seen == {torch.float32}

    def strict(x: Tensor) -> Tensor:
        assert x.dtype is torch.float32
        return cubed(factor=1.2)(x)

    with pytest.warns(UserWarning, match="it is checked in float32"):
        assert not gradcheck(strict, x, atol=1e-2, raise_exception=False)


@pytest.mark.filterwarnings("ignore:Input #0")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN")
def test_mkldnn_inputs_are_checked_as_they_are() -> None:
    x = torch.rand(3).to_mkldnn().requires_grad_()
    assert gradcheck(lambda x: x.to_dense(), (x,), atol=1e-1)
    with pytest.raises(ValueError, match="MKLDNN inputs are not support for forward AD"):
        gradcheck(lambda x: x.to_dense(), (x,), atol=1e-1, check_forward_ad=True)


class KeptIntermediate(Function):
    """x³, whose backward takes x² for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.square = x.detach() ** 2
        return x**3

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 3 * ctx.square  # type: ignore[no-any-return]


def test_a_double_backward_that_takes_an_intermediate_for_a_constant_is_wrong() -> None:
    x = leaf(2)
    assert gradcheck(KeptIntermediate.apply, x)
    with pytest.raises(GradcheckFailedError, match="Jacobian mismatch for output 0 with respect to input 0"):
        gradgradcheck(KeptIntermediate.apply, x)


def test_the_gradients_of_the_outputs_may_be_given() -> None:
    v = (leaf(2, 1), torch.ones(2, 1, dtype=torch.float64))
    assert gradgradcheck(lambda x: (x.sin(), x.cos()), leaf(2, 1), v)
    assert gradgradcheck(torch.sin, leaf(2, 1), leaf(2, 1))


def test_gradients_that_are_drawn_are_not_contiguous_where_asked() -> None:
    strides = []

    class Watched(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            strides.append(gradients[0].is_contiguous())
            return gradients[0] * 2

    assert gradgradcheck(Watched.apply, leaf(2, 2), gen_non_contig_grad_outputs=True)
    assert not any(strides)


def test_a_backward_that_is_differentiable_once_fails() -> None:
    class Once(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return gradients[0] * 2

    assert not gradgradcheck(Once.apply, leaf(2), raise_exception=False)
