"""Every way into a check, shared by two ranks: both have the report of one process, right or wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes.ranks import Ranks
from torch_gradcheck import Report, check_closure, check_function, check_module
from torch_gradcheck.engines import shared
from torch_gradcheck.objective.objective import Objective

Group = Any


class Half(torch.autograd.Function):
    """x², whose gradient of all but one entry in four is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wrong = torch.ones_like(x)
        wrong[..., ::4] = 1.5
        return 2 * x * gradient * wrong


class HalfSecond(torch.autograd.Function):
    """x³, whose double backward is half of what it should be."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = Slope.apply(x, gradient)
        return result


class Slope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(x, gradient)
        return 3 * x**2 * gradient

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor]:
        x, gradient = ctx.saved_tensors
        return 3 * x * gradient * outer, 3 * x**2 * outer


class Powers(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x * x if self.function is None else self.function(x)


def network(wrong: bool, function: Callable[[Tensor], Tensor] = Half.apply) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), Powers(function if wrong else None), nn.Linear(8, 3))


class Reading(nn.Module):
    """A network that reads numbers back, so that J cannot be recorded."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.inner = network(wrong)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * float(y.detach().sum().sign().tolist() ** 2)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 5, generator=generator).to(dtype), torch.randn(4, 3, generator=generator).to(dtype)


mse = nn.functional.mse_loss


def of_module(wrong: bool, group: Group, **options: Any) -> Report:
    return check_module(network(wrong), mse, batch(), group=group, **options)


def of_closure(wrong: bool, group: Group) -> Report:
    model, (x, y) = network(wrong), batch()
    return check_closure(
        model, lambda: mse(model(x), y) + 0.1 * sum(p.square().sum() for p in model.parameters()), group=group
    )


def of_function(wrong: bool, group: Group) -> Report:
    return check_function(Half.apply if wrong else torch.square, (batch()[0],), group=group)


def doubled_in_place(x: Tensor) -> Tensor:
    return x.mul_(2) * x


def wrongly_doubled_in_place(x: Tensor) -> Tensor:
    result: Tensor = Half.apply(x.mul_(2))
    return result


def of_writing_function(wrong: bool, group: Group) -> Report:
    return check_function(wrongly_doubled_in_place if wrong else doubled_in_place, (batch()[0],), group=group)


def of_second_order(wrong: bool, group: Group) -> Report:
    model = network(wrong, HalfSecond.apply)
    return check_module(model, mse, batch(), order=2, group=group)


def beside_reference(wrong: bool, group: Group) -> Report:
    return check_module(network(wrong), mse, batch(), reference=network(False), group=group)


def of_function_beside_reference(wrong: bool, group: Group) -> Report:
    function = Half.apply if wrong else torch.square
    return check_function(function, (batch(torch.bfloat16)[0],), reference=lambda x: x * x, group=group)


def by_hand(wrong: bool, group: Group) -> Report:
    model = network(False)
    mse(model(batch()[0]), batch()[1]).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    if wrong:
        gradients["0.bias"] = gradients["0.bias"] * 2  # type: ignore[operator]
    model.zero_grad()
    return check_module(model, mse, batch(), gradients=gradients, tolerance=1e-4, group=group)


class Straight(nn.Module):
    """Rounds straight through."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.round() - x).detach()


def holding(wrong: bool, group: Group) -> Report:
    model = network(wrong)
    model.append(Straight())
    return check_module(model, mse, batch(), hold_detached=True, group=group)


def of_wide(wrong: bool, group: Group) -> Report:
    """One wrong entry in a tensor that is too large to be tried whole, and J that cannot be recorded."""
    torch.manual_seed(0)
    model = Reading(False)
    model.inner[0] = nn.Linear(5, 8 * 40)
    model.inner[3] = nn.Linear(8 * 40, 3)
    loss = mse(model(batch()[0]), batch()[1])
    first = list(model.inner[0].parameters())
    found = dict(zip(["inner.0.weight", "inner.0.bias"], torch.autograd.grad(loss, first), strict=True))
    if wrong:
        found["inner.0.weight"] = found["inner.0.weight"].clone()
        found["inner.0.weight"][17, 3] += 0.5
    return check_module(
        model, mse, batch(), gradients=found, method="projected", tolerance=1e-4, group=group, include="inner.0.*"
    )


PATHS: dict[str, Callable[[bool, Group], Report]] = {
    "projected": lambda wrong, group: of_module(wrong, group, method="projected"),
    "unrecorded": lambda wrong, group: check_module(Reading(wrong), mse, batch(), method="projected", group=group),
    "one entry": of_wide,
    "elsewhere": lambda wrong, group: of_module(wrong, group, perturb=0.1, include=["*.weight"], exclude="3.*"),
    "float32": lambda wrong, group: of_module(wrong, group, dtype=torch.float32),
    "by hand": by_hand,
    "closure": of_closure,
    "function": of_function,
    "writing function": of_writing_function,
    "second order": of_second_order,
    "held": holding,
    "reference": beside_reference,
    "function beside reference": of_function_beside_reference,
}


class Outcome(NamedTuple):
    """What a rank has of a check: the report, how often J was evaluated on it, and the state of the generators."""

    report: Report
    evaluations: int
    random: bytes


def on_rank(path: str, wrong: bool) -> Outcome:
    made, begin = list[Objective](), Objective.__init__

    def noted(self: Objective, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)

    Objective.__init__ = noted  # type: ignore[method-assign]
    try:
        torch.manual_seed(5)
        with patch.object(shared, "WORTHWHILE", 0.0):  # else what is split hangs on how long J takes here
            report = PATHS[path](wrong, dist.group.WORLD if dist.is_initialized() else None)
    finally:
        Objective.__init__ = begin  # type: ignore[method-assign]
    own = sum(each.evaluations for each in made)
    return Outcome(report, own, torch.get_rng_state().numpy().tobytes())


def in_words(report: Report) -> list[object]:
    """What a report says, without its numbers."""
    rows = [(row.name, row.status, row.diagnosis and row.diagnosis.kind, row.mismatched) for row in report]
    notes = [re.sub(r"[0-9][0-9.,e×+-]*", "#", note) for note in report.notes]
    contract = [(entry.name, entry.status) for entry in report.contract]
    return [rows, report.culprit, notes, contract, report.method, report.passed]


SHARED = ("projected", "unrecorded", "one entry")
"""The paths on which nearly all evaluations are those of J itself, so that each rank takes about half."""


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("path", PATHS)
def test_both_ranks_have_the_report_of_one_process(two_ranks: Ranks, path: str, wrong: bool) -> None:
    alone = on_rank(path, wrong)
    one, other = two_ranks.run(on_rank, path, wrong)
    assert str(one.report) == str(other.report)
    assert one.report.to_json() == other.report.to_json()
    assert one.report.passed is not wrong
    assert in_words(one.report) == in_words(alone.report)
    assert one.random == other.random == alone.random
    if path in SHARED:
        assert 0.4 < other.evaluations / one.report.evaluations < 0.6
