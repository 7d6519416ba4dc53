"""Every rule of the traced engine against the operation itself, one perturbed input after the other.

A rule of a new operation needs a case here. Elementwise operations without a rule of their own get a case by their
schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.zoo.sweeps import some_of
from torch_gradcheck.engines.traced import program
from torch_gradcheck.engines.traced.engine import perturbed
from torch_gradcheck.engines.traced.recording.aliasing import MemoryView, read_view, scatter_view
from torch_gradcheck.engines.traced.rules.by_vmap import by_vmap
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.rules.pointwise import pointwise, rule_of
from torch_gradcheck.engines.traced.rules.registry import RULES, NoRuleError, OperationCall, map_tensors
from torch_gradcheck.torch_internals.dispatch import vmap_or_nothing
from torch_gradcheck.torch_internals.operations import (
    OpOverload,
    flatten,
    name_of,
    overload,
    overload_name_of,
    overloads,
    schema_arguments,
    written_arguments,
)

assert program.RULE_FILES, "they register their rules when they are imported"

K = 5
"""Perturbations in a chunk."""


class Example(NamedTuple):
    """Arguments of one call at θ."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(*args: Any, **kwargs: Any) -> Example:
    return Example(args, kwargs)


def r(*shape: int) -> Tensor:
    """Real numbers of both signs, none close to 0."""
    return (torch.rand(shape, dtype=torch.float64) + 0.25) * (1 - 2 * torch.randint(0, 2, shape))


def p(*shape: int) -> Tensor:
    """Numbers between 0.2 and 0.8."""
    return 0.2 + 0.6 * torch.rand(shape, dtype=torch.float64)


def c(*shape: int) -> Tensor:
    """Complex numbers."""
    return torch.complex(r(*shape), r(*shape))


def ids(below: int, *shape: int) -> Tensor:
    """Indices, some of them equal."""
    return torch.randint(0, below, shape)


def contiguous_view(*shape: int, offset: int = 0, strides: tuple[int, ...] | None = None) -> MemoryView:
    strides = torch.empty(shape).stride() if strides is None else strides
    return MemoryView(offset, shape, strides, torch.float64, (False, False))


Examples = Callable[[], list[Example]]


def two_of_one_shape() -> list[Example]:
    twice = r(3, 4)
    different = [call(r(3, 4), r(3, 4)), call(r(3, 4), r(4)), call(r(2, 1, 3), r(4, 1)), call(c(3, 2), c(3, 2))]
    return [*different, call(twice, twice)]


def matrices(*batch: int) -> list[Example]:
    return [call(r(*batch, 3, 4), r(*batch, 4, 5)), call(c(*batch, 3, 6), c(*batch, 6, 2))]


def sum_and_matrices(*batch: int) -> list[Example]:
    return [
        call(r(5), r(*batch, 3, 4), r(*batch, 4, 5)),
        call(r(*batch, 3, 1), r(*batch, 3, 4), r(*batch, 4, 2)),
        call(r(2), r(*batch, 3, 4), r(*batch, 4, 2), beta=0.5, alpha=2),
    ]


def images(*rest: Any) -> list[Example]:
    return [call(r(2, 3, 6, 5), *rest), call(r(3, 6, 5), *rest)]


def convolutions() -> list[Example]:
    return [
        call(r(2, 4, 6, 5), r(3, 4, 3, 2), r(3), [2, 1], [1, 0], [1, 2], False, [0, 0], 1),
        call(r(2, 4, 6, 5), r(6, 2, 3, 2), r(6), [1, 1], [0, 1], [1, 1], False, [0, 0], 2),
        call(r(2, 4, 3, 3), r(4, 3, 3, 2), r(6), [2, 1], [1, 0], [1, 1], True, [1, 0], 2),
        call(r(2, 3, 7), r(4, 3, 3), None, [2], [1], [2], False, [0], 1),
        call(r(1, 2, 3, 4, 3), r(2, 2, 2, 2, 2), r(2), [1, 1, 1], [0, 0, 0], [1, 1, 1], False, [0, 0, 0], 1),
    ]


