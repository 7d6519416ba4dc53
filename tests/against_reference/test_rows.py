"""The row of a tensor of a candidate: how tight a match is, how far and where it is wrong, and what is not known."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from torch_gradcheck import GradientMismatchError, Report, check_function
from torch_gradcheck.against_reference.judging.compared import Compared
from torch_gradcheck.against_reference.judging.judge import judged
from torch_gradcheck.against_reference.rows import row_of
from torch_gradcheck.arrays import Floats
from torch_gradcheck.objective.theta import ThetaEntry
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status

EPSILON = 2.0**-8
DRAW = np.random.default_rng(0)
RIGHT = DRAW.normal(size=900)


def entry(size: int, role: Role = Role.ARGUMENT) -> ThetaEntry:
    tensor = torch.zeros(size, dtype=torch.bfloat16)
    return ThetaEntry("x", (), tensor, True, False, np.empty(0, dtype=np.int64), torch.bfloat16, role)


def noisy(values: Floats, noise: float = EPSILON, seed: int = 1) -> Floats:
    return values * (1 + noise * np.random.default_rng(seed).uniform(-1, 1, size=len(values)))


def row(candidate: Floats, right: Floats = RIGHT, noise: float = EPSILON) -> ParameterReport:
    """The row of these numbers beside runs of the reference that are off by so much."""
    rounded = [noisy(right, noise, seed) for seed in range(2, 9)]
    compared = Compared(entry(len(right)), [candidate] * 3, right, rounded, True, 2 * EPSILON)
    return row_of(judged(compared, 0.0), None)


def test_a_match_says_how_tight_it_is_and_what_would_have_shown() -> None:
    found = row(noisy(RIGHT))
    assert found.status is Status.MATCH
    assert 0.9 < found.rounding_ratio < 1.1
    assert 0 < found.detectable < 0.01
    assert found.reason.startswith(f"{found.rounding_ratio:.1f} times")
    assert "times what bfloat16 loses; a factor off by 0." in found.reason
    assert np.isnan(found.eps)


def test_a_factor_that_no_entry_shows_is_told_so() -> None:
    found = row(noisy(RIGHT) * 1.008)
    assert found.status is Status.MISMATCH
    assert found.mismatched > 0
    assert found.reason.endswith("; no single entry is beyond its error bar")
    assert "times what rounding explains" in found.reason


def test_a_wrong_entry_comes_first_with_its_place_and_distance() -> None:
    candidate = noisy(RIGHT)
    candidate[17] += 1.0
    found = row(candidate)
    assert (found.status, found.mismatched, found.worst[0].index) == (Status.MISMATCH, 1, (17,))
    assert found.worst[0].in_bars > 1
    assert "1 of 900 coordinates is wrong; [17] is off by" in found.reason
    assert "times what rounding in bfloat16 explains" in found.reason


def test_what_is_not_finite_is_wrong_and_has_no_multiple() -> None:
    candidate = noisy(RIGHT)
    candidate[[3, 5]] = np.nan, np.inf
    found = row(candidate)
    assert (found.status, found.mismatched) == (Status.MISMATCH, 2)
    assert {each.index for each in found.worst[:2]} == {(3,), (5,)}
    assert found.reason == "2 of 900 coordinates are wrong; [3] is nan, where 0.105 is right"


def test_a_tensor_known_as_a_whole_only_is_no_flat_one() -> None:
    found = row(noisy(RIGHT, 0.2), noise=0.2)
    assert found.status is Status.MATCH
    assert found.relative_error is not None


def test_noise_as_large_as_the_tensor_proves_nothing() -> None:
    found = row(noisy(RIGHT[:3], 2.0), RIGHT[:3], noise=2.0)
    assert found.status in (Status.FLAT, Status.UNDECIDED)
    assert "nothing was proven" in found.reason or "as much as its own size" in found.reason


def test_zeros_beside_zeros_are_flat() -> None:
    assert row(np.zeros(8), np.zeros(8)).status is Status.FLAT


def test_cells_of_the_picture_end_with_the_blocks_of_a_kernel() -> None:
    candidate = noisy(RIGHT)
    candidate[896:] = 9.0
    drawn = row(candidate).map
    assert drawn is not None
    assert drawn.block == (1, 32)
    assert drawn.cells[0][-1] == 1.0
    assert not any(drawn.cells[0][:-1])


def checked(spoil: Callable[[torch.Tensor], torch.Tensor]) -> Report:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> torch.Tensor:
            return spoil(2 * ctx.saved_tensors[0] * grad)  # type: ignore[attr-defined]

    x = torch.linspace(-2, 2, 99).bfloat16().reshape(9, 11)
    return check_function(Square.apply, (x,), reference=lambda x: x * x)


@pytest.fixture(scope="module")
def wrong() -> Report:
    return checked(lambda gradient: 1.25 * gradient)


def test_an_output_is_counted_apart_from_gradients(wrong: Report) -> None:
    assert str(wrong).startswith("gradients WRONG in 1 of 1 argument, output right")
    right = checked(lambda gradient: gradient)
    assert str(right).startswith("gradients right in bfloat16: 1 of 1 argument, output right")
    assert "up to 1e-5 passes" not in str(right)
    assert "worry" not in str(right)


def test_the_report_goes_through_json_and_pickle(wrong: Report) -> None:
    written = json.loads(wrong.to_json())
    assert [each["role"] for each in written["parameters"]] == ["argument", "output"]
    assert written["parameters"][0]["rounding_ratio"] == wrong["x"].rounding_ratio
    assert written["reference"]["passed"]
    assert str(pickle.loads(pickle.dumps(wrong))) == str(wrong)
    assert "times what bfloat16 loses" in wrong._repr_html_()


def test_the_error_and_the_short_form_say_the_multiple(wrong: Report) -> None:
    with pytest.raises(GradientMismatchError, match=r"times what bfloat16 loses \(x\)"):
        wrong.raise_if_failed()
    assert "times what bfloat16 loses (x)" in repr(wrong)


def test_a_wrong_reference_is_said_first_everywhere(wrong: Report) -> None:
    own = wrong.reference
    assert own is not None
    bad = replace(own, parameters=tuple(replace(each, status=Status.MISMATCH) for each in own), culprit="Plain")
    report = replace(wrong, reference=bad)
    assert str(report).startswith("the REFERENCE is WRONG in 1 of 1 argument")
    assert "culprit in the reference: Plain" in str(report).splitlines()[1:3]
    html = report._repr_html_()
    assert html.index("the reference, in float64 against centered differences") < html.index("<thead>")
