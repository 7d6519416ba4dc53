"""The weights of a window's batches: what factors mean, and which shares `.grad` is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from torch_gradcheck.arrays import Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.objective.loss import ClosureLoss
from torch_gradcheck.training_step.window import Window, window_mistake


def window(weights: Sequence[float] = (), count: int = 3, accumulate: int = 3, divisor: float | None = None) -> Window:
    losses = [ClosureLoss(lambda: 0)] * count
    return Window(losses, tuple(weights), divisor or sum(weights) or count, accumulate)


@pytest.mark.parametrize(
    ("of", "meanings"),
    [
        pytest.param(window(), {1 / 3: "means over the window already were divided by 3"}, id="a whole window"),
        pytest.param(
            window(count=2),
            {2 / 3: "this window has 2 batches, and their losses were divided by 3", 1 / 3: "already"},
            id="a shorter one",
        ),
        pytest.param(window(count=1), {1 / 3: "this window has 1 batch, and"}, id="one batch"),
        pytest.param(
            window([2, 8, 5]),
            {15.0: "not divided by the sum of the weights, 15", 5.0: "15, but by 3 accumulation steps"},
            id="weighted",
        ),
        pytest.param(window(count=1, accumulate=1), {}, id="no accumulation"),
    ],
)
def test_what_a_factor_means_in_this_window(of: Window, meanings: dict[float, str]) -> None:
    found = {round(meaning.factor, 9): meaning.words for meaning in reversed(of.factor_meanings())}
    assert all(words in found[round(factor, 9)] for factor, words in meanings.items())
    assert bool(found) is bool(meanings)


def test_a_divisor_that_is_not_the_sum_of_the_weights_is_noted() -> None:
    assert window().note == window([1, 2, 3]).note == ""
    note = window(count=1, divisor=3).note
    assert note.startswith("this step has 1 batch, and the trainer divides the sum of their losses by 3")
    assert "0.333 of the gradient of their mean" in note


def parts(count: int = 3, entries: int = 40, alike: float = 0.0) -> list[Floats]:
    """Gradients of the batches; `alike` of 1 makes them the same."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(entries)
    return [alike * common + (1 - alike) * rng.standard_normal(entries) for _ in range(count)]


def message(of: Window, shares: Sequence[float], entries: int = 40, bar: float = 1e-6, **options: float) -> str:
    """What is said of a `.grad` that holds these shares of the batches' gradients."""
    gradients = parts(len(shares), entries, **options)
    given, right = (np.asarray(sum(c * g for c, g in zip(by, gradients, strict=True))) for by in (shares, of.shares))
    evidence = Evidence.of(given, right, np.zeros(entries), bar)
    found = window_mistake({7: evidence}, of, [{7: gradient} for gradient in gradients], scaled=False)
    return found[7].message if found else ""


@pytest.mark.parametrize(
    ("of", "shares", "words"),
    [
        pytest.param(
            window([2, 8, 5]), [1 / 3] * 3, "averaged with equal weights. Divide each batch's summed loss by the "
            "window's total, 15", id="the mean of means",
        ),
        pytest.param(window([2, 8, 5]), [1.0] * 3, "dθ is 3 × the mean of the 3 batches", id="its sum"),
        pytest.param(
            window(), [2 / 15, 8 / 15, 5 / 15], "with weights 0.133, 0.533, 0.333, where equal weights are declared",
            id="weights that were not declared",
        ),
        pytest.param(
            window([2, 8, 5]), [0.5, 0.25, 0.25], "with weights 0.5, 0.25, 0.25, where 0.133, 0.533, 0.333 are",
            id="other weights",
        ),
        pytest.param(window(), [0, 1 / 3, 1 / 3], "holds nothing of batch 1 of the 3", id="a batch is missing"),
        pytest.param(window(), [2 / 3] * 3, "", id="a factor on all is no matter of weights"),
        pytest.param(window([2, 8, 5]), [2.0, 8.0, 5.0], "", id="the weights, undivided"),
    ],
)  # fmt: skip
def test_shares_that_are_not_those_declared_are_named(of: Window, shares: list[float], words: str) -> None:
    found = message(of, shares)
    assert words in found
    assert bool(found) is bool(words)


def test_shares_that_rounding_leaves_open_are_not_named() -> None:
    shares = [2 / 15, 8 / 15, 5 / 15]
    assert message(window(), shares, alike=0.9)
    assert not message(window(), shares, alike=0.9, bar=1e-2)


def test_too_few_entries_prove_no_shares() -> None:
    assert not message(window(), [2 / 15, 8 / 15, 5 / 15], entries=10)


def test_a_gradient_that_is_no_sum_of_the_batches_is_not_explained() -> None:
    of, gradients = window(), parts()
    right = np.asarray(sum(gradients)) / 3
    spoiled = right + np.random.default_rng(1).standard_normal(40)
    evidence = Evidence.of(spoiled, right, np.zeros(40), 1e-6)
    assert window_mistake({0: evidence}, of, [{0: gradient} for gradient in gradients], scaled=False) == {}
