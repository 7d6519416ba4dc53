from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.unrepeatable import Act, Spoil, adds_up, blocks, intact, noisy, summed_in_any_order, swish
from torch_gradcheck.gradients.backward_record import BLOCK, BackwardRecord, start_of_difference
from torch_gradcheck.gradients.watched_backwards import Place
from torch_gradcheck.torch_internals.autograd import current_backward

X = torch.linspace(-1, 1, 32).reshape(8, 4)
LEVEL = 1e-6


def recorded(model: nn.Module, loss: Callable[[Tensor], Tensor] = Tensor.sum) -> BackwardRecord:
    record = BackwardRecord(model)
    with record:
        torch.autograd.grad(loss(model(X.double())), [p for p in model.parameters() if p.requires_grad])
    return record


def start(model: nn.Module, loss: Callable[[Tensor], Tensor] = Tensor.sum) -> Place | None:
    one, other = recorded(model, loss), recorded(model, loss)
    event = start_of_difference(one, other, LEVEL)
    return None if event is None else one.place(event.node)


def test_equal_runs_have_no_difference() -> None:
    assert start(blocks(intact, intact).double()) is None


def test_the_node_is_named_with_its_function_and_module() -> None:
    model = blocks(intact, noisy(), intact).double()
    place = start(model)
    assert place == Place("SwishBackward", model[2].act.function, "2.act")


def test_rounding_all_the_way_does_not_hide_it() -> None:
    place = start(blocks(noisy(), summed_in_any_order()).double())
    assert place is not None
    assert place.module == "1.act"


def test_rounding_alone_is_named_where_nothing_else_differs() -> None:
    place = start(blocks(intact, summed_in_any_order()).double())
    assert place is not None
    assert place.module == "2.act"


def test_terms_that_cancel_do_not_make_an_operation_the_start() -> None:
    """A relative error of 1e-9 in each of two terms is one of 1 in their difference."""

    class Cancelling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.act = nn.Parameter(torch.ones(4, dtype=torch.float64)), Act(noisy(1e-9))

        def forward(self, x: Tensor) -> Tensor:
            scaled = x * self.weight
            return self.act(scaled) - swish(intact).apply(scaled) * (1 + 1e-9)  # type: ignore[no-any-return]

    place = start(Cancelling())
    assert place is not None
    assert place.module == "act"


def test_outside_of_every_module() -> None:
    function = swish(noisy())
    place = start(blocks(intact).double(), lambda y: function.apply(y).sum())
    assert place == Place("SwishBackward", function, None)


def test_what_changes_a_gradient_on_its_way_reaches_a_node() -> None:
    model, spoil = nn.Linear(4, 2).double(), noisy()

    def loss(y: Tensor) -> Tensor:
        y.register_hook(spoil)
        return y.square().sum()

    one, other = recorded(model, loss), recorded(model, loss)
    event = start_of_difference(one, other, LEVEL)
    assert event is not None
    assert not event.leaves
    assert one.place(event.node).node == "AddmmBackward0"


def test_other_nodes_cannot_be_compared() -> None:
    one = recorded(blocks(intact).double())
    other = recorded(blocks(noisy(), intact).double())
    assert start_of_difference(one, other, LEVEL) is None


class Given(nn.Module):
    """Multiplies its parameter, and has a gradient of any kind pass."""

    def __init__(self, weight: Tensor, spoil: Spoil) -> None:
        super().__init__()
        self.weight, self.act = nn.Parameter(weight), Act(spoil)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.weight)


KINDS = {
    "long": torch.linspace(-1, 1, 3 * BLOCK + 5, dtype=torch.float64),
    "transposed": torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(5, 12).T,
    "one number": torch.tensor(0.3, dtype=torch.float64),
    "float32": torch.linspace(-1, 1, 50),
    "bfloat16": torch.linspace(-1, 1, 50, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("weight", KINDS.values(), ids=KINDS)
def test_gradients_of_any_kind(weight: Tensor) -> None:
    assert start(Given(weight, intact)) is None
    place = start(Given(weight, adds_up()))
    assert place is not None
    assert place.module == "act"


def test_entries_that_change_places_show() -> None:
    flips: list[None] = []

    def swapped(gradient: Tensor) -> Tensor:
        flips.append(None)
        return gradient.flip(0) if len(flips) % 2 else gradient

    assert start(Given(torch.linspace(-1, 1, 9, dtype=torch.float64), swapped)) is not None


def test_complex_and_sparse_gradients() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, dtype=torch.complex128))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight.conj() * x).abs()

    assert start(Complex()) is None
    embedding = nn.Embedding(3, 2, sparse=True).double()
    model = nn.Sequential(embedding)
    one, other = BackwardRecord(model), BackwardRecord(model)
    for record in (one, other):
        with record:
            torch.autograd.grad(model(torch.tensor([2, 0, 2])).sum(), [embedding.weight])
    assert start_of_difference(one, other, LEVEL) is None
    assert all(each is not None for event in one.events for each in event.prints)


def test_nothing_is_left_behind_where_the_backward_raises() -> None:
    model, before = blocks(intact).double(), current_backward()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    features = model[0](X.double())  # a graph of the caller's, who goes on to use it
    record = BackwardRecord(model)

    def interrupted() -> None:
        with record:
            torch.autograd.grad(features.sum(), [model[0].weight], retain_graph=True)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        interrupted()
    seen = len(record.events)
    assert current_backward() is before
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    torch.autograd.grad(features.sum(), [model[0].weight])
    assert len(record.events) == seen > 0
