"""Mistakes that real backwards were shipped with, each in a small model, with the kind that the numbers prove of it.

They are told apart by what the one layer does wrong; what it spoils upstream shows it only mixed.
"""

from __future__ import annotations

from tests.zoo.planted.row import Planted
from tests.zoo.real_mistakes.layers import activations, normalisations
from tests.zoo.real_mistakes.masks import masks, places
from tests.zoo.real_mistakes.near_misses import not_told
from tests.zoo.real_mistakes.parameters import paths, sums
from tests.zoo.real_mistakes.terms import losses, terms

MISTAKES: list[Planted] = [
    *normalisations(),
    *activations(),
    *masks(),
    *places(),
    *terms(),
    *losses(),
    *sums(),
    *paths(),
    *not_told(),
]
"""The table; `kinds` is the diagnosis of every wrong parameter."""
