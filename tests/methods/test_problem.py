"""A problem measures noise and records J when it is first asked to, once, and hands both on."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from torch_gradcheck import GradientMonitor, check_module
from torch_gradcheck.borrowing.loan import Loan
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.methods.choice import run_method
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.pipeline.examination import Examination
from torch_gradcheck.request import Request


def perceptron() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), (torch.randn(5, 6), torch.randn(5, 2))


def loan(model: nn.Module, batch: object, **options: object) -> Loan[Problem]:
    request = Request(None, "auto", None, 1e-5, (), (), "eval", torch.float64, 0, False)
    request = Request(**{**vars(request), **options})  # type: ignore[arg-type]
    return posed(model, ModuleLoss(model, nn.MSELoss(), batch), request)


def test_nothing_is_evaluated_before_it_is_asked_for() -> None:
    model, batch = perceptron()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    with loan(model, batch) as problem:
        assert not calls
        assert problem.theta.coordinates == 74
        assert not calls
        assert problem.objective.loss > 0
        preflight = len(calls)
        assert "engine" not in vars(problem)
        assert problem.refused == {}
        assert problem.noise.sigma > 0
        assert len(calls) == preflight + 17
        assert problem.noise is problem.noise
        assert len(calls) == preflight + 17


def test_the_engine_is_made_once() -> None:
    model, batch = perceptron()
    with loan(model, batch) as problem:
        engine = problem.engine
        assert problem.engine is engine
        assert problem.refused is engine.refused


def test_noise_and_refusals_are_taken_over_from_a_problem_of_the_same_J() -> None:  # noqa: N802
    model, batch = perceptron()
    refused = {None: Untraceable("no rule for it")}
    with loan(model, batch) as first:
        noise = first.noise
    with loan(model, batch) as second:
        before = second.objective.evaluations
        second.take_over(noise, refused)
        assert (second.noise, second.refused) == (noise, refused)
        assert second.objective.evaluations == before


def test_an_examination_keeps_nothing_of_the_lent_model_alive() -> None:
    model, batch = perceptron()
    with loan(model, batch) as problem:
        gradients = autograd_gradients(problem.objective, problem.theta)
        examined = Examination.of(problem, gradients, *run_method(problem, gradients))
        recorded = weakref.ref(problem.engine)
    del problem
    gc.collect()
    assert examined.noise
    assert recorded() is None


def test_what_cannot_be_checked_is_said_before_anything_is_lent() -> None:
    model, batch = perceptron()
    with pytest.raises(InvalidRequestError, match="matches no parameter"):
        loan(model, batch, include=("nowhere",))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The engines that have recorded J."""
    made: list[object] = []
    usual = TracedEngine.__init__

    def init(self: TracedEngine, *args: object, **kwargs: object) -> None:
        made.append(self)
        usual(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(TracedEngine, "__init__", init)
    return made


@pytest.mark.parametrize(
    ("gradients", "said"),
    [
        pytest.param({"0.weigt": None}, "'0.weigt', which is no checked parameter", id="no such name"),
        pytest.param({"1.weight": None, "0.weight": None}, "one tied parameter twice", id="tied"),
    ],
)
def test_names_that_no_parameter_has_are_said_before_anything_is_lent(gradients: object, said: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with pytest.raises(InvalidRequestError, match=said):
        loan(model, torch.randn(1, 2), gradients=gradients)


def test_a_monitored_step_records_J_once(recorded: list[object]) -> None:  # noqa: N802
    model, batch = perceptron()
    with GradientMonitor(model, nn.MSELoss()) as monitor:
        nn.MSELoss()(model(batch[0]), batch[1]).backward()
        report = monitor.step(batch)
    assert report is not None
    assert report.passed
    assert len(recorded) == 1


def test_a_grad_that_cannot_be_judged_needs_no_record_of_J(recorded: list[object]) -> None:  # noqa: N802
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 2))
    batch = (torch.randn(5, 6), torch.randn(5, 2))
    nn.MSELoss()(model(batch[0]), batch[1]).backward()
    report = check_module(model, nn.MSELoss(), batch, gradients="grad")
    assert {str(row.status) for row in report} == {"undecided"}
    assert not recorded
