"""What lies in containers and objects is read without running a line of theirs."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import check_module
from torch_gradcheck.borrowing.attributes import AttributeStates
from torch_gradcheck.borrowing.builtin_content import attributes_of, content_of, items_of, reader_of, refill, size_of
from torch_gradcheck.borrowing.captures import captures_of
from torch_gradcheck.objective.nested import rebuilt, tensors_in


def raises(*_: Any, **__: Any) -> Any:
    raise NotImplementedError("code of the user's ran")


HOSTILE = ["__len__", "__iter__", "__getitem__", "__eq__", "__bool__", "values", "items", "keys", "clear", "copy"]
"""Methods that a class has every right to raise in."""


def hostile(base: type, *arguments: Any, **more: Any) -> Any:
    """An instance of a subclass of `base`, built first and made hostile then."""
    cls: Any = type(f"Hostile{base.__name__}", (base,), {"__hash__": object.__hash__})
    instance = cls(*arguments)
    for name, method in {**dict.fromkeys(HOSTILE, raises), **more}.items():
        setattr(cls, name, method)
    return instance


class Lazy:
    """A proxy that would build what it stands for at the first look."""

    __class__ = property(raises)  # type: ignore[assignment]
    __dict__ = property(raises)  # type: ignore[assignment]


class Watched:
    """An object whose attributes may not be asked for."""

    def __init__(self, held: Any) -> None:
        object.__setattr__(self, "held", held)

    __getattribute__ = raises


ITEMS = {
    "tuple": (tuple, ([1, 2],)),
    "list": (list, ([1, 2],)),
    "deque": (deque, ([1, 2],)),
    "dict": (dict, ({"a": 1, "b": 2},)),
    "ordered": (OrderedDict, ({"a": 1, "b": 2},)),
}


@pytest.mark.parametrize(("base", "arguments"), ITEMS.values(), ids=ITEMS)
def test_items_are_those_of_the_builtin_type(base: type, arguments: Any) -> None:
    container = hostile(base, *arguments)
    assert items_of(container) == [1, 2]
    assert size_of(container) == 2
    assert reader_of(container)() == [*("a", "b")[: 2 * issubclass(base, dict)], 1, 2]


@pytest.mark.parametrize("base", [list, deque, dict, OrderedDict], ids=lambda base: base.__name__)
def test_content_is_put_back_by_the_builtin_type(base: type) -> None:
    arguments = ITEMS["dict" if issubclass(base, dict) else "list"][1]
    container = hostile(base, *arguments, __setitem__=raises, extend=raises, update=raises)
    content = content_of(container)
    refill(container, type(content)())
    assert items_of(container) == []
    refill(container, content)
    assert items_of(container) == [1, 2]


def test_a_view_of_a_dict_and_a_default_are_known() -> None:
    assert items_of(MappingProxyType({"a": 3})) == [3]
    counts = defaultdict(list, {"a": [1]})
    refill(counts, content_of(counts))
    assert counts["b"] == []


def test_attributes_are_read_past_the_class() -> None:
    assert attributes_of(Watched(3)) == {"held": 3}
    assert attributes_of(Lazy()) is None
    assert attributes_of(3) is None


MAKERS = {
    "tuple": lambda: hostile(tuple, [1]),
    "list": lambda: hostile(list, [1]),
    "dict": lambda: hostile(dict, {"a": 1}),
    "proxy": Lazy,
    "object": lambda: Watched(1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_walk_runs_none_of_it(name: str) -> None:
    weight, held = torch.ones(1), MAKERS[name]()
    net = nn.Linear(1, 1)
    vars(net).update(held=held, watched=Watched([weight]))
    found = captures_of(net, lambda: held)
    assert id(weight) in found.tensors
    states = AttributeStates(found)
    states.learn_caches()
    states.rewind()
    states.restore()
    assert vars(net)["held"] is held


def test_what_lies_inside_of_a_hostile_container_is_found() -> None:
    weight = torch.ones(1)
    net = nn.Linear(1, 1)
    net.held = hostile(tuple, [hostile(list, [weight])])
    assert id(weight) in captures_of(net).tensors


class Named(tuple[Any, ...]):
    """A tuple whose constructor asks for something else than its items."""

    def __new__(cls, first: Any, second: Any) -> Named:
        return super().__new__(cls, (first, second))


@pytest.mark.parametrize("name", ["tuple", "proxy", "object"])  # lists and dicts are copied, by their own methods
def test_a_batch_or_an_output_that_holds_it_is_looked_through(name: str) -> None:
    held = MAKERS[name]()
    weight = torch.ones(1)
    assert [float(tensor) for _, tensor in tensors_in([held, weight])] == [1]
    assert rebuilt([held, weight], torch.neg)[0] is held


def test_tuples_come_back_as_they_are_or_with_other_tensors_in_them() -> None:
    plain, with_tensor = hostile(tuple, [1, "e"]), Named(torch.ones(1), 2)
    with_tensor.note = "kept"  # type: ignore[attr-defined]
    assert rebuilt([plain], torch.neg)[0] is plain
    assert tensors_in(plain) == []
    new = rebuilt(with_tensor, torch.neg)
    assert type(new) is Named
    assert (float(new[0]), new[1], new.note) == (-1, 2, "kept")
    found = rebuilt(torch.ones(2, 3).max(dim=1), torch.neg)
    assert type(found) is torch.return_types.max
    assert found.values.tolist() == [-1, -1]


class Irreps(nn.Linear):
    """Holds a description of itself, whose length is not defined."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.irreps = hostile(tuple, [hostile(tuple, [2, "0e"]), hostile(tuple, [1, "1o"])])


@pytest.mark.parametrize("wrong", [False, True])
def test_a_model_that_holds_a_tuple_without_length(wrong: bool) -> None:
    torch.manual_seed(0)
    model = Irreps()
    if wrong:
        model.bias.register_hook(lambda g: 1.01 * g)
    report = check_module(model, Tensor.sum, torch.randn(4, 3))
    assert [row.name for row in report.mismatches] == (["bias"] if wrong else [])
    assert report.proven != wrong
