"""Writes to arguments, said and unsaid: by a Function, an operator, a plain function; forward and backward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract.entry import entry
from tests.zoo.functions.case import normal
from tests.zoo.functions.memory import OldSquare
from tests.zoo.source import def_line
from torch_gradcheck import check_function

X = normal(3, 4, dtype=torch.float64)


def writing(write: Callable[[Any, Tensor], Tensor]) -> type[torch.autograd.Function]:
    """2x · 3x: x is what `write` makes of the argument, which should be twice of it."""

    class Writes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x.clone())
            return write(ctx, x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return 2 * grad

    return Writes


def by_data(_: Any, x: Tensor) -> Tensor:
    x.data.mul_(2)  # written
    return x.clone()


def in_place(_: Any, x: Tensor) -> Tensor:
    x.mul_(2)  # written
    return x.clone()


def by_numpy(_: Any, x: Tensor) -> Tensor:
    x.detach().numpy()[:] *= 2
    return x.clone()


def marked(ctx: Any, x: Tensor) -> Tensor:
    ctx.mark_dirty(x.mul_(2))
    return x


def written_line(function: Callable[..., Any]) -> str:
    """The line of a function of this file with the comment "written", as messages show it."""
    lines = Path(__file__).read_text().splitlines()
    first = function.__code__.co_firstlineno
    line = next(number for number in range(first, len(lines)) if lines[number - 1].endswith("# written"))
    return f"(tests/contract/test_inputs_kept.py:{line})"


@pytest.mark.parametrize("write", [by_data, in_place], ids=lambda each: each.__name__)
def test_a_function_that_does_not_mark_what_it_writes_to_fails_with_the_line(write: Any) -> None:
    found = entry("inputs_kept", writing(write).apply, (X,))
    assert found.status == "failed"
    assert found.message.startswith("the forward writes to x and does not mark it dirty (ctx.mark_dirty): it is ")
    assert found.message.endswith(f"(12 of 12 entries differ) {written_line(write)}")


def test_a_write_by_numpy_is_seen_and_told_with_the_forward() -> None:
    function = writing(by_numpy)
    found = entry("inputs_kept", function.apply, (X,))
    assert found.status == "failed"
    line = def_line(function.forward)
    assert found.message.endswith(f"(Writes.forward at tests/contract/test_inputs_kept.py:{line})")


def test_a_function_that_marks_what_it_writes_to_passes() -> None:
    assert entry("inputs_kept", writing(marked).apply, (X,)).status == "passed"


def test_the_caller_keeps_its_tensors() -> None:
    x = X.clone()
    entry("inputs_kept", writing(by_data).apply, (x,))
    assert torch.equal(x, X)


def multiplied(x: Tensor, index: Tensor) -> Tensor:
    x.mul_(2)
    index.add_(0)
    return x[index]


def statistics(x: Tensor, running: Tensor) -> Tensor:
    running.mul_(0.9).add_(x.detach().mean(0))
    return nn.functional.batch_norm(x, running, torch.ones(4, dtype=x.dtype), training=True)


def normed(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return nn.functional.batch_norm(x, mean, variance, training=True)


def advanced(x: Tensor, index: Tensor) -> Tensor:
    y = x[index.clone()]
    index.add_(1)
    return y


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (multiplied, (X, torch.tensor([0, 2]))),
        (torch.relu_, (X,)),
        (nn.ReLU(inplace=True), (X,)),
        (statistics, (X.clone().requires_grad_(), torch.zeros(4, dtype=X.dtype))),
        (advanced, (X, torch.tensor([0, 1]))),
        (normed, (X.clone().requires_grad_(), torch.zeros(4, dtype=X.dtype), torch.ones(4, dtype=X.dtype))),
    ],
    ids=["in place", "relu_", "module in place", "running statistics", "integers", "batch norm"],
)
def test_writes_of_plain_functions_that_autograd_sees_pass(function: Any, inputs: Any) -> None:
    assert entry("inputs_kept", function, inputs).status == "passed"


def unseen(x: Tensor, index: Tensor) -> Tensor:
    y = x[index.clone()]
    index.data.fill_(0)  # written
    return y


def without_grad(x: Tensor, _: Tensor) -> Tensor:
    with torch.no_grad():
        x.clamp_(0.0)  # written
    return x * 2


@pytest.mark.parametrize(("function", "name"), [(unseen, "index"), (without_grad, "x")])
def test_writes_that_autograd_does_not_see_fail(function: Any, name: str) -> None:
    found = entry("inputs_kept", function, (X, torch.tensor([1, 2])))
    assert found.status == "failed"
    assert found.message.startswith(f"the forward writes to {name} where autograd does not see it: it is ")
    assert found.message.endswith(written_line(function))


class WritesBackward(OldSquare):
    """Its backward writes to a mask that the forward got."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.mask = mask
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.mask.data.zero_()
        return OldSquare.backward(ctx, grad), None


