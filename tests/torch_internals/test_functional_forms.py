"""What functional forms are for: a record of J is evaluated many times, and no operation in it may write."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torch_gradcheck.torch_internals.functional_forms import OnCopies, mutated_arguments, without_side_effects

aten = torch.ops.aten


def test_mutated_arguments_are_those_that_are_written_to() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    assert [t is x for t in mutated_arguments(aten.add_.Tensor, (x, y), {})] == [True]
    assert [t is x for t in mutated_arguments(aten.add.out, (y, y), {"out": x})] == [True]
    assert mutated_arguments(aten.add.Tensor, (x, y), {}) == []


FORMS: dict[str, tuple[Any, Any]] = {
    "add_": (aten.add_.Tensor, aten.add.Tensor),
    "relu_": (aten.relu_.default, aten.relu.default),
    "out": (aten.add.out, aten.add.Tensor),
}


@pytest.mark.parametrize(("func", "form"), FORMS.values(), ids=FORMS)
def test_a_mutating_operation_has_its_functional_form(func: Any, form: Any) -> None:
    assert without_side_effects(func, plain=True) is form


def test_an_operation_without_a_functional_form_runs_on_copies() -> None:
    x = torch.zeros(2)
    function = without_side_effects(aten.add_.Tensor, plain=False)
    assert isinstance(function, OnCopies)
    assert function.__name__ == "add_"
    (new,) = function(x, torch.ones(2))
    assert torch.equal(new, torch.ones(2))
    assert torch.equal(x, torch.zeros(2))


def test_copies_are_followed_by_the_other_results() -> None:
    """batch_norm's running statistics, then its output."""
    names = [argument.name for argument in aten.std_mean.correction_out._schema.arguments if argument.alias_info]
    x, outs = torch.arange(4.0), {name: torch.zeros(()) for name in names}
    std, mean = OnCopies(aten.std_mean.correction_out)(x, None, **outs)
    assert float(mean) == 1.5
    assert float(std) == pytest.approx(1.2909944)
    assert all(float(out) == 0 for out in outs.values())
