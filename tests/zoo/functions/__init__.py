"""Functions right and wrong, with exactly the rows and the entries of the contract that a check must find wrong."""

from tests.zoo.functions.case import Case
from tests.zoo.functions.complex_numbers import complex_numbers
from tests.zoo.functions.forward_modes import forward_modes
from tests.zoo.functions.memory import memory
from tests.zoo.functions.modules import modules
from tests.zoo.functions.operators import operators
from tests.zoo.functions.outputs import outputs
from tests.zoo.functions.plain import plain
from tests.zoo.functions.second_order import second_order
from tests.zoo.functions.shapes import shapes
from tests.zoo.functions.state import state
from tests.zoo.functions.styles import styles
from tests.zoo.functions.upstream import upstream

FUNCTIONS: list[Case] = [
    *styles(),
    *outputs(),
    *shapes(),
    *upstream(),
    *memory(),
    *second_order(),
    *forward_modes(),
    *complex_numbers(),
    *state(),
    *operators(),
    *modules(),
    *plain(),
]
"""The table."""

__all__ = ["FUNCTIONS", "Case"]
