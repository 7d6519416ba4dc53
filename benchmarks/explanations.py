"""What is wrong with the operators of torch 2.13 that a check calls wrong, each looked at by hand.

Most are mistakes of torch, several of which its own table of operators admits ("Gradients are incorrect!"). The last
ones do what they are meant to, and cannot keep that entry of the contract.
"""

from __future__ import annotations

_POOLED_BACK = {
    "mismatch": "where indices occur twice, the forward keeps the last value written to a place, the backward gives "
    "all of them a gradient; torch's table leaves its gradient out for that"
}
_DRAWN = "a draw has no gradient by its mean and deviation; torch's table says 'Gradients are incorrect!'"
_BY_STRIDES = "reads memory by strides that it is given: another layout of its input is other numbers"

EXPLANATIONS: dict[str, dict[str, str]] = {
    "as_strided_scatter": {
        "mismatch": "gives entries that are overwritten a gradient; torch's table expects its gradient to be wrong",
        "vmap": "the same gradient, which is not that of a loop",
    },
    "index_fill": {"vmap": "a batched value is written to one copy of an input that is not: all get the last one"},
    "native_group_norm": {
        "layouts": "its kernel reads a strided weight as if it were contiguous; group_norm itself makes it so before",
        "undefined_grads": "the gradients of mean and deviation are lost where the normalised output is not used",
    },
    "nn.functional.linear_cross_entropy.chunked": {
        "second_order": "its backward is a Function that keeps gradients as attributes: their derivative is silently 0",
        "vmap": "the gradient is lost under vmap, silently",
    },
    "nn.functional.max_unpool1d": _POOLED_BACK,
    "nn.functional.max_unpool2d": _POOLED_BACK,
    "nn.functional.max_unpool3d": _POOLED_BACK,
    "nn.functional.nll_loss": {"layouts": "the backward raises 'grad_input must be contiguous' for such a 4-d input"},
    "normal": {"mismatch": _DRAWN, "forward_ad": _DRAWN},
    "normal.number_mean": {"mismatch": _DRAWN, "forward_ad": _DRAWN},
    "scatter_reduce.prod": {"forward_ad": "its forward-mode derivative is silently 0"},
    "select_scatter": {"vmap": "the gradient of what is scattered is too large by the length of the dimension"},
    "as_strided": {"layouts": _BY_STRIDES, "vmap": _BY_STRIDES},
    "as_strided_copy": {"layouts": _BY_STRIDES, "vmap": _BY_STRIDES},
}
"""Operator → "mismatch" or entry of the contract → why the alarm is none of the check's mistakes."""


def is_explained(operator: str, alarm: str) -> bool:
    """Whether there is a reason for an alarm in the words of check_function, "vmap: …", or for any of gradcheck."""
    reasons = EXPLANATIONS.get(operator, {})
    kind, found, _ = alarm.partition(": ")
    return kind in reasons if found and kind.isidentifier() else bool(reasons)
