"""The backward of compiled code is on trial, eager J the reference, and mistakes of the compiler are named as such."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.backends import SPOILS, backend, in_float32, refusing, spoiled
from torch_gradcheck import GradientMismatchError, GradientMonitor, Report, check_closure, check_module
from torch_gradcheck.torch_internals.compiler import CompiledCode, compiler_as_it_was

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
"""Torch's own, in its compiler."""

BATCH = (torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2]))

WRONG = SPOILS["scaled"]


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Inner(), Inner(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


def wrapped(model: Any, **options: Any) -> nn.Module:
    compiled: nn.Module = torch.compile(model, **options)
    return compiled


def checked(model: nn.Module, **options: Any) -> Report:
    report = check_module(model, nn.CrossEntropyLoss(), BATCH, **options)
    for text in (str(report), report.to_json()):
        assert "_orig_mod" not in text
    return report


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_a_wrong_compiled_backward_is_a_mistake_of_the_compiler(spoil: Any) -> None:
    report = checked(wrapped(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), backend=backend(spoil)))
    assert not report.passed
    assert report.culprit == ""
    assert "the compiler" in report.notes[0]
    assert "is right" in report.notes[0]


def compiled_in_place(model: nn.Module, **options: Any) -> nn.Module:
    model.compile(**options)  # type: ignore[no-untyped-call]
    return model


WAYS: dict[str, Callable[..., nn.Module]] = {"torch.compile(model)": wrapped, "model.compile()": compiled_in_place}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("spoil", [WRONG, list], ids=["wrong", "right"])
def test_both_ways_to_compile_are_on_trial(way: Callable[..., nn.Module], spoil: Any) -> None:
    report = checked(way(Net(), backend=backend(spoil)))
    assert report.passed == (spoil is list)
    assert report.culprit == (None if spoil is list else "")
    assert any("on trial is the backward of compiled code" in note for note in report.notes)
    assert report["first.linear.weight"].name == "first.linear.weight"


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_of_several_compiled_modules_the_wrong_one_is_named(way: Callable[..., nn.Module]) -> None:
    model = Net()
    model.first = way(model.first, backend=backend())  # type: ignore[assignment]
    model.second = way(model.second, backend=backend(WRONG))  # type: ignore[assignment]
    report = checked(model)
    assert report.culprit == "second"
    assert report.notes[0].startswith("the compiler (compiler_fn) makes the mistake, in the backward of second (Inner)")


def test_the_innermost_of_nested_compiled_modules_is_named() -> None:
    model = Net()
    wrong = backend(WRONG)
    model.first = wrapped(model.first, backend=wrong)  # type: ignore[assignment]
    assert checked(wrapped(model, backend=wrong)).culprit == "first"


def test_an_outer_compiled_module_is_named_where_the_inner_one_is_right() -> None:
    model = Net()
    model.first = wrapped(model.first, backend="eager")  # type: ignore[assignment]
    report = checked(wrapped(model, backend=backend(WRONG)))
    assert report.culprit == ""
    assert "culprit: the compiled model" in str(report)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, labels)


def test_a_compiled_loss_is_on_trial() -> None:
    loss = torch.compile(cross_entropy, backend=backend(WRONG))
    report = check_module(Net(), loss, BATCH)
    assert report.culprit == "loss_fn"
    assert "the function cross_entropy" in report.notes[0]
    module: Any = torch.compile(nn.CrossEntropyLoss(), backend=backend(WRONG))
    assert check_module(Net(), module, BATCH).culprit == "loss_fn"
    assert check_module(Net(), torch.compile(cross_entropy, backend="aot_eager"), BATCH).passed


@pytest.mark.parametrize("spoil", [WRONG, list], ids=["wrong", "right"])
def test_a_compiled_function_in_a_forward_is_on_trial(spoil: Any) -> None:
    @torch.compile(backend=backend(spoil))  # type: ignore[untyped-decorator]
    def squashed(x: Tensor) -> Tensor:
        return x.tanh() * x

    class Calling(Inner):
        def forward(self, x: Tensor) -> Tensor:
            return squashed(self.linear(x))  # type: ignore[no-any-return]

    model = Net()
    model.second = Calling()
    report = checked(model)
    assert report.culprit == (None if spoil is list else "second")
    note = next(note for note in report.notes if "squashed" in note)
    assert "test_by_compiled_code.py:" in note


def test_a_compiled_closure_is_on_trial() -> None:
    model = Net()
    closure = torch.compile(lambda: nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]), backend=backend(WRONG))
    report = check_closure(model, closure)
    assert report.culprit == "loss_fn"
    assert "the compiler" in report.notes[0]


