"""Modules are answered from memory only where nobody could tell: models in which it would show, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_gradcheck import check_module
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.engines import selection
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.memoized import MemoizedEngine
from torch_gradcheck.engines.module_calls import known_modules

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

SEEN: list[Tensor] = []


class Net(nn.Module):
    """A first layer, a step of interest upstream of a last layer, and what the loss makes of `kept`."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.first, self.step, self.last = nn.Linear(4, 4), step, nn.Linear(4, 2)
        self.kept: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.step(self.first(x))
        return self.last(torch.sin(y)), self.read()

    def read(self) -> Any:
        return 0


class Step(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)


class Keeps(Step):
    def forward(self, x: Tensor) -> Tensor:
        self.logits = super().forward(x)
        return self.logits.tanh()


class ReadsAttribute(Net):
    """As a router whose logits a loss takes; they are deleted when they have been read."""

    def __init__(self) -> None:
        super().__init__(Keeps())

    def read(self) -> Any:
        logits = self.step.logits
        del self.step.logits
        return logits


class ReadsIfThere(ReadsAttribute):
    def read(self) -> Any:
        logits = vars(self.step).pop("logits", None)
        return 0 if logits is None else logits


class AppendsToGlobal(Step):
    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(super().forward(x))
        return SEEN[-1].tanh()


class ReadsGlobal(Net):
    def __init__(self) -> None:
        super().__init__(AppendsToGlobal())

    def read(self) -> Any:
        last = SEEN[-1]
        SEEN.clear()
        return last


class OfClass(Step):
    seen: list[Tensor] = []  # noqa: RUF012

    def forward(self, x: Tensor) -> Tensor:
        OfClass.seen.append(super().forward(x))
        return self.seen[-1].tanh()


class ReadsClass(Net):
    def __init__(self) -> None:
        super().__init__(OfClass())

    def read(self) -> Any:
        return OfClass.seen.pop()


class Store:
    __slots__ = ("value",)

    value: Any


class InSlot(Step):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    def forward(self, x: Tensor) -> Tensor:
        self.store.value = super().forward(x)
        return x.tanh()


class ReadsSlot(Net):
    def __init__(self) -> None:
        self.__dict__["store"] = store = Store()
        super().__init__(InSlot(store))

    def read(self) -> Any:
        value, self.store.value = self.store.value, None
        return value


class Patched(Net):
    """The forward of the step is a closure that appends to a list."""

    def __init__(self) -> None:
        super().__init__(Step())
        forward, seen = self.step.forward, list[Tensor]()

        def patched(x: Tensor) -> Tensor:
            seen.append(forward(x))
            return seen[-1].tanh()

        self.step.forward, self.seen = patched, seen  # type: ignore[method-assign]

    def read(self) -> Any:
        return self.seen.pop()


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Step()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).tanh()


class HookOnInner(Net):
    """A hook on a module inside of the step captures what it puts out, for this evaluation or for good."""

    def __init__(self, for_good: bool) -> None:
        super().__init__(Inner())
        self.captured: list[Tensor] = []
        self.for_good = for_good
        if for_good:
            self.step.inner.register_forward_hook(self.capture)

    def capture(self, *arguments: Any) -> None:
        self.captured.append(arguments[-1])

    def forward(self, x: Tensor) -> Any:
        handle = None if self.for_good else self.step.inner.register_forward_hook(self.capture)
        out = super().forward(x)[0]
        if handle is not None:
            handle.remove()
        return out, self.captured.pop()


class PatchesInside(Net):
    """As a library that wraps the forward of inner modules while the model runs."""

    def __init__(self) -> None:
        super().__init__(Inner())

    def forward(self, x: Tensor) -> Any:
        seen, forward = list[Tensor](), self.step.inner.forward
        self.step.inner.forward = lambda y: seen.append(forward(y)) or seen[-1]  # type: ignore[func-returns-value]
        try:
            out = super().forward(x)[0]
        finally:
            del self.step.inner.forward
        return out, seen[0]


class TakesList(Step):
    def forward(self, x: Tensor, seen: list[Tensor] | None = None) -> Tensor:
        y = super().forward(x)
        if seen is not None:
            seen.append(y)
        return y.tanh()


class PassesList(Net):
    def __init__(self) -> None:
        super().__init__(TakesList())

    def forward(self, x: Tensor) -> Any:
        seen = list[Tensor]()
        return self.last(self.step(self.first(x), seen)), seen[0]


class Flag(Step):
    flag = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.flag else -2 * super().forward(x)


