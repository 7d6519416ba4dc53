"""check_module beside a reference: which values both sides have, what is compared, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.zoo.snapshot import Snapshot
from torch_gradcheck import InvalidRequestError, check_module

mse = nn.MSELoss()


def batch(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    """Inputs (5, 3) and targets (5, 2)."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(shape, generator=generator) for shape in ((5, 3), (5, 2)))
    return x.to(dtype), y.to(dtype)


class Scaled(nn.Module):
    """A linear layer times a buffer, and times another that the candidate does without."""

    def __init__(self, scale: float, other: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", torch.full((2,), scale))
        if other:
            self.register_buffer("other", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) * self.scale
        return y * self.other if "other" in dict(self.named_buffers()) else y


class Viewed(nn.Module):
    """A weight, and a buffer on its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))
        self.register_buffer("view", self.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + 0 * self.view.sum()


class Tied(nn.Module):
    """Two layers of one weight, or of two."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        if tied:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.two(self.one(x).tanh())[:, :2]
        return y


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def seen(model: nn.Module) -> nn.Module:
    """The model after a few batches in training mode: its buffers are no longer those of a new one."""
    for k in range(3):
        model(torch.randn(6, 3, generator=torch.Generator().manual_seed(k)))
    return model


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: nn.Linear(3, 2), id="linear"),
        pytest.param(with_batch_norm, id="running statistics"),
        pytest.param(Viewed, id="buffer on a parameter's memory"),
        pytest.param(lambda: Tied(True), id="tied"),
        pytest.param(lambda: parametrizations.weight_norm(nn.Linear(3, 2)), id="weight norm"),
        pytest.param(lambda: parametrizations.spectral_norm(nn.Linear(3, 2)), id="spectral norm"),
    ],
)
def test_the_reference_is_given_the_candidates_values(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    candidate, reference = seen(make()).bfloat16(), make()
    before = Snapshot(candidate=candidate, reference=reference)

    report = check_module(candidate, mse, batch(), reference=reference)

    assert report.proven, report
    assert report["output"].status == "match"
    assert {row.name for row in report} - {"output"} == dict(candidate.named_parameters()).keys()
    assert not before.changes()


def test_a_buffer_that_the_candidate_has_not_stays_and_is_cast_where_rounding_is_measured() -> None:
    torch.manual_seed(0)
    report = check_module(Scaled(3.0).bfloat16(), mse, batch(), reference=Scaled(1.0, other=True))

    assert report.proven, report


@pytest.mark.parametrize("same", ["object", "submodule", "parameter"])
def test_both_sides_may_share_modules_and_parameters(same: str) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 2)
    candidate = nn.Sequential(first, second)
    reference = candidate if same == "object" else nn.Sequential(first, nn.Linear(3, 2))
    if same == "parameter":
        reference[0] = nn.Linear(3, 3)
        reference[0].weight = first.weight

    assert check_module(candidate, mse, batch(torch.float32), reference=reference).proven


