"""The figures of a monitored run as named scalars, written to TensorBoard or to whatever logger the caller has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.monitoring.history import GradientHistory
from torch_gradcheck.monitoring.magnitudes import joint_norm
from torch_gradcheck.reporting.report import Report

PREFIX = "gradcheck"

OF_GRADIENTS = ("grad_norm", "grad_max", "zeros", "weight_norm", "error_bar")
"""The attributes of a record that are written when its step has been checked."""

OF_UPDATE = ("update_ratio",)
"""The attributes of a record that are written when the update of its step is known."""

Write = Callable[[dict[str, float], int], object]
"""Takes name → value, and the step."""


class ScalarLog:
    """Writes the scalars of a run to a logger of the caller's, on the leading rank; whatever it raises comes through.

    Args:
        log: a callable of `(values, step)`, such as `wandb.log`; or an object with `add_scalar(name, value, step)`,
            such as TensorBoard's SummaryWriter; or one with `log_metrics(values, step=...)`, such as a logger of
            Lightning. None: nothing is written.
        leads: whether this is the rank that writes.

    Raises:
        InvalidRequestError: it is none of these.
    """

    def __init__(self, log: Any, leads: bool) -> None:
        write = None if log is None else _writer(log)
        self._write = write if leads else None

    def write_gradients(self, step: int, rows: GradientHistory, report: Report | None) -> None:
        """Writes what the gradients of a step are and, where it could be checked, whether they are right."""
        known = [row.grad_norm for row in rows if row.grad_norm is not None]
        values = {f"{PREFIX}/total_grad_norm": joint_norm(known)} if known else {}
        if report is not None:
            values |= {f"{PREFIX}/passed": float(report.passed), f"{PREFIX}/mismatches": float(len(report.mismatches))}
        self._send(values | _each(rows, OF_GRADIENTS), step)

    def write_update(self, step: int, rows: GradientHistory) -> None:
        """Writes how far the optimizer has moved the weights after a step."""
        self._send(_each(rows, OF_UPDATE), step)

    def _send(self, values: dict[str, float], step: int) -> None:
        if values and self._write is not None:
            self._write(values, step)


def _writer(log: Any) -> Write:
    """The function of values and step that writes to `log`."""
    if callable(add_scalar := getattr(log, "add_scalar", None)):
        return lambda values, step: [add_scalar(name, value, step) for name, value in values.items()]
    if callable(log_metrics := getattr(log, "log_metrics", None)):
        return lambda values, step: log_metrics(values, step=step)
    if callable(log):
        written: Write = log
        return written
    raise InvalidRequestError(
        "log must be a function of (values, step), such as wandb.log, a SummaryWriter of TensorBoard or a logger of "
        f"Lightning, got {type(log).__name__} {log!r}."
    )


def _each(rows: GradientHistory, attributes: tuple[str, ...]) -> dict[str, float]:
    """The scalars of every parameter; what is None is left out."""
    values = {f"{PREFIX}/{each}/{row.name}": getattr(row, each) for each in attributes for row in rows}
    return {name: float(value) for name, value in values.items() if value is not None}
