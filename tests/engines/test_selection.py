"""The choice between the engines: what is refused and why, and that nobody notices it by the results."""

from __future__ import annotations

import ctypes
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.zoo.interruptions import CtrlC, events_of, exception_of
from tests.zoo.losses import probe
from tests.zoo.snapshot import Snapshot
from torch_gradcheck import Report, check_module
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.engine import SubstituteEngine
from torch_gradcheck.engines.selection import SelectedEngine, module_name_of
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.verdicts.step_choice import SMALL_TENSOR


class Gate(nn.Module):
    """Subtracts a number that Python reads from what a parameter has made, and adds it again."""

    def forward(self, x: Tensor) -> Tensor:
        largest = x.detach().abs().amax().item()
        return x - largest + largest


class Branch(nn.Module):
    """Takes one way or the other, as the values fall out."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > -1e9 else -x


class Hidden(nn.Linear):
    """Reads its own bias behind torch's back, in a way that no trace can see."""

    def forward(self, x: Tensor) -> Tensor:
        kind = ctypes.c_double if self.bias.dtype is torch.float64 else ctypes.c_float
        first = kind.from_address(self.bias.data_ptr()).value
        return super().forward(x) + 0.25 * first**2


class Drawing(nn.Module):
    """Draws by a law that depends on `law` alone; `rest` comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.law, self.rest = nn.Linear(6, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(torch.bernoulli(self.law(x).sigmoid()))


def mlp(*extra: nn.Module, hidden: int = 12) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), *extra, nn.Linear(hidden, 8))


def checked(model: nn.Module, x: Tensor, **options: Any) -> Report:
    return check_module(model, probe, x, **options)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[TracedEngine]:
    """The traced engines that checks make."""
    made: list[TracedEngine] = []

    class Remembered(TracedEngine):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("torch_gradcheck.engines.selection.TracedEngine", Remembered)
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parameters of all calls of traced engines for samples, one after the other."""
    made: list[int] = []
    sample = TracedEngine.sample

    def sampled(self: TracedEngine, parameter: int, coordinates: Any, steps: Any) -> Any:
        made.append(parameter)
        return sample(self, parameter, coordinates, steps)

    monkeypatch.setattr(TracedEngine, "sample", sampled)
    return made


def notes_on_engine(report: Report) -> list[str]:
    return [note for note in report.notes if "one coordinate at a time" in note]


# ------------------------------------------------------------------ refusals


def test_real_numbers_read_in_python_are_refused_by_the_names_of_op_and_module(traced: list[TracedEngine]) -> None:
    report = checked(mlp(nn.Sequential(Gate())), torch.randn(4, 6))
    (note,) = notes_on_engine(report)
    assert "every parameter" in note
    assert "aten._local_scalar_dense" in note
    assert "(in Gate)" in note
    assert note.endswith("(in 2.0)")
    assert report.passed
    assert not traced


def test_a_branch_that_comes_out_the_same_is_recorded(traced: list[TracedEngine]) -> None:
    report = checked(mlp(nn.Sequential(Branch())), torch.randn(4, 6))
    assert not notes_on_engine(report)
    assert report.passed
    assert traced


@pytest.mark.parametrize(
    ("confirms", "whom", "why"),
    [
        (True, "every parameter", "with all parameters moved the recorded operations give J = "),
        (False, "2.bias", "coordinate 0 moved by"),
    ],
    ids=["all moved", "one moved"],
)
def test_a_record_that_disagrees_is_not_used(
    confirms: bool, whom: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not confirms:
        monkeypatch.setattr(TracedEngine, "confirm", lambda *_: None)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), Hidden(12, 8))
    report = checked(model, torch.randn(4, 6))
    (note,) = notes_on_engine(report)
    assert f"for {whom}: {why}" in note
    # The eager engine sees what autograd cannot: the derivative of the hidden term.
    assert [row.name for row in report.mismatches] == ["2.bias"]
    assert report["2.bias"].worst[0].index == (0,)
    assert report["2.bias"].mismatched == 1


