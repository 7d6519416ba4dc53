"""Tensors besides parameters that are part of θ: which they are, their names, and what stands for them."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.batch import BatchCopy
from torch_gradcheck.objective.loss import ClosureLoss, MeanLoss, ModuleLoss
from torch_gradcheck.objective.theta import check_selection, theta_of
from torch_gradcheck.objective.variables import Variable, distinct, not_perturbed_in, variables_in
from torch_gradcheck.reporting.facts import Role


def leaf() -> Tensor:
    return torch.ones(2, requires_grad=True)


Pair = namedtuple("Pair", ["a", "b"])


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (lambda x: x, "x"),
        (lambda x: [torch.ones(2), (x, 3)], "x[1][0]"),
        (lambda x: {"k": {2: x}}, "x['k'][2]"),
        (lambda x: Pair(1, x), "x[1]"),
        (lambda x: SimpleNamespace(nodes=[SimpleNamespace(h=x)]), "x.nodes[0].h"),
        (lambda x: SimpleNamespace(_data={"h": x}), "x['h']"),
    ],
    ids=["itself", "a list", "mappings", "a named tuple", "objects", "a private attribute"],
)
def test_the_name_is_the_place(made: Any, name: str) -> None:
    x = leaf()
    [found] = variables_in("x", made(x))
    assert (found.name, found.tensor, found.aliases) == (name, x, ())


def test_an_object_that_refers_to_itself() -> None:
    value = SimpleNamespace(x=leaf())
    value.again = [value]
    assert [each.names for each in variables_in("batch", value)] == [("batch.x",)]


def test_several_places_are_aliases() -> None:
    x, other = leaf(), leaf()
    found = distinct([*variables_in("a", [x, other, x]), *variables_in("b", x)])
    assert [each.names for each in found] == [("a[0]", "a[2]", "b"), ("a[1]",)]


def test_only_what_requires_a_gradient_and_is_dense() -> None:
    sparse = torch.eye(2).to_sparse().requires_grad_()
    batch = [leaf(), torch.ones(2), torch.arange(2), sparse]
    assert [each.name for each in variables_in("x", batch)] == ["x[0]"]
    assert not_perturbed_in("x", batch) == ["x[3]"]


def test_a_leaf_stands_for_a_tensor_whose_grad_is_retained() -> None:
    x = leaf() * 2
    x.retain_grad()
    x.register_hook(lambda g: g)
    x.sum().backward()  # type: ignore[no-untyped-call]
    [first, second] = [variables_in("x", [x, x])[0], variables_in("x", x)[0]]
    assert first.stands_for is x
    assert first.tensor is not x
    assert first.tensor.is_leaf
    assert first.has_grad
    assert torch.equal(first.tensor.grad, torch.ones(2))  # type: ignore[arg-type]
    assert len(first.tensor._backward_hooks or {}) == 1
    assert second.tensor is not first.tensor


def test_a_tensor_that_keeps_no_grad_has_none() -> None:
    [found] = variables_in("x", leaf() * 2)
    assert not found.has_grad, "and torch does not warn"


def test_an_evaluation_may_write_to_what_is_no_leaf() -> None:
    x = leaf() * 1
    copy = BatchCopy([x, x], torch.float64, variables_in("x", [x, x]))
    one, other = copy.fresh()
    assert one is other
    assert one.grad_fn is not None
    one.mul_(2)
    assert copy.fresh()[0].tolist() == [1.0, 1.0]


def test_each_batch_of_a_window_has_its_name() -> None:
    shared, of_loss = leaf(), leaf()
    losses = [
        ModuleLoss(nn.Identity(), sum, (leaf(), shared)),
        ClosureLoss(lambda batch: batch * of_loss, shared),
    ]
    found = MeanLoss(losses, 2.0).variables
    assert [(each.names, each.role) for each in found] == [
        (("batches[0][0]",), Role.INPUT),
        (("batches[0][1]", "batches[1]"), Role.INPUT),
        (("of_loss",), Role.CAPTURED),
    ]
    assert [each.name for each in MeanLoss(losses[:1], 1.0).variables] == ["batch[0]", "batch[1]"]


# Among the parameters -------------------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(2))


def test_parameters_come_first_and_keep_their_names() -> None:
    model = Holder()
    variables = [
        Variable("x", leaf(), role=Role.INPUT),
        Variable("x", leaf(), role=Role.INPUT),
        Variable("y", model.x, role=Role.INPUT),
    ]
    theta = theta_of(model, variables=variables)
    assert [(entry.name, entry.aliases, entry.role) for entry in theta] == [
        ("x", ("y",), Role.PARAMETER),
        ("x (input)", (), Role.INPUT),
        ("x (input 2)", (), Role.INPUT),
    ]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["batch[0]"], ["batch[0]"]),
        (["batch[?]"], ["batch[0]", "batch[1]"]),
        (["batch['x']"], ["batch['x']"]),
        (["batch[[]1]"], ["batch[1]"]),
        (["[wx]"], ["x"]),
    ],
    ids=["itself", "a glob", "a key", "escaped", "one of two characters"],
)
def test_brackets_of_patterns_stand_for_themselves_too(patterns: list[str], names: list[str]) -> None:
    variables = [Variable(name, leaf(), role=Role.INPUT) for name in ("batch[0]", "batch[1]", "batch['x']")]
    found = check_selection(Holder(), patterns, (), variables)
    assert [group[0] for _, group in found] == names


def test_what_is_left_of_several_kinds() -> None:
    variables = [Variable("batch", leaf(), role=Role.INPUT)]
    with pytest.raises(InvalidRequestError, match=r"leave none of the 2 tensors \(1 parameter, 1 input\)"):
        check_selection(Holder(), (), ("*",), variables)
