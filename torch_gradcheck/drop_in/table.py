"""The table of a check behind a failure: what the gradients are under random gradients of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch_gradcheck.check import check_function
from torch_gradcheck.drop_in.failure import GradcheckFailedError
from torch_gradcheck.drop_in.second_order import GradientFunction
from torch_gradcheck.reporting.report import Report


def with_table(
    failure: GradcheckFailedError, func: Callable[..., Any], arguments: Sequence[Any]
) -> GradcheckFailedError:
    """The failure with the report of `check_function`, where that has found something wrong as well.

    Args:
        failure: what was found.
        func: the function.
        arguments: its arguments, the caller's.
    """
    report = _report(func, arguments)
    if report is None or not report.is_wrong:
        return failure
    return GradcheckFailedError(f"{failure}\n\n{report}", report)


def _report(func: Callable[..., Any], arguments: Sequence[Any]) -> Report | None:
    """None where the function cannot be checked so: it raises, or nothing in it can be compared.

    Of a function of gradients without the contract: it would be that of this package's own function.
    """
    try:
        report = check_function(func, tuple(arguments), progress=False)
    except Exception:
        return None
    return replace(report, contract=[]) if isinstance(func, GradientFunction) else report
