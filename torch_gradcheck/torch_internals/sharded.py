"""Tensors that are sharded over ranks: DTensors, the parameters of FSDP2, and plain tensors put in their place."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from torch_gradcheck.torch_internals.missing import internal
from torch_gradcheck.torch_internals.tensors import storage_key, swap

_PURPOSE = "know the parameters of FSDP2"


def process_groups_exist() -> bool:
    """Whether this process has joined others: without that nothing is sharded."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_about_ranks(value: object) -> bool:
    """Whether torch keeps in an object what it knows of ranks, meshes and shards, which no evaluation of J changes."""
    return str(type(value).__module__).startswith("torch.distributed.") and not isinstance(value, nn.Module)


def is_sharded(x: object) -> bool:
    """Whether a tensor is a DTensor: on a mesh of ranks, each of which holds a shard, or all of it."""
    return is_sharded_type(type(x))


def is_sharded_type(kind: type) -> bool:
    """Whether the tensors of a class are DTensors."""
    tensors = sys.modules.get("torch.distributed.tensor")  # without it there are none
    return tensors is not None and issubclass(kind, tensors.DTensor)


def full_tensor(x: torch.Tensor) -> torch.Tensor:
    """All the numbers of a DTensor in a plain tensor of its own, on every rank of its mesh, which all have to ask."""
    with torch.inference_mode(False), torch.no_grad():
        there = x.detach()
        mesh = there.device_mesh  # type: ignore[attr-defined]
        if there.device.type != mesh.device_type:  # offloaded to the CPU: the mesh talks on its own device
            there = there.to(mesh.device_type)
        full: torch.Tensor = there.full_tensor()  # type: ignore[attr-defined]
        is_of_shard = storage_key(full) == storage_key(local_tensor(there))
        return full.to(x.device, copy=is_of_shard)


def local_tensor(x: torch.Tensor) -> torch.Tensor:
    """The shard of a DTensor on this rank, on the very memory."""
    return internal(x, "_local_tensor", "know the memory of a shard")  # type: ignore[no-any-return]


def mesh_groups(x: torch.Tensor) -> list[Any]:
    """The process groups of a DTensor's mesh, one for each dimension."""
    return list(x.device_mesh.get_all_groups())  # type: ignore[attr-defined]


def layout_of(x: torch.Tensor) -> str:
    """How a DTensor lies on its mesh, equal on all ranks: shape, dtype, mesh and placements."""
    return f"{tuple(x.shape)} {x.dtype} {x.device_mesh} {x.placements}"  # type: ignore[attr-defined]


class Shard(NamedTuple):
    """The part of a DTensor that one rank holds.

    Attributes:
        rank: the global rank.
        offset: index of its first entry in the full tensor.
        shape: how far it goes from there.
    """

    rank: int
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def shards_of(x: torch.Tensor) -> list[Shard]:
    """The parts of a DTensor that each rank of its mesh holds, without asking them."""
    mesh = x.device_mesh  # type: ignore[attr-defined]
    found = []
    for place in itertools.product(*map(range, mesh.mesh.shape)):
        shape, offset = _extent(x, place)
        found.append(Shard(int(mesh.mesh[place]), tuple(offset), tuple(shape)))
    return found


def _extent(x: torch.Tensor, place: tuple[int, ...]) -> tuple[Sequence[int], Sequence[int]]:
    """Shape and offset of the part that a place on the mesh holds; torch 2.6 takes a mesh that knows its own place."""
    from torch.distributed.tensor import _utils

    mesh, placements = x.device_mesh, x.placements  # type: ignore[attr-defined]
    if (extent := getattr(_utils, "_compute_local_shape_and_global_offset", None)) is not None:
        return extent(x.shape, mesh.mesh.shape, list(place), placements)  # type: ignore[no-any-return]
    extent = internal(_utils, "compute_local_shape_and_global_offset", "know which rank holds which entries")
    there = _MeshSeenFrom(mesh.mesh.shape, list(place))
    return extent(x.shape, there, placements)  # type: ignore[no-any-return]


class _MeshSeenFrom(NamedTuple):
    """A mesh as a rank at another place sees it: all that torch 2.6 asks of one.

    Attributes:
        shape: that of the mesh.
        place: of the rank.
    """

    shape: tuple[int, ...]
    place: list[int]

    @property
    def ndim(self) -> int:
        """How many dimensions the mesh has."""
        return len(self.shape)

    def get_coordinate(self) -> list[int]:
        """The place of the rank."""
        return self.place

    def size(self, mesh_dim: int) -> int:
        """How many ranks lie along a dimension."""
        return self.shape[mesh_dim]