def test_one_parameter_falls_back_and_the_others_do_not(traced: list[TracedEngine]) -> None:
    model = Drawing()
    report = checked(model, torch.randn(4, 6), mode="train")
    (note,) = notes_on_engine(report)
    assert "for law.weight, law.bias: " in note
    assert "bernoulli" in note
    assert len(traced) == 1
    assert report["rest.weight"].status == "match"
    assert report["rest.bias"].status == "match"


def test_a_model_that_can_be_traced_is_not_remarked_on(traced: list[TracedEngine]) -> None:
    report = checked(mlp(), torch.randn(4, 6))
    assert notes_on_engine(report) == []
    assert len(traced) == 1


def test_a_small_model_is_not_traced(traced: list[TracedEngine]) -> None:
    report = checked(nn.Linear(3, 2), torch.randn(4, 3))
    assert report.passed
    assert not traced
    assert notes_on_engine(report) == []


def test_the_module_of_a_refusal_is_named_by_its_owner() -> None:
    gate = Gate()
    model = mlp(gate)
    assert module_name_of(Untraceable("because", module=gate), model) == "2"
    assert module_name_of(Untraceable("because", module=Gate()), model) == ""
    assert module_name_of(Untraceable("because"), model) == ""


# ------------------------------------------------------------------ the chosen engine by itself


def engine_of(
    objective: Callable[[], Tensor],
    parameters: list[Tensor],
    counted: Callable[[int], None] = lambda n: None,
    recorded: Callable[[], Tensor] | None = None,
) -> SelectedEngine:
    """The engine of J with a record of J, or of another function."""
    eager = EagerEngine(lambda: float(objective().detach()), parameters)
    return SelectedEngine([TracedEngine(recorded or objective, parameters), eager], eager, noise=1e-13, counted=counted)


def small_objective() -> tuple[Callable[[], Tensor], list[Tensor]]:
    model, x = mlp().double(), torch.randn(4, 6, dtype=torch.float64)
    return lambda: probe(model(x)), list(model.parameters())


def test_traced_samples_are_counted_once_and_told() -> None:
    told: list[int] = []
    engine = engine_of(*small_objective(), told.append)
    engine.sample(0, np.arange(5), np.full(5, 1e-5))
    engine.sample(1, np.zeros(1, dtype=np.int64), np.zeros(1))
    assert told == [5, 1]
    assert engine.substituted == 6


def test_the_value_at_zero_is_that_of_the_parameters_own_engine() -> None:
    objective, parameters = small_objective()
    engine = engine_of(objective, parameters)
    for position in range(len(parameters)):
        by_sampling = engine.sample(position, np.zeros(1, dtype=np.int64), np.zeros(1)).values[0]
        assert engine.at_zero(position) == pytest.approx(by_sampling, rel=1e-15)
    assert engine.at_zero(0) == pytest.approx(float(objective().detach()), rel=1e-14)


def test_the_value_at_zero_has_the_roundoff_of_the_samples_and_comes_with_them(calls: list[int]) -> None:
    objective, parameters = small_objective()
    apart = 5e-14  # the record differs from J by less than noise, and J(θ) shows which of the two evaluated it
    engine = engine_of(objective, parameters, recorded=lambda: objective() + apart)
    for position in range(len(parameters)):
        engine.sample(position, np.arange(5), np.full(5, 1e-5))
        assert engine.at_zero(position) == pytest.approx(float(objective().detach()) + apart, rel=0, abs=apart / 4)
    assert calls == [0, 1, 2, 3]


def test_the_value_at_zero_is_compared_where_it_is_the_first_sample(calls: list[int]) -> None:
    objective, parameters = small_objective()
    trusted, wrong = (
        engine_of(objective, parameters),
        engine_of(objective, parameters, recorded=lambda: 2 * objective()),
    )
    eager = float(objective().detach())
    assert trusted.at_zero(1) == trusted.at_zero(1) == pytest.approx(eager, rel=1e-14)
    assert (trusted.refused, trusted.substituted) == ({}, 1)
    assert wrong.at_zero(1) == wrong.at_zero(1) == eager
    assert (list(wrong.refused), wrong.substituted) == ([1], 0)
    assert calls == [1, 1]


