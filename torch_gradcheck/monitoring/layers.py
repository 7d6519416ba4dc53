"""The parameters of a checked step by layers: what their gradients, weights and updates are together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch_gradcheck.monitoring.history import GradientRecord
from torch_gradcheck.monitoring.magnitudes import joint_norm


@dataclass(frozen=True)
class Layer:
    """The parameters of one module on one step.

    Attributes:
        name: of the module; of a parameter of the model itself its own.
        rows: those with a `.grad`.
    """

    name: str
    rows: Sequence[GradientRecord]

    @cached_property
    def grad_norm(self) -> float:
        """The norm of all its gradients."""
        return joint_norm([row.grad_norm or 0.0 for row in self.rows])

    @cached_property
    def weight_norm(self) -> float:
        """The norm of all its weights."""
        return joint_norm([row.weight_norm for row in self.rows])

    @property
    def update_ratio(self) -> float | None:
        """The norm of its update by that of its weights; None where it is not known, or all weights were 0."""
        updates = [row.update_norm for row in self.rows if row.update_norm is not None]
        return joint_norm(updates) / self.weight_norm if updates and self.weight_norm else None

    @cached_property
    def sizes(self) -> list[float]:
        """The root mean square of each gradient over the entries that are not 0, as most rows of a large table are."""
        return [_root_mean_square(row) for row in self.rows]

    @cached_property
    def size(self) -> float:
        """The largest of them: a bias before a batch norm, or of keys, has no gradient beside weights that have."""
        return max(self.sizes, default=0.0)

    @property
    def is_finite(self) -> bool:
        """Whether no gradient holds NaN or infinity."""
        return all(row.finite for row in self.rows)

    @property
    def is_resolved(self) -> bool:
        """Whether the check has told an entry of a gradient from 0."""
        return any(row.error_bar is not None and (row.grad_max or 0.0) > row.error_bar for row in self.rows)


Flow = dict[int, list[Layer]]
"""Checked step → its layers that have a `.grad`, in the order of `named_parameters()`."""


def flow_of(rows: Iterable[GradientRecord]) -> Flow:
    """The layers of every step; none of a step on which nothing had a `.grad`."""
    grouped: dict[int, dict[str, list[GradientRecord]]] = {}
    for row in rows:
        if row.grad_norm is not None:
            layer = row.name.rpartition(".")[0] or row.name
            grouped.setdefault(row.step, {}).setdefault(layer, []).append(row)
    return {step: [Layer(name, each) for name, each in layers.items()] for step, layers in grouped.items()}


def _root_mean_square(row: GradientRecord) -> float:
    nonzero = round(row.numel * (1 - (row.zeros or 0.0)))
    return (row.grad_norm or 0.0) / math.sqrt(nonzero) if nonzero else 0.0