class Gathered(torch.Tensor):
    """What the object of a DTensor is while it stands for a plain tensor with all its numbers.

    Whoever holds the object (a module, an optimizer, a list) computes with these; code that asks for a shard of it, as
    a weight decay summed over shards does, gets all of it. It has the slots of a DTensor, so that Python lets an object
    go from one class to the other and back.
    """

    __slots__ = ["_local_tensor", "_spec"]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def full_tensor(self, **_: object) -> torch.Tensor:
        """All the numbers: the tensor itself."""
        return self.view_as(self)

    def to_local(self, **_: object) -> torch.Tensor:
        """The same, since this rank has all."""
        return self.view_as(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copied: nn.Parameter = memo.setdefault(id(self), nn.Parameter(self.detach().clone(), self.requires_grad))
        return copied


def stand_for(x: torch.Tensor, plain: torch.Tensor) -> Callable[[], None]:
    """Has the object of a DTensor stand for a plain tensor; returns what has it stand for its shards again."""
    kind = type(x)
    x.__class__ = Gathered
    try:
        swap(x, plain)
    except BaseException:
        x.__class__ = kind
        raise

    def back() -> None:
        swap(x, plain)
        x.__class__ = kind

    return back


class FullyShardedParameter(NamedTuple):
    """A parameter of a module that `fully_shard` was applied to.

    Attributes:
        sharded: the Parameter that optimizers know, and that keeps `.grad`.
        places: the modules and names that it has been registered under.
        is_registered: whether it is there now; after `unshard()` another one with all the numbers is.
    """

    sharded: nn.Parameter
    places: tuple[tuple[nn.Module, str], ...]
    is_registered: bool

    @property
    def registered(self) -> list[torch.Tensor]:
        """What modules hold in these places now."""
        return [held for module, name in self.places if (held := module._parameters[name]) is not None]

    def register(self) -> Callable[[], None]:
        """Has modules hold the sharded parameter; returns what has them hold again what they do now."""
        before = [(module._parameters, name, module._parameters[name]) for module, name in self.places]
        for held, name, _ in before:
            held[name] = self.sharded

        def back() -> None:
            for held, name, parameter in before:
                held[name] = parameter

        return back


def fully_sharded(modules: Sequence[nn.Module]) -> list[FullyShardedParameter]:
    """The distinct parameters of FSDP2 of those modules that `fully_shard` was applied to."""
    return [_of_fsdp(each) for group in _parameter_groups(modules) for each in group.fsdp_params]


def _of_fsdp(each: Any) -> FullyShardedParameter:
    at = internal(each, "_module_info", _PURPOSE)
    places = [(at.module, at.param_name), *zip(at.shared_modules, at.shared_param_names, strict=True)]
    return FullyShardedParameter(each.sharded_param, tuple(places), each.sharded_state.name == "SHARDED")


def _parameter_groups(modules: Sequence[nn.Module]) -> Iterator[Any]:
    """The groups of parameters that FSDP2 gathers at a time, once each."""
    kind = _fsdp_module()
    groups: dict[int, Any] = {}
    for module in modules if kind is not None else ():
        state = internal(module, "_get_fsdp_state", _PURPOSE)() if isinstance(module, kind) else None
        held = [] if state is None else getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        groups |= {id(group): group for group in held if group is not None}
    yield from groups.values()


def _fsdp_module() -> Any:
    """The class of modules that `fully_shard` was applied to; None where nothing can have been."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)


def unreduced(model: nn.Module) -> list[nn.Parameter]:
    """The sharded parameters of FSDP2 whose gradient is still a whole one on each rank, and not reduced."""
    groups = list(_parameter_groups(list(model.modules())))
    return [each.sharded_param for group in groups for each in group.fsdp_params if _waits(group, each)]


def _waits(group: Any, each: Any) -> bool:
    """Whether a parameter of FSDP2 keeps a gradient apart from `.grad`: its own, or its group's between two meshes."""
    if getattr(group, "_partial_reduce_output", None) is not None:
        return True
    unsharded = getattr(each, "_unsharded_param", None)
    apart = getattr(each, "unsharded_accumulated_grad", None)
    return apart is not None or (unsharded is not None and unsharded.grad is not None)


class ReducedPrecision(NamedTuple):
    """The mixed precision of FSDP2.

    Attributes:
        parameters: the dtype that a forward computes in; None: their own.
        gradients: the dtype that gradients are reduced in; None: that of the parameters.
    """

    parameters: torch.dtype | None
    gradients: torch.dtype | None


def mixed_precision(model: nn.Module) -> dict[nn.Parameter, ReducedPrecision]:
    """The precision that FSDP2 computes in, by the sharded parameter; empty without FSDP2."""
    found = {}
    for group in _parameter_groups(list(model.modules())):
        for each in group.fsdp_params:
            policy = internal(each, "mp_policy", _PURPOSE)
            found[each.sharded_param] = ReducedPrecision(policy.param_dtype, policy.reduce_dtype)
    return found


def data_parallel_groups(model: nn.Module) -> list[Any]:
    """The process groups over which FSDP2 takes the mean of gradients, one for each dimension of its mesh.

    The ranks of all of these together are given different batches. Empty without FSDP2.
    """
    for group in _parameter_groups(list(model.modules())):
        mesh: Any = internal(group, "mesh_info", _PURPOSE).mesh
        return list(mesh.get_all_groups())
    return []