@pytest.mark.parametrize("step", [0.0, 1e-300, 1e-5, 1e300], ids="step={:.0e}".format)
def test_first_samples_that_disagree_are_thrown_away_whatever_their_steps(step: float, calls: list[int]) -> None:
    objective, parameters = small_objective()
    bias, at_theta = parameters[3], parameters[3].detach().clone()
    told: list[int] = []

    def recorded() -> Tensor:
        """As J, but for its slope."""
        return objective() + (bias - at_theta).sum()

    engine = engine_of(objective, parameters, told.append, recorded)
    coordinates, steps = np.arange(5), np.full(5, step)
    expected = engine.eager.sample(3, coordinates, steps)
    for _ in range(2):
        found = engine.sample(3, coordinates, steps)
        np.testing.assert_array_equal(found.steps, expected.steps)
        np.testing.assert_array_equal(found.values, expected.values)
    assert calls == [3], "once refused, the record is not asked again"
    assert str(engine.refused[3]).startswith("coordinate 0 moved by ")
    assert "from the recorded operations" in str(engine.refused[3])
    assert engine.at_zero(3) == float(objective().detach())
    assert (engine.substituted, told) == (0, [])


def test_a_right_tensor_takes_as_few_calls_as_there_are_questions(calls: list[int]) -> None:
    model = mlp(hidden=24)
    few = [position for position, parameter in enumerate(model.parameters()) if parameter.numel() <= SMALL_TENSOR]
    report = checked(model, torch.randn(4, 6))
    assert report.passed
    assert few == [1, 3]
    # A few entries of the others are looked at first, then the rest.
    assert calls == [0, 0, 1, 2, 2, 3]


def test_a_refusal_in_the_middle_is_final_for_its_parameter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(*small_objective())
    coordinates, steps = np.arange(5), np.full(5, 1e-5)
    expected = engine.sample(0, coordinates, steps)
    asked: list[int] = []

    def refuse(self: TracedEngine, parameter: int, *_: Any) -> None:
        asked.append(parameter)
        raise Untraceable("changed its mind")

    with monkeypatch.context() as patch:
        patch.setattr(TracedEngine, "sample", refuse)
        found = engine.sample(0, coordinates, steps)
    np.testing.assert_array_equal(found.steps, expected.steps)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-13)
    engine.sample(0, coordinates, steps)
    assert engine.at_zero(0) == engine.eager.sample(0, np.zeros(1, dtype=np.int64), np.zeros(1)).values[0]
    assert asked == [0]
    assert list(engine.refused) == [0]
    before = engine.substituted
    engine.sample(1, coordinates, steps)
    assert engine.substituted == before + 5


def test_the_value_at_zero_changes_its_engine_with_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, parameters = small_objective()
    engine = engine_of(objective, parameters, recorded=lambda: objective() + 5e-14)
    eager = float(objective().detach())
    assert engine.at_zero(0) != eager

    def refuse(*_: Any) -> None:
        raise Untraceable("changed its mind")

    monkeypatch.setattr(TracedEngine, "sample", refuse)
    engine.sample(0, np.arange(5), np.full(5, 1e-5))
    assert engine.at_zero(0) == eager


def test_without_a_trace_everything_is_eager() -> None:
    objective, parameters = small_objective()
    eager = EagerEngine(lambda: float(objective().detach()), parameters)
    engine = SelectedEngine([eager], eager, noise=0.0, counted=lambda n: pytest.fail("nothing to count"))
    assert engine.at_zero(0) == float(objective().detach())
    assert engine.refused == {}
    assert engine.substituted == 0


class Refusing(SubstituteEngine):
    """A substitute that is good for some parameters only."""

    def __init__(self, inner: TracedEngine, refused: set[int]) -> None:
        self.inner, self.refused, self.asked = inner, refused, 0

    def sample(self, parameter: int, coordinates: Any, steps: Any) -> Any:
        return self.inner.sample(parameter, coordinates, steps)

    def sample_compared(self, parameter: int, *arguments: Any) -> Any:
        self.asked += 1
        if parameter in self.refused:
            raise Untraceable(f"no parameter {parameter}")
        return self.inner.sample_compared(parameter, *arguments)

    def gradients(self) -> Any:
        raise Untraceable("no gradient")


