from __future__ import annotations

import functools
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from torch_gradcheck.objective.nested import rebuilt, tensors_in

A, B = torch.tensor([1.0]), torch.tensor([2.0])
Point = namedtuple("Point", "x y")


@dataclass
class Record:
    ids: Any
    name: str = "r"
    cached: Any = field(default=None, init=False)


@dataclass(frozen=True)
class Frozen:
    ids: Any


class Row(list):
    label = "row"


STRUCTURES: dict[str, Any] = {
    "tensor": A,
    "tuple": (A, 3, B),
    "list": [A, [B, "text"]],
    "list subclass": Row([A, B]),
    "named tuple": Point(A, (B,)),
    "dict": {"a": A, "n": None, 3: {"b": B}},
    "ordered dict": OrderedDict(b=B, a=A),
    "default dict": defaultdict(list, a=A),
    "user dict": UserDict(a=A, b=[B]),
    "read-only mapping": MappingProxyType({"a": A}),
    "dataclass": Record((A, B)),
    "frozen dataclass": Frozen([A]),
    "nothing": {"text": "x", "numbers": (1, 2.0)},
}


@pytest.mark.parametrize("value", STRUCTURES.values(), ids=STRUCTURES)
def test_every_tensor_is_replaced_and_the_original_untouched(value: Any) -> None:
    before = tensors_in(value)
    doubled = rebuilt(value, lambda tensor: tensor * 2)
    assert [path for path, _ in tensors_in(doubled)] == [path for path, _ in before]
    for (_, new), (_, old) in zip(tensors_in(doubled), before, strict=True):
        assert torch.equal(new, 2 * old)
    assert all(one is other for (_, one), (_, other) in zip(tensors_in(value), before, strict=True))


@pytest.mark.parametrize("kind", [kind for kind in STRUCTURES if kind not in ("tensor", "read-only mapping")])
def test_containers_keep_their_type_and_are_new(kind: str) -> None:
    value = STRUCTURES[kind]
    new = rebuilt(value, torch.clone)
    assert type(new) is type(value)
    assert new is not value


def test_attributes_of_containers_stay() -> None:
    row = Row([A])
    row.label = "first"
    assert rebuilt(row, torch.clone).label == "first"
    record = Record([A], "second")
    assert rebuilt(record, torch.clone).name == "second"
    assert rebuilt(defaultdict(list, a=A), torch.clone)["missing"] == []


def test_what_holds_no_tensor_is_itself() -> None:
    thing = object()
    assert rebuilt([thing, "x", 3], torch.clone) == [thing, "x", 3]
    assert rebuilt(Record, torch.clone) is Record, "a dataclass type is no dataclass"


def test_a_tensor_that_occurs_twice_is_replaced_at_each_place() -> None:
    seen = []
    rebuilt([A, {"again": A}], lambda tensor: seen.append(tensor) or tensor)
    assert len(seen) == 2


def test_paths() -> None:
    value = {"batch": [A, Frozen((B,))], 7: A}
    assert [path for path, _ in tensors_in(value)] == ["['batch'][0]", "['batch'][1].ids[0]", "[7]"]


def test_a_size_stays_a_size() -> None:
    assert isinstance(rebuilt(torch.Size([2, 3]), torch.clone), torch.Size)


class Node:
    """A plain object, which may hold itself."""

    def __init__(self, x: Any, other: Any = None) -> None:
        self.x, self.other = x, other


def test_objects_that_hold_tensors_are_copied() -> None:
    node = Node(A, {"inner": Node([B], "text")})
    new = rebuilt((node, node), lambda tensor: tensor * 2)
    assert new[0] is new[1] is not node
    assert torch.equal(new[0].x, 2 * A)
    assert torch.equal(new[0].other["inner"].x[0], 2 * B)
    assert node.x is A
    assert node.other["inner"].x[0] is B


def test_objects_without_numbers_stay_themselves() -> None:
    node = Node("x", Node(3))
    assert rebuilt([node], torch.clone)[0] is node
    assert rebuilt([torch.relu, Node], torch.clone) == [torch.relu, Node]


def test_circles_end() -> None:
    node = Node(A)
    node.other = Node(B, node)
    new = rebuilt(node, torch.clone)
    assert new.other.other is new is not node
    empty = Node(None)
    empty.other = empty
    assert rebuilt(empty, torch.clone) is empty


def test_arrays_are_copied() -> None:
    array = np.arange(3.0)
    (new,) = rebuilt([array], torch.clone)
    new += 1
    assert array.tolist() == [0, 1, 2]


def test_what_a_partial_binds_is_replaced() -> None:
    x = torch.ones(2)
    bound = functools.partial(torch.add, x, alpha=2)
    copied = rebuilt((bound, x), {x: torch.zeros(2)}.__getitem__, functions=True)
    assert copied[0](torch.ones(2)).tolist() == [2, 2]
    assert copied[0].args[0] is copied[1]
    assert bound(torch.ones(2)).tolist() == [3, 3]


def test_what_a_closure_holds_is_replaced_and_what_it_counts_is_shared() -> None:
    x, calls = torch.ones(2), [0]

    def scaled(y: torch.Tensor, *, by: float = 3.0) -> torch.Tensor:
        calls[0] += 1
        return by * x * y

    copied = rebuilt(scaled, lambda _: torch.full((2,), 2.0), functions=True)
    assert copied(torch.ones(2)).tolist() == [6, 6]
    assert scaled(torch.ones(2)).tolist() == [3, 3]
    assert calls == [2]


def test_a_function_that_holds_no_tensor_is_itself() -> None:
    def recursive(depth: int) -> int:
        return recursive(depth - 1) if depth else 0

    assert rebuilt(recursive, torch.zeros_like, functions=True) is recursive
