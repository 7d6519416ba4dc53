"""Monte Carlo arithmetic: a computation run again with the result of every operation moved at random by roundoff.

Rounding is modelled as noise of relative size ε on each result. The spread of a few such runs shows how far rounding
can have moved the value computed, cancellation and crossed kinks included. A mistake in the computation is the same in
all runs. Source: Parker, "Monte Carlo arithmetic" (1997).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.precision.dtypes import is_lower
from torch_gradcheck.precision.exponential_sums import ExponentialSums, Subtracted
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.operations import (
    ATTENTION,
    ATTENTION_BACKWARD,
    LOG_SOFTMAX,
    SOFTMAX,
    SOFTMAX_BACKWARD,
    changes_dtype,
    is_view,
    overloads,
    written_arguments,
)
from torch_gradcheck.torch_internals.tensors import is_efficient_zero

MOVED = 0.6
"""The largest move of a result x, in units of ε·|x|. Rounded to its precision, the result then moves by one unit in the
last place or stays. The variance is a few times that of rounding to nearest."""


ROUNDED_INSIDE = (torch.float32, torch.float64)
"""The precisions whose kernels add up in themselves: those of float16 and bfloat16 do in float32."""


ROUNDED_SUM = 0.5
"""A sum of about 1 is off by half a unit in its last place, and its logarithm by as much, however small that is."""


ROUNDINGS = 8
"""So many times the rounding of its result moves a sum that is added up in its own dtype. At 1 kernels of attention
over one key alone were beyond their bars."""


RECOMPUTED = 2
"""So many times the rounding of a row's logarithm moves it where the logits are sums of products, which kernels compute
once more. At 8, float32 attention that rounds to float16 in its backward passed at logits of 400. At 2, none of 351
right runs of float32 attention was beyond its bars."""


RUNS = 6
"""How many runs with rounding as noise show how far it moves a result."""


def moved_by_rounding(run: Callable[[], Floats], seed: int) -> Floats:
    """How far rounding moves each number that a computation gives: the furthest of a few runs from the plain one.

    Infinite where it makes one NaN or infinite. A run that raises shows nothing, as of a probability above 1.

    Args:
        run: the computation; it gives as many numbers each time.
        seed: of the noise.
    """
    plain, generator = run(), torch.Generator("cpu").manual_seed(seed % 2**63)
    moved = np.zeros_like(plain)
    with np.errstate(all="ignore"):
        for _ in range(RUNS):
            try:
                with RoundingMode(generator):
                    noisy = run()
            except Exception:  # whatever the user's code raises on numbers that it does not expect
                continue
            moved = np.maximum(moved, np.nan_to_num(np.abs(noisy - plain), nan=np.inf))
    return moved


class RoundingMode(DispatchMode):
    """Runs a computation with rounding as random noise; every operation keeps its own precision.

    What rounds is not only the result. Where an operation adds up products that cancel, its roundings are of the size
    of the products; noise on one of the factors is as large, and does not cancel. Source: Parker's precision bounding.

    Args:
        generator: draws the noise.
        between: of a run that stands for other ways to compute the same, a kernel's: the dtype that results are rounded
            to where they are handed on to another operation, though the computation keeps them in a finer one: see
            `KEPT_FINE`. None: it stands for itself, and each is rounded in its own.
    """

    supports_higher_order_operators = True

    def __init__(self, generator: torch.Generator, between: torch.dtype | None = None) -> None:
        super().__init__()
        self._generator, self._between, self._sums = generator, between, ExponentialSums()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        factor = FACTORS.get(func)
        if factor is not None and factor < len(args):
            whatever_dtype = func in ATTENTION  # which hands weights of its own making on to a second product
            args = (*args[:factor], self._moved(args[factor], whatever_dtype), *args[factor + 1 :])
        result = func(*args, **(kwargs or {}))
        if self._between is not None:
            self._move_sum(result, self._sums.logarithm(func, args, kwargs or {}, result))
        if rounds(func, args):
            results = _floating(result)
            largest = max([tensor.numel() for tensor in results], default=0)
            for tensor in results:
                terms = ROUNDED_SUM if func in LOGARITHMS else 0.0
                is_kept = func in KEPT_FINE or tensor.ndim == 0 or tensor.numel() < largest
                rounding = tensor.dtype if is_kept else self._handed_on_in(tensor.dtype)
                move_at_random(tensor, rounding, self._generator, terms=terms)
                if func in GAUSSIAN:
                    self._move_by(tensor, args[0])
            if func in SOFTMAX or (func in LOG_SOFTMAX and self._between is not None):
                self._move_rows(func, result, *args[:2])
            if func in SOFTMAX_BACKWARD:
                self._move_sums(result, *args[:3])
        return result

    def _handed_on_in(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that numbers computed in `dtype` are rounded to between two operations."""
        return self._between if self._between is not None and is_lower(self._between, dtype) else dtype

    def _move_by(self, tensor: torch.Tensor, factor: torch.Tensor) -> None:
        """Moves every entry in place as much as rounding moves that of `factor`."""
        with torch.no_grad():
            noise = factor.detach().clone()
            move_at_random(noise, noise.dtype, self._generator)
            tensor.add_(noise.sub_(factor.detach()))

    def _move_sums(self, result: torch.Tensor, g: torch.Tensor, y: torch.Tensor, dim: int) -> None:
        """Moves y · (g − Σ g y) as rounding moves each sum.

        Others take that sum in another way, as attention does over its output: where y is 1, it cancels exactly here
        and leaves a rounding there.

        As if its terms were independent, since g may be what is left of terms that cancel: of a row in dtypes whose
        kernels add up in float32, else of all rows.
        """
        with torch.no_grad():
            wide = torch.promote_types(result.dtype, torch.float32)
            squares = g.detach().to(wide).square()
            weights = torch.linalg.vector_norm(y.detach().to(wide), dim=dim, keepdim=True)
            if result.dtype in ROUNDED_INSIDE:
                self._move_products(result, y, ROUNDINGS * squares.mean().sqrt() * weights, result.dtype)
            coarse = self._handed_on_in(result.dtype)
            if coarse not in ROUNDED_INSIDE:  # of which the sum is taken over an output that is rounded to it
                self._move_products(result, y, squares.mean(dim, keepdim=True).sqrt() * weights, coarse)

    def _move_products(self, result: torch.Tensor, y: torch.Tensor, sums: torch.Tensor, rounding: torch.dtype) -> None:
        """Moves y · `sums`, which is contained in the result, in place as `rounding` moves these sums."""
        moved = sums.clone()
        move_at_random(moved, rounding, self._generator)
        result.add_((y.detach() * moved.sub_(sums)).to(result.dtype))

    def _move_rows(self, func: Any, result: torch.Tensor, logits: torch.Tensor, dim: int) -> None:
        """Moves the weights of a row alike, or their logarithms, as rounding moves the logarithm of the row's sum.

        Kernels of attention keep that in float32, and take exp(logit − logarithm) in their backward; those of a cross
        entropy take logarithm − logit. What they lose grows with the logits, and does not when the largest of these is
        subtracted first.
        """
        if result.dtype not in ROUNDED_INSIDE or not result.numel():
            return
        with torch.no_grad():
            sums = torch.logsumexp(logits.detach().to(result.dtype), dim, keepdim=True)
            if func in SOFTMAX:
                result.mul_(self._rounding_of(sums, self._sums.adds_up(logits)).exp_())
            else:
                result.sub_(self._rounding_of(sums))

    def _move_sum(self, result: torch.Tensor, logarithm: Subtracted | None) -> None:
        """Moves a sum of exponentials as rounding moves its logarithm: see `_move_rows`; nothing where that is None."""
        if logarithm is not None and result.dtype in ROUNDED_INSIDE:
            with torch.no_grad():
                result.mul_(self._rounding_of(*logarithm).exp_())

    def _rounding_of(self, sums: torch.Tensor, are_added_up: bool = False) -> torch.Tensor:
        """How far rounding moves each of these logarithms; 0 where one is not finite.

        Rounded itself, the move would be none in most of the runs where a number is just above a power of 2.

        Args:
            sums: the logarithms.
            are_added_up: whether the logits are sums of products. Attention computes them once more in its backward,
                and may add them up in another order there.
        """
        known = sums.nan_to_num(0.0, 0.0, 0.0)
        noise = _moves(known, known.dtype, self._generator)
        if self._between is None:
            return noise.add_(known).sub_(known)
        return noise.mul_(RECOMPUTED) if are_added_up else noise

    def _moved(self, argument: Any, whatever_dtype: bool) -> Any:
        """A copy with noise of a tensor whose kernels round inside; anything else as it is."""
        if not isinstance(argument, torch.Tensor) or not _floating(argument):
            return argument
        if argument.dtype not in ROUNDED_INSIDE and not whatever_dtype:
            return argument
        copy = argument.detach().clone()
        move_at_random(copy, copy.dtype, self._generator)
        return copy