def test_a_backend_that_raises_leaves_the_eager_backward_on_trial_and_gets_a_note() -> None:
    model = Net()
    model.first = wrapped(model.first, backend=refusing)  # type: ignore[assignment]
    model.second = wrapped(model.second, backend=backend(WRONG))  # type: ignore[assignment]
    report = checked(model)
    assert report.culprit == "second", "the other part is on trial all the same"
    note = next(note for note in report.notes if "not put on trial" in note)
    assert "first (Inner) by refusing: compiling it in float64 raises" in note
    assert "no kernels for float64" in note
    assert 'gradients="grad"' in note


def test_a_backend_of_float32_is_not_accused() -> None:
    report = checked(wrapped(Net(), backend=in_float32))
    assert report.passed
    assert any("its backend may leave the precision" in note and 'gradients="grad"' in note for note in report.notes)


class Casting(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float().softmax(-1)


@pytest.mark.parametrize("spoil", [WRONG, list], ids=["wrong", "right"])
def test_casts_inside_compiled_code_are_raised_to_the_precision_of_the_check(spoil: Any) -> None:
    report = checked(wrapped(Casting(), backend=backend(spoil)))
    assert any(note.startswith("on trial is the backward of compiled code") for note in report.notes)
    assert report.passed == (spoil is list)
    assert report.culprit == (None if spoil is list else "")


def test_casts_beside_compiled_code_keep_it_from_being_put_on_trial_which_a_note_says() -> None:
    report = check_module(
        wrapped(Net(), backend=backend()), lambda scores, labels: nn.functional.nll_loss(scores.half(), labels), BATCH
    )
    assert report.passed
    assert any("not put on trial" in note and 'gradients="grad"' in note for note in report.notes)


def test_a_compiled_forward_that_gives_another_loss_is_said() -> None:
    report = checked(wrapped(Net(), backend=backend(forward=lambda output: 1.25 * output)))
    assert not report.passed
    assert report.culprit == ""
    assert any("the compiled forward gives another loss" in note for note in report.notes)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]  # 2 is missing


class WithWrongFunction(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.linear(x)).tanh()  # type: ignore[no-any-return, no-untyped-call]


def test_a_mistake_that_eager_code_makes_as_well_is_not_the_compilers() -> None:
    model = Net()
    model.second = WithWrongFunction()
    report = checked(wrapped(model, backend="aot_eager"))
    assert report.culprit == "second"
    assert "the compiler" not in report.notes[0]
    assert "Doubled" in report.notes[0]


def test_a_mistake_of_the_compiler_and_one_of_eager_code_are_both_told() -> None:
    model = Net()
    model.second = WithWrongFunction()
    model.head = wrapped(model.head, backend=backend(spoiled(0, lambda gradient: 3 * gradient)))  # type: ignore[assignment]
    report = checked(model)
    assert report.culprit == "head"
    assert "the compiler" in report.notes[0]
    assert any("besides" in note and "Doubled" in note for note in report.notes)


def doubling(x: Tensor) -> Tensor:
    return Doubled.apply(x) if not torch.compiler.is_compiling() else x * 2  # type: ignore[no-any-return, no-untyped-call]


class WrongWhereEager(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return doubling(self.linear(x)).tanh()


def test_a_mistake_that_only_eager_code_makes_passes_with_a_note() -> None:
    model = Net()
    model.second = WrongWhereEager()
    report = checked(wrapped(model, backend="aot_eager"))
    assert report.passed
    assert any("right only where the model is compiled" in note for note in report.notes)
    assert not checked(model).passed


class Breaking(Net):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        torch._dynamo.graph_break()
        return self.head(self.second(hidden))  # type: ignore[no-any-return]


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "nested modules": Net,
    "graph break": Breaking,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)),
    "layer norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 4), nn.Flatten()),
    "parametrised": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
}


@pytest.mark.parametrize("name", ["eager", "aot_eager"])
@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT.keys())
def test_no_right_compiled_model_is_accused(build: Callable[[], nn.Module], name: str) -> None:
    report = checked(wrapped(build(), backend=name), mode="train")
    assert report.passed
    assert any(note.startswith("on trial is the backward of compiled code") for note in report.notes)


def test_other_random_numbers_of_the_compiler_are_no_mistake() -> None:
    class Drawing(Net):
        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_compiling():
                torch.rand(3)
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    report = checked(wrapped(Drawing(), backend="aot_eager"), mode="train")
    assert report.passed
    assert any("it draws other random numbers" in note for note in report.notes)


def test_names_with_the_wrapper_of_torch_compile_are_understood() -> None:
    model = Net()
    model.second = wrapped(model.second, backend="eager")  # type: ignore[assignment]
    compiled = wrapped(model, backend="eager")
    names = [row.name for row in checked(compiled)]
    assert names == [name for name, _ in Net().named_parameters()]
    assert [row.name for row in checked(compiled, include="second.*")] == ["second.linear.weight", "second.linear.bias"]
    assert len(checked(compiled, include="_orig_mod.second._orig_mod.*")) == 2
    nn.functional.cross_entropy(model(BATCH[0]), BATCH[1]).backward()
    grads = {name: parameter.grad for name, parameter in compiled.named_parameters()}
    assert checked(compiled, gradients=grads).passed


