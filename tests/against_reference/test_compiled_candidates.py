"""A candidate that went through torch.compile is judged as compiled code; the compiler is named where that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.backends import SPOILS, backend
from torch_gradcheck import Report, check_function, check_module

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""Torch's own, in its compiler."""

WRONG = SPOILS["scaled"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


def plain(x: Tensor, w: Tensor) -> Tensor:
    return nn.functional.silu(x @ w).sum(-1).tanh()


def inputs() -> list[Tensor]:
    return [torch.randn(size).bfloat16().requires_grad_() for size in ((6, 5), (5, 4))]


def wrong_rows(report: Report) -> list[str]:
    return [row.name for row in report if row.status == "mismatch"]


@pytest.mark.slow
def test_a_right_compiled_function_passes_beside_its_eager_one_and_a_note_says_that_it_ran_compiled() -> None:
    report = check_function(torch.compile(plain, backend=backend()), inputs(), reference=plain)
    assert report.passed, str(report)
    (note,) = [note for note in report.notes if "on trial is compiled code" in note]
    assert "the function plain" in note
    assert "the reference ran eagerly" in note


def test_a_compiled_function_that_is_wrong_is_a_mistake_of_the_compiler() -> None:
    report = check_function(torch.compile(plain, backend=backend(WRONG)), inputs(), reference=plain)
    assert wrong_rows(report) == ["x"]
    assert report.culprit == "plain"
    assert report.notes[0].startswith("the compiler (compiler_fn) makes the mistake, in the function plain")


def test_a_wrong_compiled_forward_is_found_in_the_output() -> None:
    compiled = torch.compile(plain, backend=backend(forward=lambda output: 1.25 * output))
    report = check_function(compiled, inputs(), reference=plain)
    assert wrong_rows(report) == ["output"]
    assert "the compiler" in report.notes[0]


def test_a_mistake_that_eager_code_makes_as_well_is_not_the_compilers() -> None:
    def off(x: Tensor, w: Tensor) -> Tensor:
        return 1.25 * plain(x, w)

    report = check_function(torch.compile(off, backend=backend()), inputs(), reference=plain)
    assert wrong_rows(report) == ["x", "w", "output"]
    assert not any("the compiler" in note for note in report.notes)


class Squashed(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = Squashed(4), Squashed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x))  # type: ignore[no-any-return]


BATCH = (torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).bfloat16(), torch.tensor([0, 1, 2, 0, 1, 2]))


def in_place(model: nn.Module, spoil: Any) -> nn.Module:
    compiled = copy.deepcopy(model)
    compiled.first.compile(backend=backend(spoil))  # type: ignore[operator]
    compiled.head.compile(backend=backend())  # type: ignore[operator]
    return compiled


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("spoil", [WRONG, list], ids=["wrong", "right"])
def test_of_several_compiled_modules_the_wrong_one_is_named(spoil: Any) -> None:
    model = Net().bfloat16()
    report = check_module(in_place(model, spoil), nn.CrossEntropyLoss(), BATCH, reference=model)
    assert wrong_rows(report) == ([] if spoil is list else ["first.linear.weight"])
    assert report.culprit == (None if spoil is list else "first")


def test_what_was_compiled_for_the_check_is_forgotten_and_what_the_caller_compiled_stays() -> None:
    runs: list[str] = []

    def counting(graph: Any, example: Any) -> Any:
        runs.append("compiled")
        return graph.forward

    compiled, given = torch.compile(plain, backend=counting), inputs()
    before = compiled(*given).detach()
    assert runs == ["compiled"]
    assert check_function(compiled, given, reference=plain).passed
    runs.clear()
    assert torch.equal(compiled(*given).detach(), before)
    assert not runs, "the caller's compiled code is still there"


def test_what_torch_compile_left_as_it_is_gets_a_note() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).bfloat16()
    compiled = copy.deepcopy(model)
    compiled[0].compile(backend=backend(WRONG))  # type: ignore[no-untyped-call]
    report = check_module(compiled, nn.CrossEntropyLoss(), BATCH, reference=model)
    assert report.passed
    assert any("nothing in it ran compiled: 0 (Linear)" in note for note in report.notes)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("factor", [1.0, 1.25], ids=["right", "wrong"])
def test_scripted_code_is_compared_as_it_is_written_and_a_note_says_so(factor: float) -> None:
    def scaled(x: Tensor, w: Tensor, factor: float) -> Tensor:
        return factor * torch.nn.functional.silu(x @ w).sum(-1).tanh()

    kernel = torch.jit.script(scaled)  # type: ignore[no-untyped-call]
    report = check_function(kernel, (*inputs(), factor), reference=lambda x, w, factor: plain(x, w))
    assert report.passed == (factor == 1)
    assert any("torch.jit ran as it is written" in note for note in report.notes)
