"""The culprit of a check of second order that is no autograd.Function: the node whose gradients move otherwise."""

from __future__ import annotations

from dataclasses import replace

import torch

from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.diagnosis.culprit.gradient_nodes import first_wrong_node
from torch_gradcheck.diagnosis.culprit.sentences import (
    at_backward_of,
    described_place,
    function_name,
    place_of_backward,
)
from torch_gradcheck.diagnosis.culprit.tangents import WrongCoordinate
from torch_gradcheck.gradients.backward_record import BackwardRecord, start_of_difference
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.second_order import Slope
from torch_gradcheck.precision.dtypes import epsilon

BESIDE_ROUNDING = 1e-6
"""Gradients as far apart as this share of their norm differ by more than rounding."""

ERROR_BARS_OFF = 3.0
"""J contradicts its gradient where that is off by more than 3 error bars."""


def named_by_node(problem: Problem, found: Culprit, wrong: WrongCoordinate) -> Culprit:
    """The culprit by the first node that goes wrong; `found`, by the calls of J, where no node can be told.

    The calls of J are those of modules and Functions. What goes wrong when their backward is differentiated happens
    between them, as a value that a forward has detached, or a formula of torch's own.
    """
    place = first_wrong_node(problem.objective, wrong)
    if place is None:
        return found
    where, cost = described_place(problem.objective, place), found.notes[-1]
    sentence = f"the mistake is in the double backward of {where}: {_what(place)}; found by following {wrong.name}"
    return replace(found, name=_culprit(problem.objective, place), notes=(sentence, cost), place=_in_code(place))


def _culprit(objective: Objective, place: Place) -> str:
    return objective.words.culprit if place.module is None else place.module


def _in_code(place: Place) -> str:
    return "" if place.function is None else place_of_backward(place.function)


def _what(place: Place) -> str:
    moves = "has another derivative than autograd gives it"
    if place.function is not None:
        return f"the gradient of {function_name(place.function)}{at_backward_of(place.function)} {moves}"
    return (
        f"the gradient of {place.node} {moves}. As a rule, something that it uses is cut from the graph, by detach(), "
        ".data or no_grad"
    )


def before_the_double_backward(problem: Problem, slope: Slope) -> Culprit | None:
    """What is wrong before a double backward comes into it; None where nothing is seen.

    Either the backward gives another gradient where it makes a graph, or J itself contradicts it along v.
    """
    if problem.objective.with_graph is not None:
        return _by_graph(problem.objective)
    sentence = "" if problem.objective.held is not None else _on_first_order(problem, slope)
    return Culprit(None, (sentence,)) if sentence else None


def _by_graph(objective: Objective) -> Culprit:
    """The node at which the backwards without a graph and with one part."""
    records = [BackwardRecord(objective.model), BackwardRecord(objective.model)]
    for record, with_graph in zip(records, (False, True), strict=True):
        with torch.set_grad_enabled(with_graph), objective.evaluation(at_theta=True), record:
            objective.compute()
    event = start_of_difference(records[0], records[1], BESIDE_ROUNDING)
    told = "the backward gives another first-order gradient with create_graph=True than without"
    if event is None:
        return Culprit(None, (f"{told}; where it starts cannot be told",))
    place = records[0].place(event.node)
    where = described_place(objective, place)
    function = place.function
    of = place.node if function is None else f"{function_name(function)}{at_backward_of(function)}"
    sentence = f"{told}: it starts at {of}, in {where}"
    return Culprit(_culprit(objective, place), (sentence,), place=_in_code(place))


def _on_first_order(problem: Problem, slope: Slope) -> str:
    """The sentence on a first-order gradient that J contradicts along v; "" where it does not."""
    objective = problem.objective
    eps = epsilon(objective.dtype)
    step = float(eps ** (1 / 3))
    near, far = [_difference(objective, slope, distance) for distance in (step, 2 * step)]
    error_bar = abs(near - far) + eps * abs(float(slope.loss)) / step
    allowed = ERROR_BARS_OFF * error_bar + problem.request.tolerance * (abs(near) + abs(objective.loss))
    if abs(near - objective.loss) <= allowed:
        return ""
    return (
        f"the first-order gradient is wrong already: along v the loss itself has the slope {near:.8g}, and ⟨v, ∇J⟩ is "
        f"{objective.loss:.8g}. Begin with a check of order=1"
    )


def _difference(objective: Objective, slope: Slope, distance: float) -> float:
    """The centered difference of the loss along v."""
    ahead, back = [_loss(objective, slope, sign * distance) for sign in (1.0, -1.0)]
    return (ahead - back) / (2 * distance)


def _loss(objective: Objective, slope: Slope, distance: float) -> float:
    with slope.along.at(distance), torch.enable_grad(), objective.regime():
        return float(slope.value().detach())
