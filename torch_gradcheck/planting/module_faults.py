"""The faults of one module, planted in its backward one after the other while the model is lent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.unseen import common_value
from torch_gradcheck.planting import faults
from torch_gradcheck.planting.left_out import InputGradients, left_out, neutral_value
from torch_gradcheck.planting.outputs import OutputGradient, Place, tapped
from torch_gradcheck.planting.reasons import Observed, Reasons, too_small
from torch_gradcheck.planting.sensitivity import Change, Gradients, Sensitivity
from torch_gradcheck.planting.spots import BlindSpot
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.torch_internals.modules import forward_of_class


@dataclass(frozen=True)
class _Lost:
    """The entry that is lost of an output's gradient.

    Attributes:
        place: the call, and the tensor in the output.
        entry: its index.
        unit: the unit it belongs to, where that is idle or silent.
    """

    place: Place
    entry: tuple[int, ...]
    unit: int | None


@dataclass(frozen=True)
class OfModule:
    """What became of the faults of one module.

    Attributes:
        rows: one a fault.
        not_planted: those that could not be planted, in words.
    """

    rows: tuple[BlindSpot, ...]
    not_planted: tuple[str, ...]


class ModuleFaults:
    """Plants the faults of a model's modules.

    Args:
        problem: J and θ.
        seen: J and its backward at θ.
        inputs: what enters the gradients of the modules' inputs.
    """

    def __init__(self, problem: Problem, seen: Observed, inputs: InputGradients) -> None:
        self._problem, self._seen, self._inputs = problem, seen, inputs
        self._flows = seen.flows
        self._reasons = Reasons(problem, seen)
        self._sensitivity = Sensitivity(problem, seen.gradients)
        self._positions = positions_of(problem)
        self._not_planted: list[str] = []

    def of_module(self, name: str, told: Collection[int]) -> OfModule:
        """What became of the faults of a module; of its own parameters, those at the positions `told` are told of."""
        self._not_planted = []
        rows = tuple(self._rows(name, told))
        return OfModule(rows, tuple(self._not_planted))

    def _rows(self, name: str, told: Collection[int]) -> Iterator[BlindSpot]:
        """One row a fault of a module."""
        module = self._flows.modules[name]
        if self._has_a_backward(name, module):
            yield from self._of_output(name)
        for own, parameter in module.named_parameters(recurse=False):
            position = self._positions.get(id(parameter))
            if position is not None and position in told:
                yield from self._of_parameter(name, own, position)
            if own in self._inputs.entering.get(name, ()):
                yield from self._of_input(name, own, parameter)

    def _has_a_backward(self, name: str, module: nn.Module) -> bool:
        """Whether the module is called, or nothing of it is used at all, though it could be."""
        if self._flows.of[name].calls:
            return True
        inside = [each for each in self._flows.modules if each.startswith(f"{name}.")]
        used = any(self._flows.of[each].calls for each in inside) or any(
            self._seen.gradients[at].reached
            for parameter in module.parameters()
            if (at := self._positions.get(id(parameter))) is not None
        )
        return forward_of_class(module) is not nn.Module.forward and not used

    # The gradient that arrives for the output ------------------------------------------------------------------------

    def _of_output(self, name: str) -> Iterator[BlindSpot]:
        nothing = self._reasons.of_output(name)
        lost = None if nothing else self._lost(name)
        for words, change in faults.WHOLE.items():
            yield from self._row_of_output(name, f"output gradient {words}", nothing, _everywhere(change))
        if lost is None:
            yield BlindSpot(name, "output gradient, one entry lost", False, nothing)
            return
        at_place = {lost.place: faults.without(lost.entry)}
        fault = f"output gradient, entry{_index(lost.entry)} lost"
        for row in self._row_of_output(name, fault, nothing, at_place.get):
            hidden = not row.found and lost.unit is not None
            yield BlindSpot(name, fault, False, self._why_idle(name, lost)) if hidden else row

    def _why_idle(self, name: str, lost: _Lost) -> str:
        assert lost.unit is not None
        known = self._reasons.of_idle_entry(name, lost.unit)
        return known.removeprefix(": ") or f"no gradient arrives for unit {lost.unit} on the whole batch"

    def _row_of_output(
        self, name: str, fault: str, nothing: str, change_at: Callable[[Place], faults.Change | None]
    ) -> Iterator[BlindSpot]:
        """The row of a fault; none where it could not be planted."""
        if nothing:
            yield BlindSpot(name, fault, False, nothing)
            return

        def tap(_: str, place: Place, tensor: torch.Tensor) -> faults.Change | None:
            change = change_at(place) if tensor.requires_grad else None
            return None if change is None else self._in_the_last_backward(change)

        plant = tapped({name: self._flows.modules[name]}, tap)
        yield from self._row_of(plant, name, fault, self._reasons.of_no_effect)

    def _row_of(
        self, plant: AbstractContextManager[None], name: str, fault: str, why: Callable[[str, Change], str]
    ) -> Iterator[BlindSpot]:
        found = self._planted(plant)
        if found is None:
            self._not_planted.append(f"{fault} of {name or 'the model'}")
            return
        change = self._sensitivity.change(found)
        yield BlindSpot(name, fault, change.is_visible, "" if change.is_visible else why(name, change))

    def _lost(self, name: str) -> _Lost:
        """The entry that is hardest to miss: of an idle unit, else of a silent one, else the largest."""
        flow = self._flows.of[name]
        for place, output in flow.arrived.items():
            silent = self._problem.objective.activity.silent(name)
            units = output.idle or silent.get(output.shape[output.dimension] if output.shape else 0, [])
            if output.largest and units:
                return _Lost(place, _entry_of(output, units[0]), units[0])
        place = max(flow.arrived, key=lambda each: flow.arrived[each].largest)
        return _Lost(place, flow.arrived[place].at_largest, None)

    # The gradient of a parameter -------------------------------------------------------------------------------------

    def _of_parameter(self, name: str, own: str, position: int) -> Iterator[BlindSpot]:
        nothing = self._reasons.of_parameter(position, name)
        entry = self._lost_of_parameter(position)
        for words, change in faults.WHOLE.items():
            yield self._row_of_parameter(name, f"gradient of {own} {words}", nothing, position, change)
        fault = f"gradient of {own}, " + ("one entry lost" if nothing else f"entry{_index(entry)} lost")
        row = self._row_of_parameter(name, fault, nothing, position, faults.without(entry))
        if not nothing and not row.found and self._is_zero_at(position, entry):
            unit = entry[0] if entry else None
            reason = f"its gradient is exactly 0 there{self._reasons.of_idle_entry(name, unit)}"
            row = BlindSpot(name, fault, False, reason)
        yield row

    def _row_of_parameter(self, name: str, fault: str, nothing: str, position: int, change: faults.Change) -> BlindSpot:
        if nothing:
            return BlindSpot(name, fault, False, nothing)
        right = self._seen.gradients[position]
        wrong = change(self._shaped(position)).resolve_conj()
        numbers = torch.view_as_real(wrong) if wrong.is_complex() else wrong
        effect = self._sensitivity.change({position: _with_values(right, numbers)})
        return BlindSpot(name, fault, effect.is_visible, "" if effect.is_visible else too_small(effect))

    def _shaped(self, position: int) -> torch.Tensor:
        """The right gradient of a parameter, in its shape."""
        entry = self._problem.theta[position]
        numbers = torch.from_numpy(self._seen.gradients[position].values.copy())
        if entry.is_complex:
            return torch.view_as_complex(numbers.reshape(*entry.shape, 2))
        return numbers.reshape(entry.shape)

    def _lost_of_parameter(self, position: int) -> tuple[int, ...]:
        """An entry whose gradient is exactly 0, where there is one on trial, else that with the largest."""
        entry, sizes = self._problem.theta[position], self._shaped(position).abs().reshape(-1)
        parts = 2 if entry.is_complex else 1
        on_trial = np.unique(entry.coordinates_on_trial // parts)
        if not len(on_trial):
            return (0,) * len(entry.shape)
        sizes = sizes[torch.from_numpy(on_trial)]
        at = int(on_trial[int(sizes.argmin() if not sizes.min() else sizes.argmax())])
        return entry.locate(at * parts)[0]

    def _is_zero_at(self, position: int, entry: tuple[int, ...]) -> bool:
        return not bool(self._shaped(position)[entry])

    # A parameter left out of the gradient of the input ---------------------------------------------------------------

    def _of_input(self, name: str, own: str, parameter: nn.Parameter) -> Iterator[BlindSpot]:
        fault = f"{own} left out of the gradient of the input"
        nothing = self._reasons.of_output(name)
        value = neutral_value(own)
        if nothing:
            yield BlindSpot(name, fault, False, nothing)
        elif name not in self._inputs.asked:
            yield BlindSpot(name, fault, False, "its input needs no gradient: the backward is never asked for it")
        elif common_value(parameter) == value:
            yield BlindSpot(name, fault, False, f"{own} is exactly {value} in every entry")
        elif own in self._inputs.forgotten[name]:
            yield BlindSpot(name, fault, False, f"its backward leaves {own} out already: see what check_module says")
        else:
            plant = left_out(self._problem.objective, self._flows.modules[name], own)
            yield from self._row_of(plant, name, fault, self._reasons.of_no_input_effect)

    # One backward ----------------------------------------------------------------------------------------------------

    def _planted(self, plant: AbstractContextManager[None]) -> Gradients | None:
        """The gradients of J with a fault; None where J becomes another number, or cannot be computed."""
        objective = self._problem.objective
        values: list[float] = []
        self._is_last_backward = objective.runs_backward

        def compute() -> torch.Tensor:
            J = objective.compute()
            values.append(float(J.detach()))
            self._is_last_backward = True
            return J

        try:
            with plant, torch.enable_grad(), objective.evaluation():
                gradients = theta_gradients(compute, self._problem.theta, epsilon(self._problem.request.dtype))
        except Exception:  # of the user's own module, run a second time beside itself
            return None
        return gradients if objective.same(values[0], objective.loss) else None

    def _in_the_last_backward(self, change: faults.Change) -> faults.Change:
        """The change, made in the backward of J, and in none that J runs itself."""
        return lambda gradient: change(gradient) if self._is_last_backward else gradient


def positions_of(problem: Problem) -> dict[int, int]:
    """The id of every checked parameter → its position in θ."""
    return {id(problem.theta[at].parameter): at for at in problem.theta.checked}


def _with_values(gradient: AnalyticGradient, numbers: torch.Tensor) -> AnalyticGradient:
    return replace(gradient, values=numbers.reshape(-1).numpy())


def _entry_of(output: OutputGradient, unit: int) -> tuple[int, ...]:
    """The first entry of a unit."""
    return tuple(unit if axis == output.dimension else 0 for axis in range(len(output.shape)))


def _everywhere(change: faults.Change) -> Callable[[Place], faults.Change | None]:
    return lambda _: change


def _index(entry: tuple[int, ...]) -> str:
    """An index as it is said of an entry: " [2, 0]", and nothing of the only entry of a 0-dimensional tensor."""
    return f" [{', '.join(map(str, entry))}]" if entry else ""