def test_substitutes_are_asked_one_after_the_other_and_the_last_refusal_is_told() -> None:
    objective, parameters = small_objective()
    inner, eager = TracedEngine(objective, parameters), EagerEngine(lambda: float(objective().detach()), parameters)
    first, second = Refusing(inner, {0, 1}), Refusing(inner, {1})
    engine = SelectedEngine([first, second, eager], eager, noise=1e-13, counted=lambda _: None)
    for parameter in (0, 1, 2, 0, 1, 2):
        engine.sample(parameter, np.arange(2), np.full(2, 1e-5))
    assert (first.asked, second.asked) == (3, 2)
    assert engine.substituted == 8
    assert {parameter: str(refusal) for parameter, refusal in engine.refused.items()} == {1: "no parameter 1"}
    with pytest.raises(Untraceable, match="no gradient"):
        engine.gradients()
    assert None not in engine.refused


@pytest.mark.parametrize("left", [True, False], ids=["one is left", "none is left"])
def test_a_candidate_that_fails_is_told_of_only_where_no_other_substitute_is_left(left: bool) -> None:
    objective, parameters = small_objective()
    eager = EagerEngine(lambda: float(objective().detach()), parameters)
    engines = [TracedEngine(objective, parameters), eager] if left else [eager]
    engine = SelectedEngine(engines, eager, noise=1e-13, counted=lambda _: None, refusal=Untraceable("because"))
    assert list(engine.refused) == ([] if left else [None])


# ------------------------------------------------------------------ the same results


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class CubeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wrong: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.wrong = wrong
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.wrong * 3 * x**2 * g, None


class Cube(nn.Module):
    def __init__(self, wrong: float = 1.0) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        return CubeFunction.apply(x, self.wrong)


def convolutions() -> nn.Module:
    pooled = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(pooled, nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 3))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (mlp, (4, 6), "eval"),
    "convolutions": (convolutions, (3, 2, 6, 6), "train"),
    "lstm": (LastState, (3, 4, 4), "eval"),
    "encoder": (encoder, (2, 3, 6), "train"),
    "custom function": (lambda: mlp(Cube()), (4, 6), "eval"),
    "planted bug": (lambda: mlp(Cube(1.001)), (4, 6), "eval"),
    "kinks": (lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8)), (4, 6), "eval"),
}


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eps", [None, 1e-6], ids=["chosen step", "given step"])
def test_both_engines_find_the_same(name: str, eps: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    build, shape, mode = MODELS[name]
    model, x = build(), torch.randn(*shape)
    if name == "kinks":
        with torch.no_grad():
            model[0].weight[3].zero_()
            model[0].bias[3] = 0  # exactly at the kink for every row
    reports = []
    for pays in (True, False):
        monkeypatch.setattr("torch_gradcheck.engines.selection.worth_tracing", lambda *_, pays=pays: pays)
        reports.append(checked(model, x, mode=mode, eps=eps))
    fast, eager = reports
    assert notes_on_engine(fast) == []
    assert fast.passed is eager.passed is (name != "planted bug")
    assert fast.loss == eager.loss
    for one, other in zip(fast, eager, strict=True):
        assert (one.name, one.status, one.checked, one.mismatched) == (
            other.name,
            other.status,
            other.checked,
            other.mismatched,
        )
        elsewhere = {(entry.index, entry.part): entry for entry in other.worst}
        for entry in one.worst:
            same = elsewhere.get((entry.index, entry.part))
            if same is not None:
                assert abs(entry.numeric - same.numeric) <= entry.noise + same.noise
                assert entry.status == same.status


# ------------------------------------------------------------------ counts


class Counting(nn.Module):
    """A tanh that counts how often it runs, where a check does not put things back."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return torch.tanh(x)


@pytest.mark.parametrize("pays", [False, True], ids=["eager", "traced"])
def test_evaluations_are_those_that_were_made(
    pays: bool, traced: list[TracedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = samples_made(monkeypatch)
    monkeypatch.setattr("torch_gradcheck.engines.selection.worth_tracing", lambda *_: pays)
    Counting.calls = 0
    report = checked(mlp(Counting()), torch.randn(4, 6))
    coordinates = sum(row.checked for row in report)
    assert bool(traced) is pays
    assert report.evaluations == Counting.calls + sum(made)
    assert 2 * coordinates <= sum(row.evaluations for row in report) <= report.evaluations
    assert all(row.evaluations >= 2 * row.checked for row in report)
    assert all(row.seconds > 0 for row in report)
    assert (sum(made) >= 2 * coordinates) is pays
    assert (Counting.calls < coordinates) is pays


def samples_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of a traced engine took, those for comparison and for J(θ) left out."""
    made: list[int] = []
    sample, compare = TracedEngine.sample, TracedEngine.sample_compared

    def sampled(self: TracedEngine, parameter: int, coordinates: Any, steps: Any) -> Any:
        samples = sample(self, parameter, coordinates, steps)
        made.append(len(steps))
        return samples

    def compared(self: TracedEngine, *arguments: Any) -> Any:
        samples = compare(self, *arguments)
        made[-1] = len(samples.steps) - 1
        return samples

    monkeypatch.setattr(TracedEngine, "sample", sampled)
    monkeypatch.setattr(TracedEngine, "sample_compared", compared)
    return made


# ------------------------------------------------------------------ Ctrl-C


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def long_check() -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(48, 64), nn.Tanh(), nn.BatchNorm1d(64), nn.Dropout(0.1), nn.Linear(64, 10))
    model[0].weight.grad = torch.ones(64, 48)
    return model, torch.randn(16, 48), torch.arange(16) % 10


