"""Refuses a check of second order where a backward that J runs cannot be differentiated, and says whose it is."""

from __future__ import annotations

import torch

from torch_gradcheck.diagnosis.culprit.sentences import at_backward_of, described_place, function_name
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.by_compiled_code import Backward
from torch_gradcheck.gradients.double_backward import DoubleBackwardRecord
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.torch_internals.double_backward import operation_without_formula


def double_backward_of(problem: Problem) -> Backward:
    """The backward of a slope, which is a double backward; takes one evaluation more than that.

    Raises:
        InvalidRequestError: a Function is marked `once_differentiable`, or an operation of torch's has no derivative of
            its backward.
    """
    objective = problem.objective
    with DoubleBackwardRecord(objective.model) as record, torch.enable_grad(), objective.evaluation(at_theta=True):
        objective.compute()
    marked = record.once_differentiable()
    if marked is not None:
        raise InvalidRequestError(_on_marked(problem, marked))
    try:
        return problem.backward
    except RuntimeError as error:
        operation = operation_without_formula(error)
        if operation is None:
            raise
        raise InvalidRequestError(_without_formula(problem, record.runs(operation), operation)) from error


def _on_marked(problem: Problem, found: Place) -> str:
    assert found.function is not None
    return (
        f"order=2: {function_name(found.function)} in {described_place(problem.objective, found)} is marked "
        f"@once_differentiable{at_backward_of(found.function)}: there is no double backward to check, and autograd "
        "raises or takes its gradient for a constant. Make its backward of differentiable operations and take the mark "
        "away, or check with order=1."
    )


def _without_formula(problem: Problem, found: Place | None, operation: str) -> str:
    instead = (
        "with torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the check attention is computed by operations "
        "that have one"
        if "attention" in operation
        else "compute it by operations that have one"
    )
    where = "" if found is None else f" in {described_place(problem.objective, found)} ({found.node})"
    return (
        f"order=2: torch has no derivative of {operation}, which runs backward{where}: training with a double backward "
        f"through it fails as well. Instead {instead}; or check with order=1."
    )