@pytest.mark.parametrize("spoil", [WRONG, list], ids=["wrong", "right"])
def test_a_monitor_puts_the_compiled_backward_on_trial(spoil: Any) -> None:
    model = wrapped(Net(), backend=backend(spoil))
    loss_fn = nn.CrossEntropyLoss()
    with GradientMonitor(model, loss_fn, on_mismatch="record") as monitor:
        loss_fn(model(BATCH[0]), BATCH[1]).backward()
        monitor.step(BATCH)
    assert monitor.reports[0].passed == (spoil is list)
    assert monitor.reports[0].culprit == (None if spoil is list else "")


def test_a_monitor_of_the_module_inside_sees_the_mistake_in_grad() -> None:
    inside, loss_fn = Net(), nn.CrossEntropyLoss()
    model = wrapped(inside, backend=backend(WRONG))
    with GradientMonitor(inside, loss_fn) as monitor:
        loss_fn(model(BATCH[0]), BATCH[1]).backward()
        with pytest.raises(GradientMismatchError, match="grad"):
            monitor.step(BATCH)


def test_the_recipe_finds_what_could_not_be_put_on_trial() -> None:
    model = wrapped(Casting(), backend=backend(WRONG))
    nn.CrossEntropyLoss()(model(BATCH[0]), BATCH[1]).backward()
    assert not checked(model, gradients="grad").passed


# Nothing of the compiler's changes ------------------------------------------------------------------------------------


def compilers_state() -> Any:
    from torch._dynamo import convert_frame, eval_frame, pgo, utils

    return copy.deepcopy(
        (
            utils.counters,
            convert_frame.FRAME_COUNTER,
            convert_frame.FRAME_COMPILE_COUNTER,
            pgo._CODE_STATE,
            torch._dynamo.config.get_config_copy(),
            eval_frame._stance,
        )
    ), eval_frame._callback_from_stance


LIMIT = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
"""The setting of how often a function may be compiled; torch 2.6 has another name for it."""


@pytest.mark.parametrize("ran", [True, False], ids=["ran before", "never ran"])
@torch._dynamo.config.patch(**{LIMIT: 3})
def test_the_users_compiled_code_and_the_compilers_counters_stay_as_they_were(ran: bool) -> None:
    compilations = []

    def counting(graph: Any, _: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    model = wrapped(Breaking(), backend=counting)
    if ran:
        model(BATCH[0])
    before, code, attributes = compilers_state(), CompiledCode(), dict(vars(model))
    for _ in range(4):  # more often than a function may be compiled
        checked(model)
    assert compilers_state() == before
    assert dict(vars(model)) == attributes
    assert not code.ran([])
    compilations.clear()
    model(BATCH[0])
    assert len(compilations) == (0 if ran else 2), "what was compiled before still fits, nothing else is there"


def test_what_an_interrupt_leaves_is_put_back() -> None:
    def interrupted(graph: Any, example_inputs: Any) -> Any:
        raise KeyboardInterrupt

    model = wrapped(Net(), backend=interrupted)
    nn.Linear(1, 1)(torch.ones(1))
    before = compilers_state()
    with pytest.raises(KeyboardInterrupt):
        checked(model)
    assert compilers_state() == before
    assert model.get_parameter("_orig_mod.head.weight").dtype is torch.float32


def test_limits_of_the_compiler_do_not_count_a_check() -> None:
    wrapped(Net(), backend="eager")(BATCH[0])
    limit = getattr(torch._dynamo.config, LIMIT)
    with compiler_as_it_was(draws_as_eager=False):
        assert getattr(torch._dynamo.config, LIMIT) > limit
    assert getattr(torch._dynamo.config, LIMIT) == limit


def test_a_model_without_compiled_parts_takes_no_evaluation_more() -> None:
    plain = checked(Net())
    assert "torch._dynamo" in sys.modules
    compiled = checked(wrapped(Net(), backend="eager"))
    torch.manual_seed(0)
    again = checked(Net())
    assert not any("compiled" in note for note in again.notes)
    assert again.evaluations <= plain.evaluations < compiled.evaluations + 50


has_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="inductor needs a C++ compiler"
)


@pytest.mark.slow
@has_compiler
@pytest.mark.filterwarnings("ignore")  # of inductor's own imports
@pytest.mark.parametrize("build", RIGHT.values(), ids=RIGHT.keys())
def test_no_right_model_is_accused_with_inductor(build: Callable[[], nn.Module]) -> None:
    report = checked(wrapped(build()), mode="train")
    assert report.passed
    assert any(note.startswith("on trial is the backward of compiled code") for note in report.notes)