class KernelsInMode(PrecisionMode):
    """Lets Python see one precision and runs torch's kernels in a coarser one, with rounding as random noise.

    Errors of a dtype's kernels besides rounding at random show here: sums that stagnate, results that underflow. Code
    that does something else on purpose for that dtype does not do so here, since it sees `precision`.

    Args:
        precision: the dtype that Python sees.
        kernels: the dtype of the kernels.
        generator: draws the noise; None for rounding to nearest alone.
    """

    def __init__(self, precision: torch.dtype, kernels: torch.dtype, generator: torch.Generator | None) -> None:
        super().__init__(precision)
        self._kernels, self._generator = kernels, generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not rounds(func, args):
            return super().__torch_dispatch__(func, types, args, kwargs)
        try:
            result = self._in_kernels_dtype(func, args, dict(kwargs or {}))
        except (NotImplementedError, RuntimeError):  # no such kernel
            result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in _floating(result):
            if self._generator is not None:
                move_at_random(tensor, self._kernels, self._generator)
            else:
                tensor.detach().copy_(tensor.detach().to(self._kernels))
        return result

    def _in_kernels_dtype(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        written = written_arguments(func)
        lowered = [self._lowered(arg) for arg in args]
        result = func(*lowered, **{name: self._lowered(arg) for name, arg in kwargs.items()})
        given = {id(low): arg for low, arg in zip(lowered, args, strict=True)}
        for position, arg in enumerate(args):
            if position in written and isinstance(arg, torch.Tensor):
                arg.copy_(lowered[position])
        return self._raised_again(result, given)

    def _lowered(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return argument.to(self._kernels) if argument.is_floating_point() else argument
        if isinstance(argument, torch.dtype):
            return self._kernels if argument.is_floating_point else argument
        if isinstance(argument, list | tuple):
            return type(argument)([self._lowered(item) for item in argument])
        return argument

    def _raised_again(self, result: Any, given: Mapping[int, Any]) -> Any:
        if isinstance(result, torch.Tensor):
            if id(result) in given:
                return given[id(result)]
            return result.to(self.precision) if result.is_floating_point() else result
        if isinstance(result, list | tuple):
            return type(result)([self._raised_again(item, given) for item in result])
        return result


def rounds(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation rounds its results: it computes numbers, and does not copy, choose, create or draw them."""
    if changes_dtype(func):
        return bool(args[0].is_floating_point())
    tags = getattr(func, "tags", ())
    return func not in EXACT and torch.Tag.nondeterministic_seeded not in tags and not is_view(func)


def move_at_random(tensor: torch.Tensor, rounding: torch.dtype, generator: torch.Generator, terms: float = 0.0) -> None:
    """Moves every entry in place by at most `MOVED` machine epsilons of `rounding`; zeros and infinities stay.

    Where entries are sums of `terms` of this size, they move as much as these do, in the precision of the kernel.
    """
    wide = torch.float64 if tensor.dtype is torch.float64 else torch.float32  # float8 has no operations of its own
    with torch.no_grad():
        numbers = tensor.to(wide)
        moved = _moves(numbers, rounding, generator, terms).add_(numbers)
        stays = moved.isfinite().logical_not_()
        tensor.copy_(torch.where(stays if terms else stays.logical_or_(numbers == 0), numbers, moved))


def _moves(
    numbers: torch.Tensor, rounding: torch.dtype, generator: torch.Generator, terms: float = 0.0
) -> torch.Tensor:
    """The moves of `move_at_random`, drawn."""
    info = torch.finfo(rounding)
    least = max(info.smallest_normal, terms * min(1.0, torch.finfo(torch.float32).eps / info.eps))
    xi = torch.rand(numbers.shape, generator=generator, dtype=torch.float32, device="cpu").to(numbers)
    return xi.mul_(2).sub_(1).mul_(numbers.abs().clamp_(min=least).mul_(MOVED * info.eps))


def _floating(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        dense = result.layout is torch.strided and result.numel() > 0 and not is_efficient_zero(result)
        return [result] if result.is_floating_point() and dense else []
    if isinstance(result, tuple | list):
        return [tensor for item in result for tensor in _floating(item)]
    return []


_NAMES_OF_EXACT = """
    clone copy_ cat stack constant_pad_nd embedding index index_select gather where masked_fill masked_fill_
    masked_select relu relu_ neg abs sign round floor ceil trunc maximum minimum amax amin max min sort topk
    max_pool2d_with_indices max_pool3d_with_indices triu tril flip roll repeat zero_ fill_ zeros ones full
    zeros_like ones_like full_like new_zeros new_ones new_full new_empty empty empty_like empty_strided
    new_empty_strided arange linspace scalar_tensor lift_fresh threshold_backward
"""

EXACT = overloads(*_NAMES_OF_EXACT.split())
"""Operations that copy numbers, choose among them or create them, and round nothing."""

_NAMES_BY_FACTOR = {
    0: "mm bmm mv dot vdot linear convolution mkldnn_convolution native_layer_norm native_batch_norm native_group_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _fused_rms_norm var var_mean std std_mean "
    "_scaled_dot_product_flash_attention_for_cpu _cdist_forward",
    1: "addmm baddbmm addbmm addmv convolution_backward native_layer_norm_backward native_batch_norm_backward "
    "native_group_norm_backward _fused_rms_norm_backward _softmax_backward_data",
}

FACTORS = {func: position for position, names in _NAMES_BY_FACTOR.items() for func in overloads(*names.split())}
FACTORS |= dict.fromkeys(ATTENTION_BACKWARD, 4)
"""Operations that add up products, or subtract a mean, whose terms may cancel → the position of a factor."""

_NAMES_OF_LOGARITHMS = "_log_softmax logsumexp log_sigmoid_forward"

LOGARITHMS = overloads(*_NAMES_OF_LOGARITHMS.split())
"""Operations that take the logarithm of a sum of about 1, where a softmax is saturated."""

_NAMES_OF_KEPT_FINE = """
    add add_ sub sub_ rsub sum mean var var_mean std std_mean cumsum norm linalg_vector_norm rsqrt sqrt log log1p pow
    softplus
"""

KEPT_FINE = LOGARITHMS | overloads(*_NAMES_OF_KEPT_FINE.split())
"""Operations whose results a fused kernel keeps in float32: sums, what is subtracted of each other, and logarithms; as
it keeps what an operation gives besides its result, such as the mean of each row, and numbers without dimensions."""

GAUSSIAN = overloads("gelu", "gelu_backward")
"""Operations that multiply their first argument by ½ (1 + erf x), which is rounded like 1 where it is almost 0."""
