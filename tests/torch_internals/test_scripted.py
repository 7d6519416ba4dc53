"""What code of torch.jit keeps, and how a check points it to other tensors and runs it as it is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.torch_internals.modules import forward_of_class, inner_modules
from torch_gradcheck.torch_internals.scripted import (
    attributes_in_code,
    is_scripted,
    optimises_scripts,
    set_optimises_scripts,
    write_attribute,
)
from torch_gradcheck.torch_internals.tensors import swap

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Counts(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 1)
        self.calls, self.inner = 0, nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(nn.functional.linear(x, self.weight, self.bias))


def test_attributes_are_read_and_written() -> None:
    module = torch.jit.script(Counts())
    module(torch.ones(2))
    kept = attributes_in_code(module)
    assert kept["calls"] == 1
    assert kept["weight"] is module.weight
    write_attribute(module, "calls", 7)
    assert module.calls == 7


def test_code_reads_the_tensor_that_it_is_pointed_to() -> None:
    module = torch.jit.script(Counts()).double()
    weight, other = module.weight, torch.zeros(1, 2, dtype=torch.float64)
    swap(weight, other)
    write_attribute(module, "weight", weight)
    assert module.weight is weight
    assert module(torch.ones(2).double()) == module.inner(module.bias)
    swap(weight, other)
    write_attribute(module, "weight", weight)
    assert module.weight is weight
    assert weight.abs().sum() > 0


@pytest.mark.parametrize("compile_it", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(1, 2))])
def test_what_is_compiled(compile_it: object) -> None:
    module = compile_it(Counts())  # type: ignore[operator]
    assert is_scripted(module)
    assert is_scripted(inner_modules(module)[0])
    assert not is_scripted(nn.Linear(1, 1))
    assert forward_of_class(module) is not nn.Module.forward


def test_the_forward_of_a_class_is_the_one_that_is_written() -> None:
    assert forward_of_class(Counts()) is Counts.forward
    assert forward_of_class(nn.Module()) is nn.Module.forward


class OfItsOwn(Counts):
    """Compiled by one test alone: torch.jit keeps what it learns by class."""


def test_nothing_is_learned_while_code_is_not_optimised() -> None:
    module, before = torch.jit.script(OfItsOwn()), optimises_scripts()
    set_optimises_scripts(False)
    try:
        assert not optimises_scripts()
        for _ in range(4):
            module(torch.ones(2))
    finally:
        set_optimises_scripts(before)
    with pytest.raises(RuntimeError):  # there is no plan
        module._c.get_debug_state()
