"""Meanings of a factor between a wrong gradient and the right one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

CLOSE = 1e-5
"""Two factors are the same if they differ by at most this share of one of them: 2.00001 is 2."""

COARSEST = 1e-2
"""A factor known to no better than 1 % may still be a number it is that close to: 0.336 in bfloat16 is 1/3."""


class FactorMeaning(NamedTuple):
    """A factor, and words on the mistake that it is a sign of; what `comes_first` is likelier than `ALWAYS`."""

    factor: float
    words: str
    comes_first: bool = False


ALWAYS = (
    FactorMeaning(2.0, "a factor 2 too many (counted twice, or a backward run twice)"),
    FactorMeaning(0.5, "a factor 2 forgotten (as in the slope of a square)"),
    FactorMeaning(-2.0, "a flipped sign, and a factor 2 too many"),
    FactorMeaning(-0.5, "a flipped sign, and a factor 2 forgotten"),
)
"""Factors that mean the same in every run."""


def count_meanings(count: int, of_what: str) -> list[FactorMeaning]:
    """Meanings of the factors n, 1/n, √n and 1/√n, where n = `count` is the number of `of_what`.

    Args:
        count: n; below 2 there are no meanings.
        of_what: in words, such as "rows of the batch".
    """
    if count < 2:
        return []
    root = math.sqrt(count)
    return [
        FactorMeaning(float(count), f"the number of {of_what} (a sum where a mean was meant)"),
        FactorMeaning(1 / count, f"1 / the number of {of_what} (a mean where a sum was meant)"),
        FactorMeaning(root, f"√{count}, {count} being the number of {of_what}"),
        FactorMeaning(1 / root, f"1/√{count}, {count} being the number of {of_what}"),
    ]


def meaning_of(factor: float, known: Sequence[FactorMeaning], uncertainty: float = 0.0) -> str:
    """Words on up to two things that `factor` may stand for, "" where none is known.

    Args:
        factor: wrong gradient / right gradient.
        known: factors with a meaning in this run, beside `ALWAYS` and powers of two from 2^8 on.
        uncertainty: of the factor, relative to it; more than 1 % counts as 1 %.
    """
    within = min(max(CLOSE, uncertainty), COARSEST)
    ordered = sorted((*ALWAYS, *known), key=lambda meaning: not meaning.comes_first)
    fitting = [meaning.words for meaning in ordered if _close(factor, meaning.factor, within)]
    if not fitting and (power := _loss_scale(factor)):
        fitting = [f"{power}, a loss scale that was {'not taken out' if factor > 1 else 'divided out twice'}"]
    return ", or ".join(_distinct(fitting)[:2])


def _close(one: float, other: float, within: float = CLOSE) -> bool:
    return abs(one - other) <= within * abs(other)


def _loss_scale(factor: float) -> str:
    """A loss scale in words: "2^16" for 65536, "2^-16" for its inverse; "" unless it is 2^8 to 2^24 or the inverse."""
    if factor <= 0 or not math.isfinite(factor):
        return ""
    exponent = round(math.log2(factor))
    return f"2^{exponent}" if 8 <= abs(exponent) <= 24 and _close(factor, 2.0**exponent) else ""


def _distinct(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def factor_in_words(value: float) -> str:
    """Four digits of a factor; eight where it is so close to 1 that four would hide the mistake: 1.0001."""
    return f"{value:.4g}" if abs(value - 1) > 5e-4 else f"{value:.8g}"
