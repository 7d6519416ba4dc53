"""What is on trial of a model and its loss: θ and the variables of J, as far as the request selects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.reads import read_by
from torch_gradcheck.objective.second_order import Slope
from torch_gradcheck.objective.theta import Theta, check_selection, matches, theta_of
from torch_gradcheck.objective.variables import Variable, objects_of
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Request


def variables_on_trial(loss: Loss, request: Request) -> list[Variable]:
    """The variables of J whose gradients are on trial, as far as the patterns select them.

    Gradients derived by hand are those of parameters: a variable is on trial where they name it, or `include` does.
    """
    given = request.gradients
    if not isinstance(given, Mapping):
        return list(loss.variables)
    return [each for each in loss.variables if set(each.names) & set(given) or matches(each.names, request.include)]


def not_selected(model: nn.Module, loss: Loss, request: Request) -> list[torch.Tensor]:
    """The parameters and variables that the patterns leave out."""
    selected = {id(each) for each, _ in check_selection(model, request.include, request.exclude, loss.variables)}
    return [each for each in [*model.parameters(), *objects_of(loss.variables)] if id(each) not in selected]


def theta_on_trial(model: nn.Module, loss: Loss, request: Request, evaluated: Callable[[], Objective]) -> Theta:
    """The parameters of the model, and the variables: of those that a closure captures the ones that it reads.

    Args:
        model: the borrowed model.
        loss: the user's loss over it.
        request: the options.
        evaluated: gives the user's loss as it is evaluated; only asked for to see what a closure reads.

    Raises:
        InvalidRequestError: nothing is left to check.
    """
    variables = variables_on_trial(loss, request)
    theta = theta_of(model, request.include, request.exclude, variables)
    captured = [each for each in variables if each.role is Role.CAPTURED]
    read = {id(each.tensor) for each in read_by(evaluated(), captured)} if captured else set()
    theta = theta.without([each for each in captured if id(each.tensor) not in read])
    if not theta.checked:
        raise InvalidRequestError(
            f"the closure does not read {listed([each.name for each in captured])}, and nothing else that is "
            "selected requires a gradient: there is no gradient to check."
        )
    return theta


def slope_on_trial(model: nn.Module, loss: Loss, request: Request) -> Slope:
    """J of a check of second order: the slope ⟨v, ∇J⟩ of the user's loss along all that may be on trial."""
    # θ itself is known once J has been evaluated: captured tensors belong to it that J reads.
    asked = theta_of(model, request.include, request.exclude, variables_on_trial(loss, request))
    parameters = [entry.parameter for entry in asked if entry.checked]
    return Slope(loss.at(request.dtype), parameters, request.seed, loss.given)
