"""Why a check would not find a fault: each reason is computed from a run of J, none is guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from torch_gradcheck.gradients.by_autograd import theta_gradients
from torch_gradcheck.gradients.refused_gradients import told
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.unseen import Activity, common_value
from torch_gradcheck.planting.outputs import Flows, Place, tapped
from torch_gradcheck.planting.sensitivity import Change, Gradients
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.autograd import leaf_of, nodes_from
from torch_gradcheck.torch_internals.modules import named_parameters

MOST_ZEROS = 16
"""Parameters of zeros that are moved one by one, to see which of them stops a gradient; all together in any case."""


NO_WAY = "autograd finds no way from there to the loss"

NOTHING_UPSTREAM = "nothing on trial lies upstream of its output"


@dataclass(frozen=True)
class Observed:
    """One evaluation of J with its backward: what flowed through the modules, and the gradients.

    Attributes:
        flows: by name of a module.
        gradients: by position in θ.
    """

    flows: Flows
    gradients: Gradients

    @property
    def reached(self) -> Reached:
        """Where the gradients are not 0."""
        outputs = {name for name, flow in self.flows.of.items() if flow.largest}
        return Reached(outputs, {position for position, each in self.gradients.items() if each.values.any()})


class Reached(NamedTuple):
    """Where an evaluation has gradients that are not exactly 0.

    Attributes:
        outputs: names of modules for whose output one arrives.
        parameters: positions in θ.
    """

    outputs: set[str]
    parameters: set[int]


def observed(problem: Problem) -> Observed:
    """Runs J and its backward at what θ holds now."""
    objective = problem.objective

    def run() -> Observed:
        flows = Flows(problem.model)
        with tapped(flows.modules, flows.tap), torch.enable_grad(), objective.evaluation():
            gradients = theta_gradients(objective.compute, problem.theta, epsilon(problem.request.dtype))
        return Observed(flows, gradients)

    return told(run, problem.model)


class Reasons:
    """Looks for the reason why a fault does not show.

    Args:
        problem: J and θ.
        seen: J at θ.
    """

    def __init__(self, problem: Problem, seen: Observed) -> None:
        self._problem, self._seen = problem, seen
        self._activity: Activity = problem.objective.activity

    def of_output(self, name: str) -> str:
        """Why nothing comes back for the output of a module; "" where something does."""
        flow = self._seen.flows.of[name]
        if not flow.calls:
            return "the module never runs"
        if not flow.differentiable and flow.without_grad:
            return "it runs under no_grad: its output has no gradient"
        if not flow.differentiable:
            return "its output needs no gradient: nothing upstream of it is on trial"
        if not flow.arrived:
            return f"no gradient comes back for its output: {NO_WAY}" if self._is_upstream(name) else NOTHING_UPSTREAM
        if flow.largest:
            return ""
        return self._stopped(
            "the gradient that arrives for its output is exactly 0", lambda other: name in other.outputs
        )

    def of_parameter(self, position: int, owner: str) -> str:
        """Why the gradient of a parameter of module `owner` is 0; "" where it is not."""
        gradient = self._seen.gradients[position]
        if gradient.values.any():
            return ""
        if not gradient.reached:
            runs = self._seen.flows.of[owner].calls
            return f"it has no gradient: {NO_WAY}" if runs else "the module never runs"
        return self._stopped("its gradient is exactly 0", lambda other: position in other.parameters)

    def of_idle_entry(self, name: str, unit: int | None) -> str:
        """What is known of a unit of a module's output for which no gradient arrives, or that is None."""
        rectifier = self._silencing(name, unit)
        return f": unit {unit} of {rectifier or 'the model'} never fires" if rectifier is not None else ""

    def of_no_effect(self, name: str, change: Change) -> str:
        """Why a gradient that arrives at the output of a module changes no gradient on trial enough to be seen."""
        if change.largest:
            return too_small(change)
        if not self._is_upstream(name):  # but an input that requires a gradient is
            return NOTHING_UPSTREAM
        if self._is_all_silent(name):
            return "none of its units ever fires"
        reached = self._seen.reached.parameters
        return self._stopped(
            "it changes no gradient on trial: what it passes on is multiplied by 0",
            lambda other: bool(other.parameters - reached),
        )

    def of_no_input_effect(self, _: str, change: Change) -> str:
        """Why another gradient of a module's input changes no gradient on trial enough to be seen."""
        if change.largest:
            return too_small(change)
        return self._stopped(
            "no gradient on trial changes with the gradient of its input",
            lambda other: bool(other.parameters - self._seen.reached.parameters),
        )

    def _stopped(self, what: str, comes_back: Callable[[Reached], bool]) -> str:
        """The sentence `what`, and the parameters of zeros that are the cause: moved, they let the gradient through."""
        alone = [name for name, other in self._with_zeros_moved if comes_back(other)]
        if alone:
            return f"{what}, since {listed(alone)} is exactly 0" if len(alone) == 1 else self._several(what, alone)
        together = self._with_all_zeros_moved
        if together is not None and comes_back(together):
            return self._several(what, self._zeros)
        return what

    def _several(self, what: str, names: Sequence[str]) -> str:
        return f"{what}, since {listed(names)} are exactly 0"

    def _silencing(self, name: str, unit: int | None) -> str | None:
        """The module that never lets unit `unit` of the output of module `name` through: itself, or the next one."""
        for rectifier in (name, self._next.get(name)):
            if rectifier is not None and any(unit in silent for silent in self._activity.silent(rectifier).values()):
                return rectifier
        return None

    def _is_all_silent(self, name: str) -> bool:
        return any(len(silent) == units for units, silent in self._activity.silent(name).items())

    @cached_property
    def _next(self) -> dict[str, str]:
        """Name of a module → the one with units whose input its output is, in the last call of either."""
        made: dict[int, tuple[str, torch.Tensor]] = {}
        found: dict[str, str] = {}

        def tap(name: str, _: Place, tensor: torch.Tensor) -> None:
            made[id(tensor)] = name, tensor

        def look(name: str) -> Callable[..., None]:
            def before(_: torch.nn.Module, args: tuple[object, ...]) -> None:
                for argument in args:
                    if id(argument) in made:
                        found[made[id(argument)][0]] = name

            return before

        modules = self._seen.flows.modules
        silent = [name for name in modules if self._activity.silent(name)]
        handles = [modules[name].register_forward_pre_hook(look(name)) for name in silent]
        try:
            with tapped({name: each for name, each in modules.items() if not list(each.children())}, tap):
                self._problem.objective()
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _is_upstream(self, name: str) -> bool:
        """Whether a parameter on trial lies upstream of the output of a module; True where it never has a graph.

        A checkpoint calls it without one, and with one in the backward.
        """
        nodes = []

        def tap(_: str, __: Place, tensor: torch.Tensor) -> None:
            nodes.extend([] if tensor.grad_fn is None else [tensor.grad_fn])

        theta, objective = self._problem.theta, self._problem.objective
        on_trial = {id(theta[position].parameter) for position in theta.checked}
        with tapped({name: self._seen.flows.modules[name]}, tap), torch.enable_grad(), objective.evaluation():
            objective.compute()
            return not nodes or any(id(leaf_of(node)) in on_trial for node in nodes_from(nodes))

    # Parameters of zeros, moved ---------------------------------------------------------------------------------------

    @cached_property
    def _zeros(self) -> list[str]:
        return [name for name, each in named_parameters(self._problem.model) if common_value(each) == 0]

    @cached_property
    def _with_zeros_moved(self) -> list[tuple[str, Reached]]:
        return [(name, self._reached_with([name])) for name in self._zeros[:MOST_ZEROS]]

    @cached_property
    def _with_all_zeros_moved(self) -> Reached | None:
        return self._reached_with(self._zeros) if len(self._zeros) > 1 else None

    def _reached_with(self, names: Sequence[str]) -> Reached:
        named = dict(named_parameters(self._problem.model))
        parameters = [named[name] for name in names]
        with _moved(parameters):
            return observed(self._problem).reached


@contextmanager
def _moved(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Has parameters hold random numbers between ½ and 1½ inside the block, and what they held after it."""
    generator = torch.Generator("cpu").manual_seed(0)
    before = [parameter.data.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            numbers = real_view(parameter.data)
            numbers.copy_(torch.rand(numbers.shape, generator=generator, dtype=torch.float64) + 0.5)
        yield
    finally:
        for parameter, zeros in zip(parameters, before, strict=True):
            parameter.data.copy_(zeros)


def too_small(change: Change) -> str:
    """The reason why a change is not seen: its size beside what differences resolve, or the tolerance."""
    if change.largest <= change.error_bar:
        return (
            f"it changes no gradient by more than {change.largest:.0e}; "
            f"differences of J resolve {change.error_bar:.0e} there"
        )
    return f"it changes no gradient by more than the tolerance allows; at most by {change.largest:.0e}"
