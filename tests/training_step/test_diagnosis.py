from __future__ import annotations

import pytest

from torch_gradcheck.training_step.diagnosis import words_of_factor


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        pytest.param(2.0, "accumulated 2 times", id="twice"),
        pytest.param(3.998, "accumulated 4 times", id="four times, rounded"),
        pytest.param(0.25, "divided by 4 accumulation steps that were not taken", id="a quarter"),
        pytest.param(1 / 7, "a mean over 7 workers", id="a seventh"),
        pytest.param(65536.0, "2^16, a loss scale", id="a loss scale"),
        pytest.param(255.5, "2^8, a loss scale", id="a small loss scale, rounded"),
        pytest.param(1.5, "", id="nothing known"),
        pytest.param(100.0, "", id="too many workers"),
        pytest.param(-2.0, "", id="negative"),
        pytest.param(0.0, "", id="zero"),
    ],
)
def test_what_a_factor_means_in_a_training_loop(factor: float, words: str) -> None:
    found = words_of_factor(factor)
    assert words in found
    assert bool(found) is bool(words)
