"""Pictures are drawn of patterns, and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from torch_gradcheck.reporting.facts import WrongMap
from torch_gradcheck.reporting.render.picture import Picture, picture_of

NAN = float("nan")


def drawn(
    height: int, width: int, share: Callable[[int, int], float], block: tuple[int, int] = (1, 1)
) -> Picture | None:
    cells = tuple(tuple(float(share(y, x)) for x in range(width)) for y in range(height))
    return picture_of(WrongMap(cells, f"{height} rows", f"{width} columns", block))


@pytest.mark.parametrize(
    ("height", "width", "share"),
    [
        (10, 8, lambda y, x: y == 3),
        (16, 12, lambda y, x: x == 5),
        (12, 12, lambda y, x: x == y),
        (12, 12, lambda y, x: y > 6 and x > 6),
        (8, 8, lambda y, x: (x + y) % 2),
        (16, 16, lambda y, x: y > x),
        (1, 44, lambda y, x: x >= 32),
        (1, 48, lambda y, x: x % 4 == 0),
        (1, 30, lambda y, x: 3 < x < 9),
    ],
    ids=["row", "column", "diagonal", "block", "chessboard", "triangle", "tail", "stripes", "run"],
)
def test_a_pattern_is_drawn(height: int, width: int, share: Callable[[int, int], float]) -> None:
    assert drawn(height, width, share) is not None


@pytest.mark.parametrize(
    "share",
    [lambda y, x: (y, x) == (3, 3), lambda y, x: 1, lambda y, x: (y, x) in ((1, 2), (5, 5)), lambda y, x: 0.3],
    ids=["one entry", "all", "two entries", "equal shares"],
)
def test_what_shows_nothing_is_not_drawn(share: Callable[[int, int], float]) -> None:
    assert drawn(10, 8, share) is None


@pytest.mark.parametrize("wrong", [0.05, 0.2, 0.5, 0.8])
def test_salt_is_not_drawn(wrong: float) -> None:
    salt = random.Random(0)
    assert not [drawn(10, 12, lambda y, x: salt.random() < wrong) for _ in range(20)].count(None) < 20


def test_the_legend_names_what_occurs_and_nothing_else() -> None:
    shares = (0.0, 0.0, 0.0, 0.2, 0.9, 0.9, NAN)
    found = drawn(1, 7, lambda y, x: shares[x], block=(1, 100))
    assert found is not None
    assert found.caption.endswith("a cell is 1 × 100): · none wrong, ░ up to ¼, █ up to all, blank not judged")
    assert found.lines == ("···░██ ",)


def test_the_legend_of_single_entries() -> None:
    found = drawn(4, 4, lambda y, x: y == 1)
    assert found is not None
    assert found.caption == "where (4 rows × 4 columns): █ wrong, · right"
