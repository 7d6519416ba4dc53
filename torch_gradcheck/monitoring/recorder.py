"""Records what `.grad` and the weights are on steps that are checked, and what the optimizer then does to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.assembly import assembled
from torch_gradcheck.monitoring.history import GradientHistory, GradientRecord
from torch_gradcheck.monitoring.magnitudes import Magnitudes, distance, magnitudes_of
from torch_gradcheck.monitoring.scalar_log import ScalarLog
from torch_gradcheck.objective.theta import check_selection
from torch_gradcheck.objective.variables import Variable
from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import named_parameters
from torch_gradcheck.torch_internals.optimizers import Scaling


class Recorder:
    """Fills the history of a run.

    The update of a step comes after its check. It is the distance between the weights and a copy of them, taken on the
    leading rank when the check is over, kept in the memory of the CPU, and compared at the next call of `step`. In
    between nothing is watched.

    Args:
        request: the options of the checks; its team are the ranks.
        log: where the figures are written; None for nowhere.

    Raises:
        InvalidRequestError: `log` is nothing that can be written to.
    """

    def __init__(self, request: Request, log: Any = None) -> None:
        self._request = request
        self._log = ScalarLog(log, leads=request.team.leads)
        self._unwritten: int | None = None
        self._rows: dict[int, dict[str, GradientRecord]] = {}
        self._aliases: dict[str, str] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._awaited: int | None = None
        self._is_sharded = False

    @property
    def history(self) -> GradientHistory:
        """The records so far."""
        return GradientHistory([row for rows in self._rows.values() for row in rows.values()], self._aliases)

    @property
    def awaits_update(self) -> bool:
        """Whether the update of a step that was checked has not been measured yet."""
        return self._awaited is not None

    def note_gradients(self, step: int, model: nn.Module, variables: Sequence[Variable], scaling: Scaling) -> None:
        """Records the step; the model is whole, and its parameters as the loop left them.

        Args:
            step: its number.
            model: what is trained.
            variables: the tensors of its batch that are on trial, too; they have no record.
            scaling: the loss scale that `.grad` may still carry.

        Raises:
            InvalidRequestError: as the check itself, where nothing is to be checked.
        """
        self._rows[step] = {}
        for name, parameter in self._parameters(model, variables).items():
            self._rows[step][name] = record_of(step, name, parameter, scaling.carried(parameter))

    def keep_weights(self, step: int, model: nn.Module, is_sharded: bool) -> None:
        """Keeps a copy of the weights, until the update of this step has been measured.

        Args:
            step: its number.
            model: what is trained, whole.
            is_sharded: outside of this block each rank has a part of it only.
        """
        self._awaited, self._is_sharded = step, is_sharded
        rows = self._rows.get(step, {})
        if self._request.team.leads and rows:
            held = dict(named_parameters(model))
            self._before = {name: held[name].detach().to("cpu", copy=True) for name in rows}

    def note_check(self, step: int, report: Report | None) -> None:
        """Adds what the check of a step found, None where it could not be checked, and writes the figures."""
        rows = self._rows.get(step, {})
        if report is not None:
            self._rows[step] = {name: _with_findings(row, report) for name, row in rows.items()}
        self._log.write_gradients(step, self._at(step), report)

    def note_update(self, model: nn.Module, last: bool = False) -> None:
        """Measures the update of the step that awaits it; `write_update` writes it.

        Ranks talk to each other only where a model is sharded: they come here at the same call of `step`, or not at
        all where it is the last.

        Args:
            model: what is trained.
            last: the run is over on this rank.
        """
        step, self._awaited = self._awaited, None
        if step is None:
            return
        try:
            norms = self._measured(model, last)
        finally:
            self._before = {}
        for name, norm in norms.items():
            row = self._rows[step][name]
            ratio = norm / row.weight_norm if row.weight_norm else None
            self._rows[step][name] = replace(row, update_norm=norm, update_ratio=ratio)
        self._unwritten = step if norms else None

    def write_update(self) -> None:
        """Writes the update that was measured, once: a logger that raises is to find nothing half done."""
        step, self._unwritten = self._unwritten, None
        if step is not None:
            self._log.write_update(step, self._at(step))

    def _at(self, step: int) -> GradientHistory:
        """The records of one step; empty where there are none."""
        return GradientHistory(self._rows.get(step, {}).values(), self._aliases)

    def _measured(self, model: nn.Module, last: bool) -> dict[str, float]:
        """Parameter's name → the norm of its update; on the leading rank, or on all where the model is sharded."""
        if not self._is_sharded:
            return self._update_norms(model)
        if last:
            return {}
        with self._request.team.together() as team, assembled(model):
            return team.exchanged(self._update_norms(model))[LEADER]

    def _update_norms(self, model: nn.Module) -> dict[str, float]:
        held = dict(named_parameters(model)) if self._before else {}
        return {
            name: distance(held[name], before)
            for name, before in self._before.items()
            if name in held and held[name].shape == before.shape
        }

    def _parameters(self, model: nn.Module, variables: Sequence[Variable]) -> dict[str, torch.Tensor]:
        """The parameters on trial by their first names; notes the other names of tied ones."""
        selected = check_selection(model, self._request.include, self._request.exclude, variables)
        own = {id(each) for each in model.parameters()}
        found = {}
        for parameter, names in selected:
            if parameter.requires_grad and id(parameter) in own:
                found[names[0]] = parameter
                self._aliases.update(dict.fromkeys(names[1:], names[0]))
        return found


def record_of(step: int, name: str, parameter: torch.Tensor, scale: float = 1.0) -> GradientRecord:
    """The record of a parameter as it is now, its `.grad` divided by the loss scale; its update is not known yet."""
    weights = magnitudes_of(parameter)
    grad = None if parameter.grad is None else _unscaled(magnitudes_of(parameter.grad), scale)
    return GradientRecord(
        step=step,
        name=name,
        numel=parameter.numel(),
        grad_norm=None if grad is None else grad.norm,
        grad_max=None if grad is None else grad.largest,
        grad_mean=None if grad is None else grad.mean,
        zeros=None if grad is None else grad.zeros,
        finite=None if grad is None else grad.finite,
        weight_norm=weights.norm,
    )


def _with_findings(row: GradientRecord, report: Report) -> GradientRecord:
    """The record with what the check found of its `.grad` or, where nobody looked at that, of the backward."""
    in_grad = report.in_grad
    found = in_grad[row.name] if in_grad is not None and row.name in in_grad else report[row.name]
    return replace(row, error_bar=None if math.isnan(found.noise) else found.noise, status=str(found.status))


def _unscaled(grad: Magnitudes, scale: float) -> Magnitudes:
    return replace(grad, norm=grad.norm / scale, largest=grad.largest / scale, mean=grad.mean / scale)
