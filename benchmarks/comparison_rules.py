"""How the tests of other projects decide whether a tensor of a kernel is right, from the same tensors.

- flash-linear-attention (`assert_close` of fla/utils.py at 03f7925): the root mean square of the difference is below
  0.005 of that of the reference, the plain code in float32, or no entry is off by more than 1e-6.
- flash-attention (tests/test_flash_attn.py, and hopper/test_flash_attn.py of version 3): the largest difference from
  the reference, the plain code in float32, is at most 3 or 2 times that of the plain code in the kernel's dtype.
  Version 2 has 3 for gradients, and 2 for outputs, which have 3 here; version 3 adds twice what an addition of 0.3
  loses.
- Liger-Kernel (test/transformers at ead96b6): `allclose` to the plain code in the kernel's dtype, at tolerances for
  each test and dtype; here a narrow and a wide pair that occur there many times.

The results of the plain code in float32 are rounded to the kernel's dtype before they are compared, as they are in
those tests. Where that dtype is float32 itself, the plain code in float32 has no error, and that in float64 takes its
place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RATIO, SMALL = 0.005, 1e-6
"""Of flash-linear-attention: of the root mean square, used most often there; and its `err_atol`."""

NARROW = {torch.bfloat16: (5e-3, 5e-2), torch.float16: (1e-3, 1e-3), torch.float32: (1e-5, 1e-5)}
WIDE = {torch.bfloat16: (5e-2, 5e-1), torch.float16: (1e-2, 1e-2), torch.float32: (1e-4, 1e-6)}
"""Absolute and relative tolerances of Liger's tests."""


@dataclass(frozen=True)
class Tensors:
    """One output or gradient, all of one dtype.

    Attributes:
        candidate: of the kernel.
        exact: of the plain code in float32, in float64 of a kernel in float32; then rounded.
        plain: of the plain code in the kernel's dtype.
    """

    candidate: Tensor
    exact: Tensor
    plain: Tensor


def ratio(each: Tensors) -> bool:
    """flash-linear-attention."""
    difference, exact = each.candidate.double() - each.exact.double(), each.exact.double()
    if float(difference.abs().max()) <= SMALL:
        return True
    return float(_rms(difference)) / (float(_rms(exact)) + 1e-8) < RATIO


def factor(times: float, with_atol: bool) -> Callable[[Tensors], bool]:
    """flash-attention, with the factor that it uses for a backward of two versions."""

    def is_right(each: Tensors) -> bool:
        lost = float((each.plain - each.exact).abs().max())
        allowed = 2 * float((each.exact + 0.3 - 0.3 - each.exact).abs().max()) if with_atol else 0.0
        return float((each.candidate - each.exact).abs().max()) <= times * lost + allowed

    return is_right


def allclose(tolerances: dict[torch.dtype, tuple[float, float]]) -> Callable[[Tensors], bool]:
    """Liger-Kernel."""

    def is_right(each: Tensors) -> bool:
        atol, rtol = tolerances[each.candidate.dtype]
        return torch.allclose(each.plain, each.candidate, rtol=rtol, atol=atol)

    return is_right


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()


RULES: dict[str, Callable[[Tensors], bool]] = {
    "RMS ratio 0.005 (fla)": ratio,
    "3 × plain (flash-attention 2)": factor(3, with_atol=False),
    "2 × plain + atol (flash-attention 3)": factor(2, with_atol=True),
    "allclose, narrow (Liger)": allclose(NARROW),
    "allclose, wide (Liger)": allclose(WIDE),
}
"""Name of a rule, to whether a tensor passes it."""
