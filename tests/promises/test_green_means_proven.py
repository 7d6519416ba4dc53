"""Promise: a check that passes has proven something, and says to what precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_gradcheck import GradientMonitor, InvalidRequestError, Report, check_closure, check_module

torch.manual_seed(0)
X, LABELS = torch.randn(16, 4), torch.arange(16) % 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(1) == labels).float().mean()


def of_another_model(scores: Tensor, labels: Tensor) -> Tensor:
    torch.manual_seed(1)
    return F.cross_entropy(nn.Linear(4, 3).to(X.dtype)(X), labels)


def constant(scores: Tensor, labels: Tensor) -> Tensor:
    return torch.ones(())


UNREACHED = [accuracy, of_another_model, constant]

SAYS = r"does not depend on any of the 4 checked parameters \(0\.weight, 0\.bias, 2\.weight and 1 more\)"


@pytest.mark.parametrize("method", ["exact", "projected"])
@pytest.mark.parametrize("loss_fn", UNREACHED)
def test_a_loss_that_reaches_no_parameter_is_refused(loss_fn: Callable[..., Tensor], method: str) -> None:
    with pytest.raises(InvalidRequestError, match=SAYS):
        check_module(net(), loss_fn, (X, LABELS), method=method)


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_so_is_a_closure_over_another_model(method: str) -> None:
    trained, checked = net(), net()
    with pytest.raises(InvalidRequestError, match="the loss of another model"):
        check_closure(checked, lambda: F.cross_entropy(trained(X), LABELS), method=method)


def test_so_is_a_step_that_left_nothing_in_grad() -> None:
    with pytest.raises(InvalidRequestError, match=SAYS):
        check_module(net(), accuracy, (X, LABELS), gradients="grad")


def test_so_is_a_monitored_step() -> None:
    monitor = GradientMonitor(net(), accuracy)
    with pytest.raises(InvalidRequestError, match=SAYS):
        monitor.step((X, LABELS))
    assert list(monitor.errors) == [0]


def test_one_parameter_of_one_is_told_as_such() -> None:
    with pytest.raises(InvalidRequestError, match=r"the one checked parameter \(0\.bias\).*reaches it neither"):
        check_module(net(), accuracy, (X, LABELS), include="0.bias")


@pytest.mark.parametrize("method", ["exact", "projected"])
def test_a_loss_that_depends_on_the_model_and_is_detached_is_a_mismatch(method: str) -> None:
    report = check_module(
        net(), lambda scores, labels: F.cross_entropy(scores.detach(), labels), (X, LABELS), method=method
    )
    assert len(report.mismatches) == 4


def test_a_loss_that_reaches_some_of_them_passes_and_is_not_proven() -> None:
    heads = nn.ModuleList([net(), nn.Linear(4, 3)])
    report = check_closure(heads, lambda: F.cross_entropy(heads[0](X), LABELS))
    assert report.passed
    assert not report.proven
    assert {str(report[name].status) for name in ("1.weight", "1.bias")} == {"unused"}


def test_a_loss_of_zeros_does_not_pass() -> None:
    report = check_module(net(), lambda scores, _: 0 * scores.sum(), (X, LABELS))
    assert not report
    assert (report.relative_error, report.verdict) == (None, None)
    assert [(row.relative_error, row.verdict) for row in report] == [(None, None)] * 4
    assert "worry" not in str(report)
    assert "great" not in str(report)


def test_the_idiom_of_an_assertion_fails_on_a_wrong_gradient() -> None:
    model = net()
    model[0].weight.register_hook(lambda gradient: 2 * gradient)
    assert not check_module(model, F.cross_entropy, (X, LABELS))
    assert check_module(net(), F.cross_entropy, (X, LABELS))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 1e-5), ({"dtype": torch.float32}, 1e-3), ({"dtype": torch.float32, "tolerance": 1e-2}, 1e-2)],
    ids=["float64", "float32", "as asked"],
)
def test_each_precision_has_a_tolerance_that_can_prove_something(options: dict[str, Any], tolerance: float) -> None:
    report = check_module(net(), F.cross_entropy, (X, LABELS), **options)
    assert report.tolerance == tolerance
    assert report.proven, str(report)


def in_float32(factor: float = 1.0) -> Report:
    model = net()
    model[2].weight.register_hook(lambda gradient: factor * gradient)
    return check_module(model, F.cross_entropy, (X, LABELS), dtype=torch.float32)


def test_a_raised_tolerance_is_told_instead_of_a_doubt() -> None:
    report = in_float32()
    assert report.verdict == "doubtful", "the lecture's word stays, as the number does"
    assert "gradients right to 1e-3: 4 of 4" in str(report)
    assert "doubtful" not in str(report)


def test_what_a_raised_tolerance_does_not_let_pass_keeps_its_word() -> None:
    report = in_float32(factor=1.05)
    assert [row.name for row in report.mismatches] == ["2.weight"]
    assert "worry" in str(report)


def test_float64_says_no_tolerance_in_its_headline() -> None:
    assert "gradients right: 4 of 4" in str(check_module(net(), F.cross_entropy, (X, LABELS)))


def test_a_float32_check_at_a_finer_tolerance_names_one_that_decides() -> None:
    report = check_module(net(), F.cross_entropy, (X, LABELS), dtype=torch.float32, tolerance=1e-6)
    undecided = [row for row in report if row.status == "undecided"]
    assert undecided
    assert all(re.search("tolerance=1e-[23] would decide it", row.reason) for row in undecided), str(report)


def test_a_gradient_that_only_noise_covers_names_no_tolerance() -> None:
    report = check_module(net(), lambda scores, _: 1e6 + scores.square().sum(), (X, LABELS), dtype=torch.float32)
    undecided = [row for row in report if row.status == "undecided"]
    assert undecided
    assert all("would decide" not in row.reason for row in undecided), str(report)
