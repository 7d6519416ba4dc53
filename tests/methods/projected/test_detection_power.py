from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.methods.projected.detection_power import DENSITY, MISSED, detectable

ERRORS = {
    "one entry": [1.0],
    "two equal entries": [1.0, 1.0],
    "two that cancel": [1.0, -1.0],
    "three": [1.0, 2.0, 2.0],
    "forty": list(np.linspace(-1, 1, 40)),
}


def components(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    drawn = rng.uniform(-1, 1, shape)
    return drawn + np.copysign(0.5, drawn)


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("elsewhere", [0.0, 0.7, -1.4])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_an_error_is_missed_no_more_often_than_the_bound_says(error: list[float], elsewhere: float) -> None:
    e = np.array(error) / np.linalg.norm(error)
    seen = components(np.random.default_rng(0), (200_000, len(e))) @ e + elsewhere
    for threshold in (0.02, 0.1):
        bound = 2 * threshold * np.sqrt(2) * DENSITY
        assert np.mean(np.abs(seen) <= threshold) <= bound + 4 * np.sqrt(bound / len(seen))


def test_more_directions_see_more() -> None:
    sizes = [detectable(1e-6, directions) for directions in (1, 2, 4, 8, 16)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(np.sqrt(2) * 1e-6 / MISSED)


def test_steps_to_choose_from_count_as_chances_to_miss() -> None:
    assert detectable(1e-6, 8, choices=6) == pytest.approx(6 * detectable(1e-6, 8))