def run(model: nn.Module, x: Tensor, targets: Tensor) -> Report:
    return check_module(model, nn.CrossEntropyLoss(), (x, targets), mode="train", progress=False)


SAMPLE = TracedEngine.sample


@pytest.mark.slow
@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="Ctrl-C does not raise in this process"
)
@pytest.mark.usefixtures("two_threads")
# Python swallows an interrupt in the callback of a weak reference (torch._dynamo has some): the check then goes on.
@pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("no_collector")
def test_ctrl_c_during_a_traced_sample_changes_nothing_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, targets = long_check()
    run(model, x, targets)
    events = events_of_samples(model, x, targets)
    draw, inside = random.Random(3), 0
    threads = threading.active_count()  # other tests of this process may have left some, as of a progress bar
    for attempt in range(300):
        before = Snapshot(model=model, x=x, targets=targets)
        wanted = draw.randrange(len(events))
        sampling = interrupt_sample(monkeypatch, wanted, draw.randint(1, events[wanted]))
        caught = exception_of(run, model, x, targets)
        assert before.changes() == [], f"attempt {attempt}"
        assert caught is None or isinstance(caught, KeyboardInterrupt)
        assert threading.active_count() == threads
        inside += bool(sampling) and caught is not None
        if inside == 20:
            return
    pytest.fail(f"only {inside} of 300 signals came while the traced engine was at work")


def events_of_samples(model: nn.Module, x: Tensor, targets: Tensor) -> list[int]:
    """How many events each call of a traced engine for samples comes through in a check."""
    events: list[int] = []

    def counted(engine: TracedEngine, *arguments: Any) -> Any:
        samples: list[Any] = []
        events.append(events_of(lambda: samples.append(SAMPLE(engine, *arguments))))
        return samples[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TracedEngine, "sample", counted)
        run(model, x, targets)
    return events


def interrupt_sample(monkeypatch: pytest.MonkeyPatch, wanted: int, events: int) -> list[int]:
    """Has Ctrl-C come after so many events of the wanted call; the list is empty if that call returns all the same."""
    calls, sampling = itertools.count(), list[int]()

    def interrupted(engine: TracedEngine, *arguments: Any) -> Any:
        if next(calls) != wanted:
            return SAMPLE(engine, *arguments)
        sampling.append(1)
        with CtrlC(events):
            samples = SAMPLE(engine, *arguments)
            sampling.pop()
        return samples

    monkeypatch.setattr(TracedEngine, "sample", interrupted)
    return sampling