def over_one_dimension(*rest: Any, **kwargs: Any) -> list[Example]:
    return [call(r(3, 4), 1, *rest, **kwargs), call(r(2, 3, 2), -2, *rest, **kwargs)]


def over_dimensions(*rest: Any, **kwargs: Any) -> list[Example]:
    return [call(r(3, 4), [1], *rest, **kwargs), call(r(2, 3, 2), [0, -1], *rest, **kwargs)]


def one(*rest: Any) -> list[Example]:
    return [call(r(3, 4), *rest)]


def of_gradient(*rest: Any) -> list[Example]:
    """Arguments of an elementwise backward: the gradient, x, more."""
    return [call(r(3, 4), r(3, 4), *rest)]


CASES: dict[str, Examples] = {
    # elementwise
    "add.Tensor": lambda: [*two_of_one_shape(), call(r(3, 4), r(3, 4), alpha=2.5)],
    "sub.Tensor": lambda: [*two_of_one_shape(), call(r(3, 4), r(4), alpha=2.5)],
    "mul.Tensor": two_of_one_shape,
    "div.Tensor": two_of_one_shape,
    "mul.Scalar": lambda: one(2.5),
    "div.Scalar": lambda: one(2.5),
    "huber_loss.default": lambda: [call(r(3, 4), r(3, 4), k, 0.7) for k in (0, 1, 2)],
    "tanh.default": lambda: [*one(), call(c(3, 2))],
    "_conj.default": lambda: [call(c(3, 2))],
    "_neg_view.default": one,
    "_prelu_kernel.default": lambda: one(p(1, 4)),
    "complex.default": lambda: one(r(3, 4)),
    "elu_backward.default": lambda: [call(r(3, 4), 1.0, 1.0, 1.0, False, r(3, 4))],
    "hardsigmoid_backward.default": of_gradient,
    "hardswish.default": one,
    "hardswish_backward.default": of_gradient,
    "hardtanh_backward.default": lambda: of_gradient(-0.7, 0.7),
    "leaky_relu_backward.default": lambda: of_gradient(0.1, False),
    "log_sigmoid_backward.default": lambda: of_gradient(p(3, 4)),
    "logit_backward.default": lambda: [call(r(3, 4), p(3, 4), 1e-6)],
    "masked_fill.Scalar": lambda: one(ids(2, 3, 4).bool(), 0.5),
    "masked_fill.Tensor": lambda: one(ids(2, 4).bool(), torch.tensor(0.5, dtype=torch.float64)),
    "mish_backward.default": of_gradient,
    "resolve_conj.default": lambda: [call(c(3, 2))],
    "resolve_neg.default": one,
    "rsub.Scalar": lambda: one(2.5),
    "rsub.Tensor": two_of_one_shape,
    "softplus_backward.default": lambda: of_gradient(1.0, 20.0),
    "special_entr.default": lambda: [call(p(3, 4))],
    # copies
    "clone.default": one,
    "alias.default": one,
    "detach.default": one,
    "lift_fresh.default": one,
    "_to_copy.default": lambda: [call(r(3, 4), dtype=torch.float32), call(r(3, 4).float(), dtype=torch.float64)],
    "copy.default": lambda: [call(r(3, 4), r(3, 4)), call(r(3, 4), r(4)), call(r(3, 4).float(), r(3, 4))],
    # products
    "mm.default": matrices,
    "bmm.default": lambda: matrices(2),
    "addmm.default": sum_and_matrices,
    "baddbmm.default": lambda: sum_and_matrices(2),
    "mv.default": lambda: [call(r(3, 4), r(4)), call(c(3, 4), c(4))],
    "dot.default": lambda: [call(r(4), r(4)), call(c(4), c(4))],
    "vdot.default": lambda: [call(r(4), r(4)), call(c(4), c(4))],
    # convolutions and pooling
    "convolution.default": convolutions,
    "max_pool2d_with_indices.default": lambda: images([2, 2], [2, 1]),
    "max_pool3d_with_indices.default": lambda: [call(r(1, 2, 4, 4, 3), [2, 2, 2])],
    "avg_pool2d.default": lambda: images([2, 2], [2, 1]),
    "avg_pool3d.default": lambda: [call(r(1, 2, 4, 4, 3), [2, 2, 2])],
    "_adaptive_avg_pool2d.default": lambda: images([2, 3]),
    "_adaptive_avg_pool3d.default": lambda: [call(r(1, 2, 4, 4, 3), [2, 2, 1])],
    "adaptive_max_pool2d.default": lambda: images([2, 3]),
    "upsample_nearest1d.default": lambda: [call(r(2, 3, 4), [7])],
    "upsample_nearest2d.default": lambda: [call(r(2, 3, 4, 3), [7, 6])],
    "upsample_bilinear2d.default": lambda: [call(r(2, 3, 4, 3), [7, 6], False)],
    "reflection_pad1d.default": lambda: [call(r(2, 3, 4), [1, 2])],
    "reflection_pad2d.default": lambda: images([1, 2, 0, 3]),
    "replication_pad1d.default": lambda: [call(r(2, 3, 4), [1, 2])],
    "replication_pad2d.default": lambda: images([1, 2, 0, 3]),
    # normalizations
    "native_layer_norm.default": lambda: [
        call(r(2, 3, 4), [4], r(4), r(4), 1e-5),
        call(r(2, 3, 4), [3, 4], r(3, 4), None, 1e-5),
        call(r(2, 3, 4), [4], None, None, 1e-5),
    ],
    "native_group_norm.default": lambda: [
        call(r(2, 4, 5), r(4), r(4), 2, 4, 5, 2, 1e-5),
        call(r(2, 4, 2, 3), None, None, 2, 4, 6, 2, 1e-5),
    ],
    "_native_batch_norm_legit.no_stats": lambda: [
        call(r(4, 3, 2), r(3), r(3), True, 0.1, 1e-5),
        call(r(4, 3), None, None, True, 0.1, 1e-5),
    ],
    "_native_batch_norm_legit_no_training.default": lambda: [
        call(r(4, 3, 2), r(3), r(3), r(3), p(3), 0.1, 1e-5),
        call(r(4, 3), None, None, r(3), p(3), 0.1, 1e-5),
    ],
    "_weight_norm_interface.default": lambda: [
        call(r(4, 3), r(4, 1), 0),
        call(r(4, 3, 2), r(4, 1, 1), 0),
        call(r(4, 3), r(1, 3), 1),
    ],
    # along dimensions
    "sum.default": lambda: [*one(), call(c(3, 2)), call(r(3, 4).float(), dtype=torch.float64)],
    "sum.dim_IntList": lambda: [*over_dimensions(), *over_dimensions(True), call(r(3, 4), None)],
    "mean.default": one,
    "mean.dim": lambda: [*over_dimensions(), *over_dimensions(True)],
    "amax.default": lambda: [*over_dimensions(), *over_dimensions(True)],
    "amin.default": lambda: [*over_dimensions(), *over_dimensions(True)],
    "argmax.default": lambda: [*over_one_dimension(), *over_one_dimension(True), call(r(3, 4))],
    "argmin.default": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "logsumexp.default": lambda: [*over_dimensions(), *over_dimensions(True)],
    "var.correction": lambda: [*over_dimensions(correction=1), *over_dimensions(correction=0, keepdim=True)],
    "std.correction": lambda: [*over_dimensions(correction=1), *over_dimensions(correction=0, keepdim=True)],
    "var_mean.correction": lambda: [*over_dimensions(correction=1), *over_dimensions(correction=0, keepdim=True)],
    "max.dim": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "min.dim": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "median.dim": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "prod.dim_int": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "any.dim": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "all.dim": lambda: [*over_one_dimension(), *over_one_dimension(True)],
    "linalg_vector_norm.default": lambda: [call(r(3, 4), 2, [1], True), call(r(3, 4), 1, [0]), call(r(3, 4), 2)],
    "norm.ScalarOpt_dim": lambda: [call(r(3, 4), 2, [1], True), call(r(3, 4), 1, [0])],
    "cumsum.default": over_one_dimension,
    "cumprod.default": over_one_dimension,
    "logcumsumexp.default": over_one_dimension,
    "sort.default": lambda: [*over_one_dimension(), *over_one_dimension(True), call(r(3, 4))],
    "topk.default": lambda: [call(r(3, 4), 2), call(r(2, 3, 4), 2, 1, False), call(r(3, 4), 3, -1, True, False)],
    "_softmax.default": lambda: [*over_one_dimension(False), call(r(3, 4).float(), 1, False)],
    "_log_softmax.default": lambda: [*over_one_dimension(False), call(r(3, 4).float(), 1, False)],
    "_safe_softmax.default": lambda: [*over_one_dimension()],
    # indexing
    "embedding.default": lambda: [call(r(5, 3), ids(5, 2, 4)), call(r(5, 3), ids(5, 4), 1)],
    "index_select.default": lambda: [call(r(3, 4), 1, ids(4, 6)), call(r(3, 4), -2, ids(3, 2))],
    "index.Tensor": lambda: [
        call(r(3, 4), [None, ids(4, 2, 3)]),
        call(r(3, 4, 2), [ids(3, 5), ids(4, 5)]),
        call(r(3, 4, 2), [ids(3, 5), None, ids(2, 5)]),
        call(r(3, 4), [torch.tensor([True, False, True])]),
        call(r(3, 4), [torch.tensor([[True, False, True, False]]).expand(3, 4)]),
        call(r(3, 4, 2), [None, torch.tensor(-1), torch.tensor(1)]),
        call(r(3, 4), [torch.tensor(2)]),
        call(r(3, 4), [torch.tensor(2), ids(4, 3)]),
    ],
    "index_add.default": lambda: [
        call(r(3, 4), 0, ids(3, 5), r(5, 4)),
        call(r(3, 4, 2), -2, ids(4, 2), r(3, 2, 2)),
        call(r(3, 4), 1, ids(4, 5), r(3, 5), alpha=2.5),
        call(r(4), 0, ids(4, 3), r(3)),
        call(r(), 0, torch.tensor(0), r()),
    ],
    "nll_loss_forward.default": lambda: [
        call(r(4, 3), torch.tensor([0, 2, -100, 1]), None, 1, -100),
        call(r(4, 3), torch.tensor([0, 2, 2, 1]), p(3), 1, -100),
        call(r(4, 3), torch.tensor([0, 2, -1, 1]), p(3), 2, -1),
        call(r(4, 3), torch.tensor([0, 2, 2, 1]), None, 0, -100),
    ],
    # views
    "t.default": lambda: [*one(), call(r(4))],
    "transpose.int": lambda: [*one(0, 1), call(r(2, 3, 4), -1, 0)],
    "permute.default": lambda: [call(r(2, 3, 4), [2, 0, -2])],
    "unsqueeze.default": lambda: [*one(1), *one(-1)],
    "squeeze.default": lambda: [call(r(3, 1, 4, 1))],
    "squeeze.dim": lambda: [call(r(3, 1, 4), 1), call(r(3, 1, 4), -1)],
    "squeeze.dims": lambda: [call(r(3, 1, 4, 1), [1, -1])],
    "expand.default": lambda: [call(r(3, 1), [2, 3, 4]), call(r(3, 4), [3, 4]), call(r(), [2]), call(r(), [])],
    "slice.Tensor": lambda: [*one(1, 1, 3), *one(0, 0, 2), *one(1, 0, 4, 2), *one(-1, -3, 100), *one()],
    "select.int": lambda: [*one(1, 2), *one(0, -1)],
    "split.Tensor": lambda: [*one(2, 1), *one(2)],
    "split_with_sizes.default": lambda: [*one([1, 3], 1), *one([2, 1])],
    "unsafe_split.Tensor": lambda: [*one(2, 1)],
    "unsafe_split_with_sizes.default": lambda: [*one([1, 3], 1)],
    "unbind.int": lambda: [*one(1), *one()],
    "cat.default": lambda: [call([r(3, 4), r(2, 4)]), call([r(3, 4), r(3, 1)], 1), call([r(0), r(3, 4)], -1)],
    "stack.default": lambda: [call([r(3, 4), r(3, 4)]), call([r(3, 4), r(3, 4), r(3, 4)], -1)],
    "view.default": lambda: [call(r(4, 6), size) for size in ([2, 2, 6], [24], [3, 8], [4, 2, 1, 3])],
    "reshape.default": lambda: [call(r(4, 6), size) for size in ([2, 2, 6], [24], [3, 8], [4, 2, 1, 3])],
    "_unsafe_view.default": lambda: [call(r(4, 6), size) for size in ([2, 2, 6], [24], [3, 8])],
    "_reshape_alias.default": lambda: [call(r(4, 6), [2, 2, 6], [12, 6, 1]), call(r(4, 6), [3, 8], [8, 1])],
    "flip.default": lambda: [*one([1]), *one([0, -1])],
    "constant_pad_nd.default": lambda: [*one([1, 2], 0.5), *one([1, 0, 0, 2])],
    "view_as_real.default": lambda: [call(c(3, 2))],
    "view_as_complex.default": lambda: [call(r(3, 2))],
    "read_view": lambda: [
        call(r(3, 4), contiguous_view(3, 4), contiguous_view(4, 2, strides=(1, 4), offset=4)),
        call(r(4, 3).t(), contiguous_view(3, 4, strides=(1, 3)), contiguous_view(6, strides=(2,))),
    ],
    "scatter_view": lambda: [
        call(r(3, 4), contiguous_view(3, 4), r(4, 2), contiguous_view(4, 2, strides=(1, 4), offset=4)),
        call(r(4, 3).t(), contiguous_view(3, 4, strides=(1, 3)), r(6), contiguous_view(6, strides=(2,))),
    ],
}
"""Operation → calls of it. Every tensor of real or complex numbers among their arguments is perturbed in turn."""

