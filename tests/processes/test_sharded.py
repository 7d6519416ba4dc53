"""Sharded models are checked as the plain ones that they are made of: same rows, same verdicts, same culprit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.processes import sharded_models as models
from tests.processes.ranks import Ranks
from torch_gradcheck import InvalidRequestError, Report, blind_spots, check_closure, check_function, check_module

MSE = nn.functional.mse_loss


def told(report: Report) -> list[Any]:
    """What a report says that does not hang on how many ranks have evaluated J."""
    rows = [(row.name, row.status, row.diagnosis and row.diagnosis.kind, row.shape) for row in report]
    return [rows, report.culprit, report.loss]


def checked(way: str, wrong: bool, shares: bool) -> list[Any]:
    model = models.WAYS[way](models.plain(wrong))
    return told(check_module(model, MSE, models.batch(), group=dist.group.WORLD if shares else None))


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("way", models.WAYS)
def test_the_report_is_that_of_the_plain_model(two_ranks: Ranks, way: str, wrong: bool, shares: bool) -> None:
    plain = told(check_module(models.plain(wrong), MSE, models.batch()))
    assert two_ranks.run(checked, way, wrong, shares) == [plain, plain]
    assert (plain[1] == "1.middle") is wrong


class Tied(nn.Module):
    """Two names for one weight, a frozen one, and a buffer that the forward reads."""

    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.free = nn.Parameter(torch.randn(3))
        self.register_buffer("offset", torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x)) + self.offset * self.frozen) * self.free
        return result


def sharded_tied(kind: str) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import distribute_module

    model = Tied()
    if kind == "replicated":
        distribute_module(model, init_device_mesh("cpu", (2,)))  # which unties
        model.second.weight = model.first.weight
        return model
    if kind == "ignored":
        return fully_shard(model, ignored_params={model.free})
    if kind == "hybrid":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard")))
    return fully_shard(model)


def checked_tied(kind: str) -> list[Any]:
    x = models.batch()[0]
    model = sharded_tied(kind)
    report = check_module(model, lambda y: y.square().mean(), x)
    assert [row.aliases for row in report if row.aliases] == [("second.weight",)]
    return told(report)


@pytest.mark.parametrize("kind", ["sharded", "replicated", "ignored", "hybrid"])
def test_tied_frozen_and_uneven_parameters_are_those_of_the_plain_model(two_ranks: Ranks, kind: str) -> None:
    plain = told(check_module(Tied(), lambda y: y.square().mean(), models.batch()[0]))
    assert two_ranks.run(checked_tied, kind) == [plain, plain]


def with_decay(way: str, captured: str) -> list[Any]:
    model = models.WAYS[way](models.plain()) if way else models.plain()
    x, y = models.batch()
    if captured == "after a forward":
        model(x)
    parameters = list(model.parameters())

    def own(parameter: Tensor) -> Tensor:
        local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[operator]
        return local

    def closure() -> Tensor:
        decay = torch.stack([own(each).square().sum() for each in parameters]).sum()
        return MSE(model(x), y) + 0.1 * decay

    try:
        return told(check_closure(model, closure, include="*3.*"))
    except InvalidRequestError as error:
        return [str(error)]


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor_parallel"])
def test_parameters_in_a_list_are_those_of_the_loan(two_ranks: Ranks, way: str) -> None:
    plain = with_decay("", "before")
    assert two_ranks.run(with_decay, way, "before") == [plain, plain]


def test_parameters_that_will_be_let_go_are_refused(two_ranks: Ranks) -> None:
    found = two_ranks.run(with_decay, "fsdp_kept", "after a forward")
    assert found[0] == found[1]
    assert "parameters[" in found[0][0]
    assert "call reshard() before parameters are collected" in found[0][0]


def with_shard() -> str:
    model = models.fsdp(models.plain())
    own = model[0].weight.to_local()  # type: ignore[index,operator,union-attr]
    x, y = models.batch()
    with pytest.raises(InvalidRequestError) as raised:
        check_closure(model, lambda: MSE(model(x), y) + own.square().sum())
    return str(raised.value)


def test_a_shard_in_a_closure_is_refused(two_ranks: Ranks) -> None:
    assert all(told.startswith("own is this rank's shard of a parameter") for told in two_ranks.run(with_shard))


def sharded_inputs() -> list[Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    x, y = (distribute_tensor(each, mesh, [Shard(0)]) for each in models.batch())
    x.requires_grad_()
    report = check_module(models.plain(), MSE, (x, y))
    function = check_function(torch.tanh, (x,))
    return [told(report), told(function), bool(function), type(x).__name__]


def test_sharded_batches_and_arguments_are_gathered(two_ranks: Ranks) -> None:
    x, y = models.batch()
    x.requires_grad_()
    plain = [told(check_module(models.plain(), MSE, (x, y))), told(check_function(torch.tanh, (x,)))]
    assert two_ranks.run(sharded_inputs) == [[*plain, True, "DTensor"]] * 2


def spots(way: str) -> list[tuple[Any, ...]]:
    model = models.WAYS[way](models.plain()) if way else models.plain()
    return [(row.module, row.fault, row.found) for row in blind_spots(model, MSE, models.batch())]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor_parallel"])
def test_blind_spots_are_those_of_the_plain_model(two_ranks: Ranks, way: str) -> None:
    plain = spots("")
    assert two_ranks.run(spots, way) == [plain, plain]


def at_different_steps() -> str:
    model = models.fsdp(models.plain())
    if dist.get_rank() == 0:
        next(model.parameters()).grad = torch.zeros_like(next(model.parameters()))
    with pytest.raises(InvalidRequestError) as raised:
        check_module(model, MSE, models.batch())
    return str(raised.value)


def test_ranks_with_different_tensors_are_told(two_ranks: Ranks) -> None:
    for message in two_ranks.run(at_different_steps):
        assert "the ranks of the model's mesh have called the check with different tensors: as .grad of" in message


def wrapped_in_fsdp1() -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(models.plain(), device_id=torch.device("cpu"))
    with pytest.raises(InvalidRequestError) as raised:
        check_module(model, MSE, models.batch(), group=dist.group.WORLD)
    return str(raised.value)


@pytest.mark.filterwarnings("ignore")
def test_flat_parameters_are_refused(two_ranks: Ranks) -> None:
    for message in two_ranks.run(wrapped_in_fsdp1):
        assert message.startswith("a Sequential is wrapped in FullyShardedDataParallel")
        assert "fully_shard" in message


def wrong_in_tensor_parallel_code() -> list[str]:
    """A forward that counts on the shape of a shard: the exception is the caller's own, with a word on why."""

    class Halves(models.Block):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.down(self.up(x).view(4, 3))
            return result

    model = nn.Sequential(nn.Identity(), Halves(False))
    with pytest.raises(RuntimeError) as raised:
        check_module(models.tensor_parallel(model), lambda y: y.square().mean(), models.batch()[0])
    return getattr(raised.value, "__notes__", [])


def test_code_for_shards_is_told_that_tensors_are_of_full_size(two_ranks: Ranks) -> None:
    for notes in two_ranks.run(wrong_in_tensor_parallel_code):
        assert any("n_heads // ranks" in note for note in notes)


def with_input_function() -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    def spread(module: nn.Module, inputs: Any, mesh: Any) -> Any:
        return DTensor.from_local(inputs[0], mesh, [Replicate()])

    def back(module: nn.Module, output: Any, mesh: Any) -> Any:
        return output.to_local()

    model = distribute_module(models.plain(), init_device_mesh("cpu", (2,)), None, spread, back)
    return list(check_module(model, MSE, models.batch(), include="3.*").notes)


def test_functions_of_the_callers_that_do_not_run_are_told(two_ranks: Ranks) -> None:
    for notes in two_ranks.run(with_input_function):
        assert [note for note in notes if "spread" in note and "distribute_module" in note]
        assert [note for note in notes if "back" in note]
