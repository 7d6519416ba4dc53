"""Which names a planted mistake truly spoils: autograd on the mistake and on its twin, without torch_gradcheck."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.planted.row import Planted, Problem


def autograd_gradients(problem: Problem, mode: str) -> dict[str, Tensor]:
    """The gradients on trial, in float64, a missing one as zeros: no part of torch_gradcheck is used."""
    model = problem.model.double().train(mode == "train")
    names, parameters = zip(*model.named_parameters(), strict=True)
    for parameter in parameters:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float64))
    inputs, *targets = map(_double, problem.batch)
    torch.manual_seed(0)
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    problem.loss_fn(output, *targets).backward()
    gradients = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in zip(names, parameters, strict=True)}
    if problem.gradients is not None:
        gradients.update({name: value.double() for name, value in problem.gradients.items()})
    return gradients


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _double(held) for name, held in value.items()}
    return value.double() if value.is_floating_point() else value


def truly_wrong(row: Planted) -> set[str]:
    """The names whose gradient differs between the mistake and its twin by more than 1e-5 of their norms."""
    right = autograd_gradients(row.build(False), row.mode)
    found = autograd_gradients(row.build(True), row.mode)
    return {name for name in right if not _close(found[name], right[name])}


def _close(a: Tensor, b: Tensor) -> bool:
    if not bool(torch.isfinite(a).all()):
        return False
    return bool((a - b).norm() <= 1e-5 * (a.norm() + b.norm()))