class SetsFlag(Net):
    """The parent decides for the step by its last layer's weights: the same at θ and near it, another far away."""

    def __init__(self) -> None:
        super().__init__(Flag())
        self.step.flag = True

    def forward(self, x: Tensor) -> Any:
        self.step.flag = bool(self.last.weight.sum() < self.last.weight.detach().numel() * 0.5)
        return super().forward(x)


class WritesBuffer(Net):
    """The step counts up in a buffer by a way that no version counter tells of."""

    def __init__(self) -> None:
        super().__init__(CountsInBuffer())

    def read(self) -> Any:
        return self.step.total.clone()


class CountsInBuffer(Step):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total.data.copy_(super().forward(x).sum(0))
        return x.tanh()


class WritesArray(Net):
    def __init__(self) -> None:
        super().__init__(InArray())

    def read(self) -> Any:
        total = float(self.step.array[0])
        self.step.array[0] = 0
        return total


class InArray(Step):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.array[0] = float(super().forward(x).sum())
        return x.tanh()


class Draws(Step):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand(4, generator=self.generator, dtype=x.dtype)


class DrawsTwice(Net):
    def __init__(self) -> None:
        super().__init__(Draws())

    def forward(self, x: Tensor) -> Any:
        self.step.generator.manual_seed(1)
        y = self.first(x)
        return self.last(self.step(y) - self.step(y)), 0


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class WritesWhatItGets(Net):
    """The step returns its input, which the parent writes to and reads under its first name."""

    def __init__(self) -> None:
        super().__init__(Same())

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        z = self.step(y)
        if self.last.bias.sum() > 1:
            z.mul_(3)
        return self.last(y), z


class Dictionary(Step):
    def forward(self, x: Tensor) -> Any:
        return {"y": super().forward(x), "all": [x.tanh()]}


class EmptiesWhatItGets(Net):
    def __init__(self) -> None:
        super().__init__(Dictionary())

    def forward(self, x: Tensor) -> Any:
        out = self.step(self.first(x))
        y = out.pop("y")
        out["all"].append(y)
        y.data.mul_(2)
        return self.last(out["all"][0] + out["all"][-1]), len(out["all"]) * y


class GivenAParameter(Net):
    def __init__(self) -> None:
        super().__init__(Same())
        self.square = Square()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x)), self.square(self.last.weight).sum() + self.square(self.last.bias.data)


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


class Other(Step):
    """Reads a weight of a module that it does not hold, by an object that hides it."""

    def __init__(self, other: list[nn.Linear]) -> None:
        super().__init__()
        self.other = tuple(other)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + self.other[0].weight.clamp(min=0.9).sum())


class ReadsOthers(Net):
    def __init__(self) -> None:
        last = nn.Linear(4, 2)
        super().__init__(Other([last]))
        self.last = last


class Adds(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros((), dtype=torch.float64)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.tanh:
            self.total = self.total + result.sum()
        return result


class InAMode(Net):
    def __init__(self) -> None:
        super().__init__(Tanh())

    def forward(self, x: Tensor) -> Any:
        with Adds() as mode:
            out = super().forward(x)[0]
        return out, mode.total


class Tanh(Step):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class WithGraph(Net):
    """Under `enable_grad` inside, and without it: the outputs are equal, and one has a graph."""

    def __init__(self) -> None:
        super().__init__(Tanh())

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        plain = self.step(y)
        with torch.enable_grad():
            slope = torch.autograd.grad(self.step(y).sum(), self.step.bias)[0]
        return self.last(plain), slope


class UnderAMap(Net):
    def __init__(self) -> None:
        super().__init__(Tanh())

    def forward(self, x: Tensor) -> Any:
        y = self.first(x)
        return self.last(torch.vmap(self.step)(y)), self.step(y)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "an attribute": ReadsAttribute,
    "an attribute, if it is there": ReadsIfThere,
    "a global list": ReadsGlobal,
    "a list of the class": ReadsClass,
    "a slot of an object": ReadsSlot,
    "a closure": Patched,
    "a hook inside": lambda: HookOnInner(True),
    "a hook inside for a while": lambda: HookOnInner(False),
    "a patch inside": PatchesInside,
    "a list that is passed": PassesList,
    "a flag that others set": SetsFlag,
    "a buffer": WritesBuffer,
    "an array": WritesArray,
    "a generator": DrawsTwice,
    "its input": WritesWhatItGets,
    "containers": EmptiesWhatItGets,
    "a parameter as argument": GivenAParameter,
    "the weight of another": ReadsOthers,
    "a mode": InAMode,
    "a graph": WithGraph,
    "a map": UnderAMap,
}


@pytest.fixture(autouse=True)
def _nothing_seen() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