FUNCTIONS = {"read_view": read_view, "scatter_view": scatter_view}
"""Operations of the tape's own."""

WHOLE_NUMBERS = ("bitwise_", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "gcd.", "lcm.")
"""How names of elementwise operations begin that take no real numbers, so that nothing perturbs their arguments."""

ELEMENTWISE: dict[str, Examples] = {
    "sigmoid.default": lambda: [*one(), call(c(3, 2))],
    "exp.default": lambda: [*one(), call(c(3, 2))],
    **dict.fromkeys(("clamp.default", "clip.default"), lambda: [call(r(3, 4), -0.5, 0.5), call(r(3, 4), None, 0.5)]),
    **dict.fromkeys(
        ("clamp.Tensor", "clip.Tensor"), lambda: [call(r(3, 4), -p(4), p(3, 4)), call(r(3, 4), None, p(4))]
    ),
    "round.decimals": lambda: [call(r(3, 4), decimals=1)],
    "acosh.default": lambda: [call(1.5 + p(3, 4))],
    "mvlgamma.default": lambda: [call(3 + p(3, 4), 2)],
    "polygamma.default": lambda: [call(2, p(3, 4))],
    "div.Tensor_mode": lambda: [call(r(3, 4), r(3, 4), rounding_mode=mode) for mode in (None, "trunc", "floor")],
    "div.Scalar_mode": lambda: [call(r(3, 4), 0.3, rounding_mode=mode) for mode in (None, "trunc", "floor")],
    "special_zeta.default": lambda: [call(2 + p(3, 4), p(3, 4))],
    "special_zeta.self_scalar": lambda: [call(2.5, p(3, 4))],
    "special_zeta.other_scalar": lambda: [call(2 + p(3, 4), 0.5)],
    "where.self": lambda: [call(ids(2, 3, 4).bool(), r(3, 4), r(3, 4)), call(ids(2, 3, 1).bool(), r(4), r(3, 4))],
    "native_dropout_backward.default": lambda: [call(r(3, 4), ids(2, 3, 4).bool(), 2.0)],
}
"""Elementwise operations without a rule of their own whose schema does not tell which arguments they take."""


