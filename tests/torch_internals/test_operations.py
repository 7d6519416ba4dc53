"""What aten's operations are looked up for: rules by name, and what a schema says of writes, views and arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_gradcheck.torch_internals.dispatch import DispatchMode
from torch_gradcheck.torch_internals.operations import (
    ATTENTION,
    ATTENTION_BACKWARD,
    CASTS,
    GROUPED_PRODUCTS,
    SCALAR_READS,
    SOFTMAX_BACKWARD,
    OpOverload,
    changes_dtype,
    decomposes,
    existing,
    flatten,
    in_place_form,
    is_operator,
    is_view,
    is_written,
    name_of,
    operator_name,
    overload,
    overload_name_of,
    overloads,
    packet,
    schema_arguments,
    schemas_of,
    sibling,
    takes,
    written_arguments,
)

aten = torch.ops.aten


def test_an_operation_is_found_by_name() -> None:
    """Rules, and lists of operations, are by name."""
    assert packet("add") is aten.add
    assert overload("add.Tensor") is aten.add.Tensor
    assert overload("relu.default") is aten.relu.default
    assert existing("add.Tensor", "relu.default") == (aten.add.Tensor, aten.relu.default)
    assert overloads("add", "mul") >= {aten.add.Tensor, aten.add.Scalar, aten.mul.Tensor}


def test_an_operation_that_torch_has_renamed_is_one_rule_less_and_no_error() -> None:
    assert packet("no_such_operation") is None
    assert overload("no_such_operation.default") is None
    assert overload("add.no_such_overload") is None
    assert existing("no_such_operation.default", "add.Tensor") == (aten.add.Tensor,)
    assert overloads("no_such_operation") == frozenset()


def test_what_a_dispatch_mode_is_given_is_an_overload() -> None:
    assert isinstance(aten.add.Tensor, OpOverload)


def test_an_overload_tells_its_names() -> None:
    assert (name_of(aten.add_.Tensor), overload_name_of(aten.add_.Tensor)) == ("add_", "Tensor")
    assert (name_of(aten.relu.default), overload_name_of(aten.relu.default)) == ("relu", "default")


def test_the_in_place_form_of_an_operation_is_found() -> None:
    """The engine saves memory by it, where nobody reads the operand again."""
    assert in_place_form(aten.add.Tensor) is aten.add_.Tensor
    assert sibling(aten.add_.Tensor, "add") is aten.add.Tensor
    assert in_place_form(aten.bmm.default) is None


@pytest.mark.parametrize(
    ("func", "made_of_others"),
    [(aten.matmul.default, True), (aten.mm.default, False), (aten.dropout.default, True), (aten.relu.default, False)],
    ids=str,
)
def test_an_operation_made_of_others_decomposes(func: Any, made_of_others: bool) -> None:
    """A record of J holds the operations it is made of, for which there are rules."""
    assert decomposes(func) is made_of_others


def test_a_decomposition_gives_the_same_numbers() -> None:
    A, B = torch.randn(2, 3, 4), torch.randn(4, 5)
    assert torch.equal(aten.matmul.default.decompose(A, B), A @ B)


def test_a_schema_tells_arguments_and_writes() -> None:
    """Writes in place and `out` are how the recording learns that a value has changed."""
    assert [argument.name for argument in schema_arguments(aten.add_.Tensor)] == ["self", "other", "alpha"]
    assert [is_written(argument) for argument in schema_arguments(aten.add_.Tensor)] == [True, False, False]
    assert written_arguments(aten.add_.Tensor) == {0, "self"}
    assert written_arguments(aten.add.out) == {3, "out"}
    assert written_arguments(aten.add.Tensor) == frozenset()
    assert takes(aten.randn.default, "dtype")
    assert not takes(aten.add.Tensor, "dtype")
    assert schema_arguments(len) == ()  # no operation of aten's


def test_the_schemas_of_what_can_be_called() -> None:
    """The names of arguments of operators are in their schemas; aten's have one for each overload."""
    assert [[argument.name for argument in each] for each in schemas_of(aten.relu)] == [["self"], ["self", "out"]]
    assert [argument.name for argument in schemas_of(aten.mul.Tensor)[0]] == ["self", "other"]
    assert schemas_of(torch.mul) == []
    assert (operator_name(aten.mul), operator_name(aten.mul.Tensor), operator_name(len)) == ("aten::mul",) * 2 + ("",)


def test_the_schema_of_an_operator_of_the_users() -> None:
    """A custom operator has one overload, which the object that the user holds refers to."""
    operator = torch.library.custom_op("torch_gradcheck_schemas::halved", _halved, mutates_args=())
    assert [(each.name, each.kwarg_only, each.has_default_value()) for each in schemas_of(operator)[0]] == [
        ("x", False, False),
        ("by", False, True),
    ]
    assert operator_name(operator) == "torch_gradcheck_schemas::halved"


def _halved(x: torch.Tensor, by: float = 0.5) -> torch.Tensor:
    return x * by


VIEWS = {
    "view": (aten.view.default, True),
    "transpose": (aten.transpose.int, True),
    "add": (aten.add.Tensor, False),
    "add_": (aten.add_.Tensor, False),
    "to": (aten.to.dtype, False),
    "no operation": (len, False),
}


@pytest.mark.parametrize(("func", "view"), VIEWS.values(), ids=VIEWS)
def test_a_view_is_told_from_a_computation(func: Any, view: bool) -> None:
    """A view of a tensor is not raised to float64: it may be written to through it."""
    assert is_view(func) is view


def test_all_casts_are_there() -> None:
    assert len(CASTS) == 7


class Seen(DispatchMode):
    """Notes every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [float, torch.Tensor.item, bool])
def test_python_reads_a_number_by_one_operation(read: Any) -> None:
    """Numbers that Python reads are held where stop-gradients are declared."""
    x = torch.ones(1)
    with Seen() as mode:
        read(x)
    assert mode.seen & SCALAR_READS


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="this torch has no grouped products")
def test_a_grouped_product_is_one_operation() -> None:
    """It has no float64 kernel, and is computed by others there."""
    with Seen() as mode:
        torch.nn.functional.grouped_mm(torch.ones(4, 4), torch.ones(1, 4, 4), offs=torch.tensor([4], dtype=torch.int32))
    assert mode.seen & set(GROUPED_PRODUCTS)


def test_fused_attention_and_its_backward_are_known() -> None:
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    with Seen() as mode:
        output = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert mode.seen & ATTENTION - ATTENTION_BACKWARD
    with Seen() as mode:
        output.sum().backward()
    assert mode.seen & ATTENTION_BACKWARD


def test_the_backward_of_a_softmax_is_known() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with Seen() as mode:
        x.softmax(-1).sum().backward()
    assert mode.seen & SOFTMAX_BACKWARD


def test_a_change_of_dtype_is_known() -> None:
    """It rounds only what it casts to a lower precision."""
    assert changes_dtype(overload("_to_copy.default"))
    assert not changes_dtype(aten.clone.default)


def test_tensors_of_a_result_are_found_in_order() -> None:
    x, y = torch.zeros(1), torch.zeros(2)
    assert [t.numel() for t in flatten((x, [y, None], 3))] == [1, 2]


def test_operators_are_told_from_other_objects() -> None:
    assert is_operator(type(torch.ops.aten.add.Tensor))
    assert is_operator(type(torch.ops.aten.add))
    assert not is_operator(type(torch.add))
