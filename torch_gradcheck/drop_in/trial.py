"""A function tried as torch.autograd.gradcheck tries it: its Jacobian, and what else its arguments ask for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.drop_in.batched import check_batched_backward, check_batched_forward
from torch_gradcheck.drop_in.columns import Columns, RandomColumns
from torch_gradcheck.drop_in.forward_mode import (
    check_has_forward_mode,
    check_undefined_tangents,
    forward_jacobian,
)
from torch_gradcheck.drop_in.function import LentFunction, lent_function
from torch_gradcheck.drop_in.graph import Graph, check_repeatable, check_undefined, check_zero_gives_zero
from torch_gradcheck.drop_in.inputs import check_inputs, requires_gradient
from torch_gradcheck.drop_in.jacobian import SEED, check_independent, check_jacobian
from torch_gradcheck.drop_in.options import Options
from torch_gradcheck.drop_in.rows import Rows
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.precision.dtypes import is_lower, name_of


def try_function(func: Callable[..., Any], arguments: Sequence[Any], options: Options) -> None:
    """Tries all that the options ask for.

    Raises:
        GradcheckFailedError: something does not hold.
        InvalidRequestError: no argument requires a gradient, or an output is sparse.
    """
    check_inputs(arguments)
    if _stay_as_they_are(arguments, options):
        _try_lent(func, arguments, options, None)
        return
    may_refuse = bool(_lower(arguments))
    try:
        _try_lent(func, arguments, options, torch.float64, may_refuse)
    except RefusesFloat64Error:
        _try_lent(func, arguments, options, None)


def _try_lent(
    func: Callable[..., Any],
    arguments: Sequence[Any],
    options: Options,
    dtype: torch.dtype | None,
    may_refuse: bool = False,
) -> None:
    if dtype is None:
        _warn_of_low_precision(arguments)
    with lent_function(func, arguments, masked=options.masked, dtype=dtype, seed=SEED) as function:
        _start(function, may_refuse)
        if not function.differentiable:
            check_independent(function, options)
            return
        if options.check_backward_ad:
            check_jacobian(function, options, _by_backward(function, options), forward=False)
        if options.check_forward_ad:
            _try_forward(function, options)
        if options.check_backward_ad:
            _try_backward(function, options)


def _warn_of_low_precision(arguments: Sequence[Any]) -> None:
    lower = _lower(arguments)
    for position, each in enumerate(arguments):
        if any(each is other for other in lower):
            warnings.warn(
                f"Input #{position} requires gradient and is not a double precision floating point or complex: it is "
                f"checked in {name_of(each.dtype)}, and errors that the rounding of that hides are not seen.",
                stacklevel=5,
            )


class RefusesFloat64Error(Exception):
    """A function raises for its inputs in float64, which are in a lower precision: it may take them in that alone."""


def _start(function: LentFunction, may_refuse: bool) -> None:
    """Runs the function for the first time.

    Raises:
        RefusesFloat64Error: with `may_refuse`, in place of what the function raises.
    """
    try:
        function.start()
    except InvalidRequestError:
        raise
    except Exception as error:
        if may_refuse:
            raise RefusesFloat64Error from error
        raise


def _stay_as_they_are(arguments: Sequence[Any], options: Options) -> bool:
    """Whether inputs stay in a lower precision: where a step was chosen for it, or their layout has no float64."""
    lower = _lower(arguments)
    everything = len(lower) == sum(map(requires_gradient, arguments))
    return any(each.is_mkldnn for each in lower) or (options.step is not None and everything)


def _lower(arguments: Sequence[Any]) -> list[torch.Tensor]:
    """The inputs on trial that are in a lower precision than float64."""
    return [each for each in arguments if requires_gradient(each) and is_lower(each.dtype, torch.float64)]


def _by_backward(function: LentFunction, options: Options) -> Callable[[Rows, Columns], Floats]:
    def jacobian(rows: Rows, columns: Columns) -> Floats:
        with function.run():
            graph = Graph.of(function)
            first = graph.jacobian(rows, columns)
            check_repeatable(first, graph.jacobian(rows, columns), options.nondet_tol)
        return first

    return jacobian


def _try_backward(function: LentFunction, options: Options) -> None:
    """What is asked of the backward besides its Jacobian."""
    with function.run():
        graph = Graph.of(function)
        if options.check_batched_grad:
            check_batched_backward(graph)
        check_zero_gives_zero(graph, options.masked)
        if options.check_undefined_grad:
            check_undefined(graph)


def _try_forward(function: LentFunction, options: Options) -> None:
    """What is asked of the forward mode."""
    check_has_forward_mode(function)

    def jacobian(rows: Rows, columns: Columns) -> Floats:
        return forward_jacobian(function, rows, columns, options.check_grad_dtypes)

    check_jacobian(function, options, jacobian, forward=True)
    if options.check_undefined_grad:
        check_undefined_tangents(function, RandomColumns(function.inputs, SEED))
    if options.check_batched_forward_grad:
        check_batched_forward(function)
