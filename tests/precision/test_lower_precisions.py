from __future__ import annotations

import numpy as np
import pytest

from torch_gradcheck.precision.lower_precisions import held_by, rounding_of_all

NUMBERS = np.array([0.5, 1 + 2.0**-7, 1 + 2.0**-8, 1 + 2.0**-10, 1 + 2.0**-23, 1 + 2.0**-30, 1e30, 1e300, np.nan])


@pytest.mark.parametrize(
    ("name", "held"),
    [("bfloat16", [0, 1]), ("float16", [0, 1, 2, 3]), ("float32", [0, 1, 2, 3, 4])],
)
def test_which_numbers_a_precision_holds(name: str, held: list[int]) -> None:
    assert np.flatnonzero(held_by(name, NUMBERS)).tolist() == held


def test_the_coarsest_precision_of_all() -> None:
    found = [rounding_of_all([NUMBERS[:count]]) for count in (2, 4, 5, 6)]
    assert [each and each.name for each in found] == ["bfloat16", "float16", "float32", None]
