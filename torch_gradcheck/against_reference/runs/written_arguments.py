"""Arguments that a reference writes over past autograd, by `.data` or numpy: its gradient is of other numbers then."""

from __future__ import annotations

import torch

from torch_gradcheck.against_reference.runs.computation import Computation, FunctionComputation
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.torch_internals.tensors import version_of


def written_by(computation: Computation, problem: Problem) -> list[str]:
    """The names of the arguments that a reference writes over, and autograd does not know of it; mostly none.

    Asked of functions only that were seen to write to an argument on trial, and get copies: of an in-place operation
    autograd knows, and the version of the copy counts it.

    Args:
        computation: the reference, which `problem` has lent.
        problem: its J.
    """
    if not (isinstance(computation, FunctionComputation) and computation.loss.call.writes):
        return []
    call = computation.loss.call
    with torch.enable_grad(), problem.objective.evaluation(at_theta=True):
        args, kwargs = call.given(objects_of(computation.loss.variables))
        given = [(name + path, each) for name, value in call.named(args, kwargs) for path, each in tensors_in(value)]
        given = [(name, each) for name, each in given if each.layout is torch.strided]
        before = [(each.detach().clone(), version_of(each)) for _, each in given]
        call.called_on(args, kwargs)
        return [
            name
            for (name, each), (values, version) in zip(given, before, strict=True)
            if version_of(each) == version and not _are_equal(each.detach(), values)
        ]


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether they hold the same numbers; NaN, where there was one, equals all."""
    return bool(((one == other) | (other != other)).all())
