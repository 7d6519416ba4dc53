"""Operations of aten: which overloads exist, and what their schemas say of writes, views and arguments."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torch_gradcheck.torch_internals.missing import internal

aten = torch.ops.aten

if TYPE_CHECKING:
    from torch._ops import OpOverload as OpOverload
else:
    OpOverload = type(aten.add.Tensor)


def packet(name: str) -> Any:
    """The operation of aten by its name, such as `add_`; None where this version of torch has none."""
    return getattr(aten, name, None)


def overload(name: str) -> OpOverload | None:
    """One overload by its name, such as `add.Tensor` or `_softmax.default`; None where this torch has none."""
    of, _, overload_name = name.partition(".")
    return getattr(packet(of), overload_name, None)


def existing(*names: str) -> tuple[OpOverload, ...]:
    """Those of the overloads with these names that this version of torch has."""
    return tuple(found for found in map(overload, names) if found is not None)


def overloads(*names: str) -> frozenset[OpOverload]:
    """All overloads of these operations that exist in this version of torch."""
    packets = [packet(name) for name in names if packet(name) is not None]
    return frozenset(getattr(found, overload) for found in packets for overload in found.overloads())


def name_of(func: OpOverload) -> str:
    """The name without namespace and overload: `add_` of aten::add_.Tensor."""
    return str(func._schema.name).rpartition("::")[2]


def overload_name_of(func: OpOverload) -> str:
    """The name of the overload: `Tensor` of aten::add_.Tensor, `default` where it has none."""
    return str(func._overloadname)


def sibling(func: OpOverload, name: str) -> OpOverload | None:
    """The overload of another operation with the same overload name: `add_.Tensor` of `add.Tensor`, for `add_`."""
    return getattr(packet(name), overload_name_of(func), None)


def in_place_form(func: OpOverload) -> OpOverload | None:
    """The same operation on its first argument in place, `add_.Tensor` of `add.Tensor`; None where there is none."""
    return sibling(func, name_of(func) + "_")


def decomposes(func: OpOverload) -> bool:
    """Whether an operation is made of other operations, as `func.decompose` then runs them."""
    key = internal(torch._C, "DispatchKey", "see what an operation is made of").CompositeImplicitAutograd
    return bool(func._can_decompose() and func.has_kernel_for_dispatch_key(key))


def schema_arguments(func: Any) -> tuple[Any, ...]:
    """The arguments by the schema (`.name`, `.type`, `.alias_info` each); none where an operation has no schema."""
    schema = getattr(func, "_schema", None)
    return tuple(schema.arguments) if schema else ()


def schemas_of(function: Any) -> list[tuple[Any, ...]]:
    """The arguments by each schema of an operator or a function of torch.jit; none of anything else.

    An operator of torch.library and a scripted function have one schema, an operation of aten one for each overload.
    """
    if isinstance(function, torch.jit.ScriptFunction):
        return [tuple(function.schema.arguments)]  # type: ignore[attr-defined]
    if isinstance(function, type(aten.add)):
        return [schema_arguments(getattr(function, each)) for each in function.overloads()]
    operator = _operator(function)
    return [] if operator is None else [schema_arguments(operator)]


def operator_name(function: Any) -> str:
    """The name of an operator, such as `mylib::swish` or `aten::add`, or of a scripted function; "" of all else."""
    if isinstance(function, torch.jit.ScriptFunction):
        return str(function.name)
    packet = isinstance(function, type(aten.add))
    operator = getattr(function, function.overloads()[0]) if packet else _operator(function)
    return "" if operator is None else str(operator._schema.name)


def _operator(function: Any) -> OpOverload | None:
    """An overload itself, or the only one of what `torch.library.custom_op` returns; else None."""
    operator = getattr(function, "_opoverload", function)
    return operator if isinstance(operator, OpOverload) else None


def is_written(argument: Any) -> bool:
    """Whether an operation writes to this argument of its schema."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def takes(func: Any, name: str) -> bool:
    """Whether an operation has an argument of this name."""
    return any(argument.name == name for argument in schema_arguments(func))


def changes_dtype(func: Any) -> bool:
    """Whether an operation is the one behind `Tensor.to`: a copy in another dtype, on another device or both."""
    return getattr(func, "overloadpacket", func) is packet("_to_copy")


def flatten(result: Any) -> list[Tensor]:
    """The tensors an operation returned, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for item in result for tensor in flatten(item)]
    return []


CASTS = frozenset(
    existing(
        "to.dtype", "to.dtype_layout", "to.device", "to.other", "lift_fresh.default", "type_as.default",
        "view_as_complex.default",
    )
)  # fmt: skip
"""Operations whose schemas say that they return a view, and which may return their very argument instead."""


GROUPED_PRODUCTS = existing("_grouped_mm.default")
"""The operation behind torch.nn.functional.grouped_mm and its backward, where this version of torch has it."""


UNSCALINGS = existing("_amp_foreach_non_finite_check_and_unscale_.default")
"""The operation by which a gradient scaler divides gradients by its scale."""


SCALE_UPDATES = existing("_amp_update_scale_.default")
"""The operation by which it moves its scale."""


ATTENTION_BACKWARD = overloads("_scaled_dot_product_flash_attention_for_cpu_backward")
"""The backward of fused attention on a processor."""


ATTENTION = ATTENTION_BACKWARD | overloads(
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""The operations behind torch.nn.functional.scaled_dot_product_attention that are fused."""


SOFTMAX = overloads("_softmax", "_safe_softmax")
"""The operations of a softmax."""


LOG_SOFTMAX = overloads("_log_softmax")
"""The operation of the logarithm of a softmax."""


SOFTMAX_BACKWARD = overloads("_softmax_backward_data")
"""The operation in the backward of a softmax."""


SCALAR_READS = overloads("_local_scalar_dense")
"""The operation behind `Tensor.item`, and behind all that Python asks of one number."""


@functools.cache
def is_operator(kind: type) -> bool:
    """Whether the objects of a class are operators of torch, overloads of them or namespaces of both."""
    return kind.__module__ == "torch._ops"


@functools.cache
def is_view(func: Any) -> bool:
    """Whether an operation's result shares memory with an argument, and the operation writes to neither."""
    aliases = [alias for argument in schema_arguments(func) if (alias := argument.alias_info)]
    return func not in CASTS and bool(aliases) and not [alias for alias in aliases if alias.is_write]


@functools.cache
def written_arguments(func: Any) -> frozenset[int | str]:
    """Positions and names of the arguments an operation writes to: those must stay the objects they are."""
    written: set[int | str] = set()
    for position, argument in enumerate(schema_arguments(func)):
        if is_written(argument):
            written |= {position, argument.name}
    return frozenset(written)