@pytest.mark.parametrize(
    ("candidate", "reference", "words"),
    [
        pytest.param(
            lambda: nn.Sequential(nn.Linear(3, 2)),
            lambda: nn.Linear(3, 2),
            ["reference has no 0.weight (close names: weight), 0.bias", "model has no weight (close names: 0.weight)"],
            id="names",
        ),
        pytest.param(
            lambda: nn.Linear(3, 2), lambda: nn.Linear(3, 2, bias=False), ["reference has no bias"], id="one more"
        ),
        pytest.param(
            lambda: nn.Linear(3, 2),
            lambda: nn.Linear(3, 4),
            ["weight ((2, 3) in model, (4, 3) in reference)", "bias ((2,) in model, (4,) in reference)"],
            id="shapes",
        ),
        pytest.param(
            lambda: Tied(True), lambda: Tied(False), ["one.weight, two.weight", "model and not in ref"], id="tied"
        ),
        pytest.param(
            lambda: Tied(False),
            lambda: Tied(True),
            ["one.weight, two.weight", "reference and not in model"],
            id="untied",
        ),
        pytest.param(
            lambda: nn.Linear(3, 2),
            lambda: nn.Linear(3, 2).requires_grad_(False),
            ["weight, bias", "requires_grad", "reference.requires_grad_()"],
            id="frozen",
        ),
    ],
)
def test_what_differs_in_more_than_values_is_refused(
    candidate: Callable[[], nn.Module], reference: Callable[[], nn.Module], words: list[str]
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        check_module(candidate(), mse, batch(torch.float32), reference=reference())

    assert all(each in str(refused.value) for each in words), refused.value


def test_wrappers_of_data_parallelism_and_of_the_compiler_are_in_no_name() -> None:
    model = nn.Linear(3, 2)
    for candidate, reference in ((nn.DataParallel(model), nn.Linear(3, 2)), (model, nn.DataParallel(nn.Linear(3, 2)))):
        report = check_module(candidate, mse, batch(torch.float32), reference=reference)
        assert [row.name for row in report] == ["weight", "bias", "output"]
        assert report.proven


def test_modules_that_keep_their_own_modes_must_agree_in_them() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    reference = deepcopy(model).eval()

    with pytest.raises(InvalidRequestError, match=r"training flags.*the model itself, 0, 1\. Call train\(\) or eval"):
        check_module(model, mse, batch(torch.float32), mode="keep", reference=reference)
    assert check_module(model, mse, batch(torch.float32), mode="train", reference=reference).proven


def test_a_parameter_that_the_candidate_freezes_is_not_checked() -> None:
    candidate = nn.Linear(3, 2)
    candidate.bias.requires_grad_(False)

    report = check_module(candidate, mse, batch(torch.float32), reference=nn.Linear(3, 2))

    assert [(row.name, row.status) for row in report] == [
        ("weight", "match"),
        ("bias", "frozen"),
        ("output", "match"),
    ]


@pytest.mark.parametrize("factor", [1.0, 1.05], ids=["right", "wrong"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_loss_that_reads_the_candidates_weights_reads_them_beside_the_reference_too(
    factor: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    candidate = nn.Linear(3, 2).to(dtype)
    candidate.weight.register_hook(lambda gradient: factor * gradient)

    report = check_module(
        candidate,
        lambda y, target: mse(y, target) + 0.3 * candidate.weight.square().sum(),
        batch(dtype),
        reference=nn.Linear(3, 2),
    )

    assert {row.name for row in report.mismatches} == ({"weight"} if factor != 1 else set())


def test_inputs_of_the_batch_are_rows_and_patterns_choose() -> None:
    x, y = batch()
    x.requires_grad_()

    report = check_module(nn.Linear(3, 2).bfloat16(), mse, (x, y), reference=nn.Linear(3, 2), include="batch*")

    assert [(row.name, row.status) for row in report] == [("batch[0]", "match"), ("output", "match")]


@dataclass
class Output:
    """As models of transformers return."""

    logits: Tensor
    loss: Tensor | None = None
    nothing: Tensor | None = None
    best: Tensor | None = None


class Model(nn.Module):
    """Returns a dataclass with an integer tensor and nothing in it, and a loss if there are targets."""

    def __init__(self, factor: float = 1.0, with_logits: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.factor, self.with_logits = factor, with_logits

    def forward(self, x: Tensor, targets: Tensor) -> Output:
        logits = self.linear(x)
        loss = self.factor * mse(logits, targets)
        return Output(logits if self.with_logits else None, loss, None, logits.argmax(-1))  # type: ignore[arg-type]


def checked(candidate: nn.Module, reference: nn.Module) -> Any:
    x, y = batch()
    return check_module(candidate.bfloat16(), lambda output: output.loss, {"x": x, "targets": y}, reference=reference)


def test_members_of_an_output_are_rows_unless_they_are_integers_or_none() -> None:
    torch.manual_seed(0)
    report = checked(Model(), Model())

    assert report.proven
    assert [row.name for row in report] == ["linear.weight", "linear.bias", "output.logits", "output.loss"]


def test_a_wrong_loss_that_a_model_returns_is_wrong_as_an_output() -> None:
    torch.manual_seed(0)
    assert {row.name for row in checked(Model(1.2), Model()).mismatches} == {
        "linear.weight",
        "linear.bias",
        "output.loss",
    }


def test_what_one_side_alone_returns_is_told_and_not_compared() -> None:
    report = checked(Model(with_logits=False), Model())

    assert report.proven
    assert "output.loss" in report
    assert "output.logits" not in report
    assert "not compared: output.logits (the candidate returns none)" in report.notes


class WithLoss(nn.Module):
    """A model and its loss as one module, to compare losses that are fused with the last layer."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(3, 2), factor

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.factor * mse(self.linear(x), targets)
        return loss


@pytest.mark.parametrize("factor", [1.0, 1.2], ids=["right", "wrong"])
def test_a_fused_loss_is_compared_as_the_output_of_a_module(factor: float) -> None:
    torch.manual_seed(0)
    report = check_module(WithLoss(factor).bfloat16(), lambda loss: loss, (batch(),), reference=WithLoss())

    assert ("output" in {row.name for row in report.mismatches}) is (factor != 1)