def elementwise() -> Iterator[str]:
    """Names of all functional operations that torch tags as elementwise and that take real numbers."""
    names = {name.removeprefix("aten::").partition(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    for func in overloads(*names):
        gives_tensors = not written_arguments(func) and torch.Tag.data_dependent_output not in func.tags
        if torch.Tag.pointwise in func.tags and gives_tensors and func not in RULES:
            yield name_in_tables(func)


def name_in_tables(func: Any) -> str:
    return f"{name_of(func)}.{overload_name_of(func)}" if isinstance(func, OpOverload) else func.__name__


def by_schema(func: OpOverload) -> Example:
    """A call with numbers between 0 and 1 wherever the schema asks for an argument."""
    made = {"Tensor": lambda: p(3, 4), "number": lambda: 0.7, "float": lambda: 0.7, "int": lambda: 2}
    arguments = [argument for argument in schema_arguments(func) if not argument.has_default_value()]
    return call(*(made[str(argument.type)]() for argument in arguments))


# ------------------------------------------------------------------ what perturbs an argument


def whole(x: Tensor, size: float) -> Tensor:
    """Shape (K, *sizes): x with every entry moved."""
    moves = torch.randn((K, *x.shape), dtype=x.dtype) if x.is_complex() else r(K, *x.shape).to(x.dtype)
    return x + size * moves


def coordinates_of(x: Tensor) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(x.numel() * (2 if x.is_complex() else 1), size=K)


def one_each(x: Tensor, size: float) -> Perturbed:
    """Another coordinate for every perturbation."""
    return perturbed(x, coordinates_of(x), size * np.linspace(-1, 1, K))[0]


def one_for_all(x: Tensor, size: float) -> Perturbed:
    """The same coordinate for all perturbations."""
    return perturbed(x, np.full(K, x.numel() // 2), size * np.linspace(-1, 1, K))[0]


def slices(x: Tensor, size: float) -> Perturbed:
    """Another index of the last dimension for every perturbation, and all of the others."""
    if not x.ndim:
        return everything(x, size)
    starts = np.arange(K) % x.shape[-1]
    entries = torch.stack([entry[..., start : start + 1] for entry, start in zip(whole(x, size), starts, strict=True)])
    return Perturbed(x, entries, (*(None,) * (x.ndim - 1), Span(starts, 1)))


def everything(x: Tensor, size: float) -> Perturbed:
    """Every entry."""
    return Perturbed(x, whole(x, size), (None,) * x.ndim)


FORMS = [one_each, one_for_all, slices, everything]


def by_deltas(x: Perturbed) -> Perturbed:
    return Perturbed(x.base, None, x.region, x.deltas)


def spare(chosen: dict[int, Perturbed]) -> dict[int, Perturbed]:
    """The same in memory that a rule may write to."""
    copies = {id(x): x.like(x.base, x.stored.clone(), x.region) for x in chosen.values()}
    for copied in copies.values():
        copied.owned = copied.spare = True
    return {at: copies[id(x)] for at, x in chosen.items()}


# ------------------------------------------------------------------ the comparison


def is_perturbable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.numel() > 0 and (x.is_floating_point() or x.is_complex())


def replaced(example: Example, chosen: dict[int, Any]) -> Example:
    """The example with the perturbable tensors at these positions among all of them replaced."""
    position = iter(range(1000))
    args, values = map_tensors(
        (example.args, tuple(example.kwargs.values())),
        lambda x: chosen.get(next(position), x) if is_perturbable(x) else x,
    )
    return Example(args, dict(zip(example.kwargs, values, strict=True)))


def perturbable(example: Example) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors((example.args, tuple(example.kwargs.values())), found.append)
    return [x for x in found if is_perturbable(x)]


def check(func: Any, example: Example, chosen: dict[int, Perturbed]) -> bool:
    """Compares the rule with the operation; gives whether the rule covers such a call."""
    expected = [
        flatten(run(func, replaced(example, {at: x.widened().values[k] for at, x in chosen.items()}))) for k in range(K)
    ]
    bases = flatten(run(func, example))
    args, kwargs = replaced(example, chosen)
    covered = True
    try:
        results = (rule_of(func) or by_vmap)(OperationCall(func, args, kwargs, bases, K))
    except NoRuleError:
        covered, results = False, by_vmap(OperationCall(func, args, kwargs, bases, K))
    for position, (base, result) in enumerate(zip(bases, results, strict=True)):
        found = base.expand(K, *base.shape) if result is None else result.widened().values
        right = torch.stack([each[position] for each in expected])
        assert found.dtype == right.dtype
        tolerance = 1e-5 if right.dtype in (torch.float32, torch.complex64) else 1e-12
        torch.testing.assert_close(found.resolve_conj(), right, rtol=tolerance, atol=tolerance, equal_nan=True)
    return covered


def run(func: Any, example: Example) -> Any:
    return func(*example.args, **example.kwargs)


def ways(example: Example, size: float) -> Iterator[dict[int, Perturbed]]:
    """Every perturbable tensor alone, in every form, then all of them at a time; one that is given twice, as one."""
    tensors = perturbable(example)
    different = list({id(x): x for x in tensors}.values())
    for form in FORMS:
        for chosen in [*([x] for x in different), *([different] if len(different) > 1 else [])]:
            found = {id(x): form(x, size) for x in chosen}
            yield {at: found[id(x)] for at, x in enumerate(tensors) if id(x) in found}
            found = {key: by_deltas(x) for key, x in found.items()}
            yield {at: found[id(x)] for at, x in enumerate(tensors) if id(x) in found}


def checked_in_every_way(func: Any, examples: list[Example]) -> None:
    covered = False
    for example in examples:
        assert perturbable(example)
        assert all(x.isfinite().all() for x in flatten(run(func, example)) if x.is_floating_point())
        for size in (1e-5, 0.1):
            for chosen in ways(example, size):
                covered |= check(func, example, chosen)
                check(func, example, spare(chosen))
    assert covered, "some call must be one that the rule is for"


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tensors take the ways that only large ones are worth."""
    monkeypatch.setattr("torch_gradcheck.engines.traced.rules.pointwise._WORTH_LOOKING_AT", 1)
    torch.manual_seed(0)
    with torch.no_grad(), vmap_or_nothing():
        yield


def existing_function(name: str) -> Any:
    func = FUNCTIONS.get(name) or overload(name)
    if func is None:
        pytest.skip(f"torch {torch.__version__} has no aten.{name}")
    return func


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("name", CASES)
def test_a_rule_gives_what_the_operation_gives(name: str) -> None:
    checked_in_every_way(existing_function(name), CASES[name]())


@pytest.mark.slow_but_for(6)
@pytest.mark.parametrize("name", sorted({*some_of(sorted(elementwise()), 3), *ELEMENTWISE}))
def test_the_elementwise_rule_gives_what_the_operation_gives(name: str) -> None:
    func = existing_function(name)
    if name.startswith(WHOLE_NUMBERS):
        pytest.skip("takes whole numbers only")
    assert rule_of(func) is pointwise
    checked_in_every_way(func, ELEMENTWISE[name]() if name in ELEMENTWISE else [by_schema(func)])


def test_a_loss_of_which_the_target_moves_alone_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        for example in CASES["huber_loss.default"]():
            checked_in_every_way(existing_function("huber_loss.default"), [example])
    finally:
        torch.set_warn_always(always)
    assert capfd.readouterr().err == ""


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    exist = {name for name in CASES if name in FUNCTIONS or overload(name) is not None}
    assert {name_in_tables(func) for func in RULES} == exist
