"""`gradcheck` and `gradgradcheck`: torch's signatures, our engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_gradcheck.drop_in.failure import ContradictoryFlagsError, GradcheckFailedError
from torch_gradcheck.drop_in.inputs import as_tuple
from torch_gradcheck.drop_in.options import Options
from torch_gradcheck.drop_in.second_order import GradientFunction, cotangents_of
from torch_gradcheck.drop_in.table import with_table
from torch_gradcheck.drop_in.trial import try_function
from torch_gradcheck.tracebacks import UsersFrames


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Checks the gradients of a function in the place of `torch.autograd.gradcheck`.

    Every entry of the Jacobian is compared, |analytic − numeric| ≤ atol + rtol · |numeric|, with differences that have
    error bars: an entry is called wrong only where they exclude that it is right, and right where it lies between
    the two slopes at a kink. Nothing of the caller's changes; `func` and `inputs` are lent in float64 meanwhile.
    docs/guide/from-gradcheck.md says what differs from torch, argument by argument.

    Args:
        func: takes the inputs and returns a tensor or a nest of tensors.
        inputs: a tensor, or a tuple or list of the arguments. On trial are the tensors that require a gradient.
        eps: the step of the differences. The default means none in particular: one is chosen from the noise of
            `func`. Another one is used as it is, and inputs in float32 then stay so.
        atol: the difference that passes.
        rtol: the share of the derivative that passes besides.
        raise_exception: raise where something does not hold; otherwise return False.
        nondet_tol: how far two runs of the backward may lie apart.
        check_undefined_grad: an output whose gradient is None or zero must not contribute.
        check_grad_dtypes: the gradients that the backward and the forward mode return must have the right dtypes.
        check_batched_grad: the backward under vmap must give what a loop gives.
        check_batched_forward_grad: the same of the forward mode.
        check_forward_ad: the Jacobian by forward mode is compared as well.
        check_backward_ad: the Jacobian by the backward is; False leaves out all that needs a backward.
        fast_mode: compare random derivatives first, and entries only where these differ.
        masked: the gradient at unspecified entries of sparse inputs is left out of account.

    Returns:
        True if all holds.

    Raises:
        GradcheckFailedError: something does not hold; an `AssertionError`, a `RuntimeError` and torch's own
            `GradcheckError`.
        InvalidRequestError: the arguments cannot be used; a `ValueError`, and an `AssertionError` or `RuntimeError`
            where torch raises those.
    """
    with UsersFrames():
        options = Options(
            eps=eps,
            atol=atol,
            rtol=rtol,
            nondet_tol=nondet_tol,
            check_undefined_grad=check_undefined_grad,
            check_grad_dtypes=check_grad_dtypes,
            check_batched_grad=check_batched_grad,
            check_batched_forward_grad=check_batched_forward_grad,
            check_forward_ad=check_forward_ad,
            check_backward_ad=check_backward_ad,
            fast_mode=fast_mode,
            masked=bool(masked),
        )
        arguments = as_tuple(inputs)
        try:
            try_function(func, arguments, options)
        except GradcheckFailedError as failure:
            if not raise_exception:
                return False
            raise with_table(failure, func, arguments) from failure.__cause__
        return True


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Checks the gradients of the gradients of a function in the place of `torch.autograd.gradgradcheck`.

    It is `gradcheck` of (x, v) ↦ ∂⟨v, f(x)⟩/∂x, in x and in v, and has its arguments. Besides:

    - `grad_outputs` is v: a tensor, or a tuple of one for each differentiable output; None draws them between −1
      and 1, not contiguous with `gen_non_contig_grad_outputs`;
    - `check_fwd_over_rev`: the derivative of the backward by forward mode is compared, too;
    - `check_rev_over_rev`: that by the backward is.

    Returns:
        True if all holds.

    Raises:
        GradcheckFailedError, InvalidRequestError: as `gradcheck`.
    """
    _check_flags(check_fwd_over_rev, check_rev_over_rev, check_undefined_grad, check_batched_grad)
    arguments = as_tuple(inputs)
    cotangents = cotangents_of(func, arguments, grad_outputs)
    spread = gen_non_contig_grad_outputs and grad_outputs is None
    return gradcheck(
        GradientFunction(func, arguments, cotangents, spread),
        arguments + cotangents,
        eps=eps,
        atol=atol,
        rtol=rtol,
        raise_exception=raise_exception,
        nondet_tol=nondet_tol,
        check_undefined_grad=check_undefined_grad,
        check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad,
        check_forward_ad=check_fwd_over_rev,
        check_backward_ad=check_rev_over_rev,
        fast_mode=fast_mode,
        masked=masked,
    )


def _check_flags(forward: bool, reverse: bool, undefined: bool, batched: bool) -> None:
    if not (forward or reverse):
        raise ContradictoryFlagsError(
            "Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True: there is nothing to check."
        )
    for name, asked in (("check_undefined_grad", undefined), ("check_batched_grad", batched)):
        if asked and not reverse:
            raise ContradictoryFlagsError(f"Setting {name}=True requires check_rev_over_rev to be True.")
