"""DTensors and FSDP2, and why a check needs their insides: to have a parameter's object stand for all its numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.zoo.kernels import skip_without_fsdp2
from torch_gradcheck.torch_internals.parallel_wrappers import (
    full_precision_of,
    functions_behind,
    is_ddp,
    is_of_sharding,
    is_partitioned_elsewhere,
    passed_on,
    sharding_methods,
)
from torch_gradcheck.torch_internals.sharded import (
    data_parallel_groups,
    full_tensor,
    fully_sharded,
    is_about_ranks,
    is_sharded,
    layout_of,
    local_tensor,
    mesh_groups,
    mixed_precision,
    process_groups_exist,
    shards_of,
    stand_for,
)


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    """A process group of this process alone."""
    assert not process_groups_exist()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def a_sharded_model() -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fully_shard(nn.Linear(3, 2), reshard_after_forward=False, mp_policy=policy)


def test_an_object_stands_for_all_its_numbers_and_for_its_shards_again() -> None:
    weight = a_sharded_model().weight
    before, local = type(weight), local_tensor(weight)
    plain = full_tensor(weight).double().requires_grad_()
    assert is_sharded(weight)
    assert not is_sharded(plain)
    back = stand_for(weight, plain)
    assert isinstance(weight, nn.Parameter)
    assert not is_sharded(weight)
    (2 * weight.full_tensor()).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype is torch.float64
    assert type(weight.grad) is type(weight * 1) is Tensor
    assert torch.equal(copy.deepcopy(weight), weight)
    back()
    assert type(weight) is before
    assert weight.grad is None
    assert local_tensor(weight) is local


def test_a_layout_says_how_a_tensor_lies_on_its_mesh() -> None:
    weight = a_sharded_model().weight
    assert layout_of(weight).startswith("(2, 3) torch.float32 DeviceMesh")
    assert [group.size() for group in mesh_groups(weight)] == [1]
    (only,) = shards_of(weight)
    assert only == (0, (0, 0), (2, 3))


def test_shards_of_other_ranks_are_asked_for_as_torch_2_6_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a mesh, and asks it where the present rank is: another one's mesh is made up."""
    from torch.distributed.tensor import Shard, _utils

    def rows(shape: torch.Size, mesh: Any, placements: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        (there,), (placement,) = mesh.get_coordinate(), placements
        assert mesh.ndim == 1
        assert placement == Shard(0)
        height = shape[0] // mesh.size(mesh_dim=0)
        return (height, *shape[1:]), (there * height, 0)

    monkeypatch.delattr(_utils, "_compute_local_shape_and_global_offset", raising=False)
    monkeypatch.setattr(_utils, "compute_local_shape_and_global_offset", rows)
    mesh = SimpleNamespace(mesh=torch.tensor([5, 7]))
    sharded: Any = SimpleNamespace(shape=torch.Size([4, 3]), device_mesh=mesh, placements=(Shard(0),))
    assert shards_of(sharded) == [(5, (0, 0), (2, 3)), (7, (2, 0), (2, 3))]


def test_parameters_of_fsdp_are_known_whether_they_are_sharded_now_or_not() -> None:
    skip_without_fsdp2()
    model = a_sharded_model()
    sharded = list(model.parameters())
    assert [each.is_registered for each in fully_sharded([model])] == [True, True]
    model(torch.ones(1, 3))
    found = fully_sharded([model])
    assert [each.is_registered for each in found] == [False, False]
    assert [each.sharded for each in found] == sharded
    unsharded = [model.weight, model.bias]
    backs = [each.register() for each in found]
    assert [model.weight, model.bias] == sharded
    for back in backs:
        back()
    assert [model.weight, model.bias] == unsharded == [each for all_of in found for each in all_of.registered]


def test_the_precision_and_the_ranks_of_fsdp_are_known() -> None:
    model = a_sharded_model()
    assert set(mixed_precision(model).values()) == {(torch.bfloat16, torch.float32)}
    assert [group.size() for group in data_parallel_groups(model)] == [1]
    assert data_parallel_groups(nn.Linear(1, 1)) == []


def test_hooks_of_sharding_are_told_from_the_callers() -> None:
    model = a_sharded_model()
    own = nn.Module.register_forward_hook(model, lambda *_: None)
    hooks = [*model._forward_pre_hooks.values(), *model._forward_hooks.values()]
    assert [is_of_sharding(hook) for hook in hooks] == [True, True, False]
    own.remove()
    from torch.distributed._composable.checkpoint_activation import checkpoint

    checkpointed = checkpoint(nn.Linear(1, 1))
    assert checkpointed._forward_pre_hooks
    assert not any(map(is_of_sharding, checkpointed._forward_pre_hooks.values()))
    assert is_about_ranks(model.weight.device_mesh)
    assert not is_about_ranks(model)


@pytest.mark.filterwarnings("ignore:DTensor random operators may not")  # torch 2.6, of every mesh of CPUs
def test_a_function_given_to_distribute_module_is_found_behind_the_hook() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module

    def spread(module: nn.Module, inputs: object, mesh: object) -> object:
        return inputs

    model = distribute_module(nn.Linear(1, 1), init_device_mesh("cpu", (1,)), None, spread)
    (hook,) = model._forward_pre_hooks.values()
    assert is_of_sharding(hook)
    assert functions_behind(hook) == [spread]


def test_methods_that_shard_are_known_and_do_nothing_in_their_stand_ins() -> None:
    model = a_sharded_model()
    asleep = sharding_methods(model)
    assert {"unshard", "reshard", "set_requires_gradient_sync"} <= asleep.keys()
    asleep["unshard"](async_op=True).wait()
    assert is_sharded(model.weight)
    assert sharding_methods(nn.Linear(1, 1)) == {}


def test_a_data_parallel_model_is_passed_by() -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
    assert is_ddp(model)
    x = torch.ones(1, 1)
    assert torch.equal(passed_on(model)(x), model.module(x))


def test_a_parameter_in_a_lower_precision_for_a_while_has_its_own_beside_it() -> None:
    """As `DistributedDataParallel(mixed_precision=...)`, which needs a GPU to run, keeps them."""
    parameter = nn.Parameter(torch.ones(2).bfloat16())
    assert full_precision_of(parameter) is None
    parameter._fp_param, parameter._mp_param = torch.full((2,), 1.001), parameter.data  # type: ignore[attr-defined]
    full = full_precision_of(parameter)
    assert full is not None
    assert full.requires_grad
    assert torch.equal(full, torch.full((2,), 1.001))


def test_an_empty_parameter_of_deepspeed_is_known() -> None:
    parameter = nn.Parameter(torch.empty(0))
    assert not is_partitioned_elsewhere(parameter)
    parameter.ds_id = 3  # type: ignore[attr-defined]
    assert is_partitioned_elsewhere(parameter)
