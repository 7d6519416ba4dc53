"""Chooses each parameter's engine: the traced one where it pays and agrees with the plain one, else the plain one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.words import listed


class SelectedEngine:
    """The fastest engine that can be trusted, parameter by parameter.

    What the traced engine gives for a parameter is used only if its values agree with plain ones at a few coordinates,
    which are compared along with the first samples.

    Args:
        plain: the engine to believe.
        fallback: what takes the samples that the traced engine cannot; None for the plain engine.
        trace: records J; None where that is not worth its time.
        noise: what two right ways to evaluate J may differ by, in the unit of J.
        counted: told how many evaluations the traced engine has made.

    Attributes:
        refused: parameter, or None for all of them → why the traced engine was not used.
        traced: how many samples the traced engine has taken.
    """

    def __init__(
        self,
        eager: EagerEngine,
        fallback: Engine | None,
        trace: Callable[[], TracedEngine] | None,
        noise: float,
        counted: Callable[[int], None],
    ) -> None:
        self.eager = eager
        self._fallback: Engine = fallback or eager
        self.refused: dict[int | None, Untraceable] = {}
        self.traced = 0
        self._noise, self._counted = noise, counted
        self._traced = None if trace is None else self._recorded(trace)
        self._at_zero: dict[int, float] = {}  # the traced engine's only of parameters whose values have agreed

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        if self._traced is not None and parameter not in self.refused:
            try:
                samples = self._from_record(self._traced, parameter, coordinates, steps)
            except Untraceable as refusal:
                self.refused[parameter] = refusal
                self._at_zero.pop(parameter, None)
            else:
                self.traced += len(steps)
                self._counted(len(steps))
                return samples
        return self._fallback.sample(parameter, coordinates, steps)

    def gradients(self) -> list[torch.Tensor | None] | None:
        """The gradient that the record of J gives, by parameter, None where J depends on none.

        None for all of it where there is no such gradient, for the reason in `refused`.
        """
        if self._traced is None:
            return None
        try:
            gradients = self._traced.gradients()
        except Untraceable as refusal:
            self.refused[None] = refusal
            return None
        self._counted(1)
        return gradients

    def seconds_each(self, parameter: int) -> float | None:
        """What one coordinate of a parameter takes from the record, an estimate; None where there is no record."""
        return None if self._traced is None else self._traced.seconds_each(parameter)

    def at_zero(self, parameter: int) -> float:
        """J(θ) as the engine of this parameter computes it, with its own roundoff.

        Where that is the traced one, it is known from the first samples on.
        """
        if parameter not in self._at_zero:
            here = self.sample(parameter, np.zeros(1, dtype=np.int64), np.zeros(1))
            self._at_zero[parameter] = float(here.values[0])
        return self._at_zero[parameter]

    def _recorded(self, trace: Callable[[], TracedEngine]) -> TracedEngine | None:
        try:
            return trace()
        except Untraceable as refusal:
            self.refused[None] = refusal
            return None

    def _from_record(self, traced: TracedEngine, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """The traced engine's samples; the first ones of a parameter are compared, and bring J(θ) along."""
        if parameter in self._at_zero:  # then they have been compared
            return traced.sample(parameter, coordinates, steps)
        taken, values = traced.sample_compared(
            parameter, np.append(coordinates, 0), np.append(steps, 0.0), self.eager, self._noise
        )
        self._at_zero[parameter] = float(values[-1])
        return Samples(taken[:-1], values[:-1])


def module_name_of(refusal: Untraceable, model: torch.nn.Module) -> str:
    """The qualified name of the module that a refusal names, "" where it names none of the model's."""
    return next((name for name, module in model.named_modules() if module is refusal.module), "")


def on_engine(engine: SelectedEngine, model: nn.Module, whom: str) -> str:
    """The note on why J had to be evaluated one coordinate at a time, and in which module; "" where it had not."""
    if not engine.refused:
        return ""
    refusal = next(iter(engine.refused.values()))
    where = module_name_of(refusal, model)
    told = (
        f"evaluated one coordinate at a time for {whom}" if whom else "J's slopes verified the gradient on trial itself"
    )
    return f"{told}: {refusal}{f' (in {where})' if where else ''}"


def whom(engine: SelectedEngine, rows: Sequence[ParameterReport]) -> str:
    """The parameters that had to be evaluated one coordinate at a time."""
    if None in engine.refused:
        return "every parameter"
    return listed([rows[position].name for position in engine.refused if position is not None])