def test_a_backward_that_writes_to_an_argument_fails() -> None:
    found = entry("inputs_kept", WritesBackward.apply, (X, torch.ones(3, dtype=torch.bool)))
    assert found.status == "failed"
    line = WritesBackward.backward.__code__.co_firstlineno + 2
    assert found.message == (
        "the backward writes to mask: it is False at [0], should be True (3 of 3 entries differ) "
        f"(tests/contract/test_inputs_kept.py:{line})"
    )


class WritesSaved(OldSquare):
    """Its backward uses the x that it has saved for scratch space: the caller's own."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        gradient = 2 * x * grad
        x.data.zero_()
        return gradient


def test_a_backward_that_writes_to_an_argument_on_trial_is_told_and_no_error() -> None:
    report = check_function(WritesSaved.apply, (X,))
    assert [row.status for row in report] == ["match"]
    found = next(entry for entry in report.contract if entry.name == "inputs_kept")
    assert found.status == "failed"
    assert found.message.startswith("the backward writes to x: it is 0 at [")


@pytest.fixture(params=[True, False], ids=["said", "unsaid"])
def operator(request: pytest.FixtureRequest) -> Iterator[tuple[Any, bool]]:
    """An operator that writes to its counter, and whether its schema says so."""

    def counted(x: Tensor, counter: Tensor) -> Tensor:
        counter.add_(1)
        return x * 2

    with torch.library._scoped_library("torch_gradcheck_tests", "FRAGMENT") as library:
        library.define(f"counted(Tensor x, Tensor{'(a!)' if request.param else ''} counter) -> Tensor")
        library.impl("counted", counted, "CompositeImplicitAutograd")
        yield torch.ops.torch_gradcheck_tests.counted.default, request.param


def test_an_operator_says_by_its_schema_what_it_writes_to(operator: tuple[Any, bool]) -> None:
    function, says_so = operator
    found = entry("inputs_kept", function, (X.clone().requires_grad_(), torch.zeros(2)))
    assert found.status == ("passed" if says_so else "failed")
    if not says_so:
        assert "writes to counter and its schema does not say so (mutates_args): it is 1 at [0]" in found.message


def popping(d: dict[str, Tensor]) -> Tensor:
    return d.pop("a") * d["b"]


def replacing(d: dict[str, Tensor]) -> Tensor:
    product = d["a"] * d["b"]
    d["a"] = d["a"] * 2
    return product


def adding(d: dict[str, Tensor]) -> Tensor:
    d["c"] = d["a"] * d["b"]
    return d["c"]


def appending(xs: list[Tensor]) -> Tensor:
    xs.append(xs[0])
    return xs[0] * xs[1]


def emptying(xs: list[Tensor]) -> Tensor:
    return xs.pop() * xs.pop()


def counting(x: Tensor, state: tuple[Any, ...]) -> Tensor:
    state[0]["step"] += 1
    return x.sin()


@pytest.mark.parametrize(
    ("function", "inputs", "said"),
    [
        (popping, ({"a": X, "b": X + 1},), "takes d['a'] out of d"),
        (replacing, ({"a": X, "b": X + 1},), "puts another Tensor in the place of d['a']"),
        (adding, ({"a": X, "b": X + 1},), "puts d['c'] into d"),
        (appending, ([X, X + 1],), "puts xs[2] into xs"),
        (emptying, ([X, X + 1],), "takes 2 entries out of xs"),
        (counting, (X, ({"step": 0},)), "puts another int in the place of state[0]['step']"),
    ],
    ids=["pop", "replace", "add", "append", "empty", "nested"],
)
def test_what_is_changed_in_containers_is_told_by_name(function: Any, inputs: Any, said: str) -> None:
    found = entry("inputs_kept", function, inputs)
    line = f"tests/contract/test_inputs_kept.py:{function.__code__.co_firstlineno}"
    assert found.status == "failed"
    assert found.message == f"the forward {said}, which is the caller's ({function.__name__} at {line})"


def same_values(d: dict[str, Any]) -> Tensor:
    d["a"], d["n"] = d["a"].float().contiguous(), int(d["n"])
    kept = {**d, "b": d["a"] * 2}
    return kept.pop("b").sin()


def from_a_default(d: Any) -> Tensor:
    assert d["missing"] == []
    return d["a"].sin()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (same_values, ({"a": X.float(), "n": 3},)),
        (from_a_default, (defaultdict(list, a=X),)),
        (lambda **named: named.pop("a") * named["b"], {"a": X, "b": X + 1}),
        (lambda *xs: xs[0] * xs[1], (X, X + 1)),
    ],
    ids=["same values", "default", "keywords", "positions"],
)
def test_containers_that_are_the_same_or_the_functions_own_pass(function: Any, inputs: Any) -> None:
    assert entry("inputs_kept", function, inputs).status == "passed"


def test_the_caller_keeps_its_containers() -> None:
    given = [X, X + 1]
    check_function(appending, (given,))
    assert len(given) == 2