def engines(model: nn.Module) -> tuple[EagerEngine, MemoizedEngine]:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = RandomState.of_everything()

    def value() -> float:
        state.restore()
        with torch.no_grad():
            out, kept = model(X)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            return float(out.square().sum() + (torch.as_tensor(kept) ** 2).sum())

    eager = EagerEngine(value, list(model.parameters()))
    return eager, MemoizedEngine(eager, model, value, list(model.parameters()))


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_a_module_leaves_or_finds_is_not_lost(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    model = build().double()
    eager, memoized = engines(model)
    for position, parameter in enumerate(model.parameters()):
        coordinates = np.repeat(np.arange(parameter.numel(), dtype=np.int64), 3)
        steps = np.tile([1e-3, -1e-6, 30.0], parameter.numel())
        expected = eager.sample(position, coordinates, steps)
        found = memoized.sample(position, coordinates, steps)
        assert found.values.tolist() == expected.values.tolist()


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_nor_would_it_be_if_nothing_were_compared(build: Callable[[], nn.Module]) -> None:
    """The two samples that are taken both ways are a guard, not the proof."""
    torch.manual_seed(1)
    model = build().double()
    eager, memoized = engines(model)
    known = memoized._modules_known()
    for position, parameter in enumerate(model.parameters()):
        key = parameter.untyped_storage()._cdata
        memoized._answering[position] = [module for module in known if key not in known[module].memory]
        coordinates, steps = np.zeros(2, dtype=np.int64), np.array([1e-3, 30.0])
        expected = eager.sample(position, coordinates, steps)
        assert memoized.sample(position, coordinates, steps).values.tolist() == expected.values.tolist()
        assert bool(memoized._answering[position]) == any(key not in known[module].memory for module in known)


def test_layers_that_leave_nothing_are_known() -> None:
    torch.manual_seed(1)
    for build in (ReadsAttribute, lambda: HookOnInner(True), PassesList, ReadsGlobal):
        model = build().double()
        _, memoized = engines(model)
        known = memoized._modules_known()
        assert model.first in known
        assert model.last in known
        assert model.step not in known
    plain = Net(Inner()).double()
    assert {plain.step, plain.step.inner, plain.first} <= set(engines(plain)[1]._modules_known())


class Counts(Step):
    """Counts its calls, which J does not ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_a_count_that_nobody_reads_is_no_obstacle() -> None:
    torch.manual_seed(1)
    model = Net(Counts()).double()
    assert model.step in engines(model)[1]._modules_known()


class Raises(Net):
    """Raises where the step has not run, which nothing tells: it runs another program's code."""

    def __init__(self) -> None:
        super().__init__(Step())
        self.ran = False

    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        if not self.ran:
            raise IndexError("tuple index out of range")
        self.ran = False
        return out


def test_an_exception_with_the_memory_is_none_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = Raises().double()
    linear = nn.functional.linear

    def noticing(*args: Any) -> Tensor:
        model.ran = model.ran or args[1] is model.step.weight
        return linear(*args)

    monkeypatch.setattr(nn.functional, "linear", noticing)
    eager, memoized = engines(model)
    position, coordinates, steps = 4, np.arange(8, dtype=np.int64), np.full(8, 1e-4)
    expected = eager.sample(position, coordinates, steps)
    memoized._answering[position] = [module for module in memoized._modules_known() if module is model.step]
    assert memoized._answering[position]
    assert memoized.sample(position, coordinates, steps).values.tolist() == expected.values.tolist()
    assert memoized._answering[position] == []


def test_what_raises_by_itself_raises() -> None:
    model = Net(Step()).double()
    with pytest.raises(ZeroDivisionError):
        known_modules(model.modules(), lambda: 1 / 0)
    memoized = MemoizedEngine(
        EagerEngine(lambda: 1 / 0, [*model.parameters()]), model, lambda: 1 / 0, [*model.parameters()]
    )
    with pytest.raises(ZeroDivisionError):
        memoized.sample(0, np.zeros(1, dtype=np.int64), np.ones(1))


class Router(ReadsAttribute):
    """Its branch keeps it from being recorded."""

    def forward(self, x: Tensor) -> Any:
        out, logits = super().forward(x)
        return (out if out.sum().item() < 1e9 else 2 * out), logits


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("wrong", [None, "step.weight", "last.bias"])
def test_a_check_by_memory(wrong: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = Router()
    if wrong is not None:
        model.get_parameter(wrong).register_hook(lambda g: 1.001 * g)
    monkeypatch.setattr(selection, "worth_tracing", lambda *_: True)
    monkeypatch.setattr(selection, "CANDIDATES", (selection.memoized, selection.eager))
    report = check_module(model, lambda out: out[0].square().mean() + out[1].square().mean(), X.float())
    assert [row.name for row in report.mismatches] == ([wrong] if wrong else [])
    assert report.passed == (wrong is None)
