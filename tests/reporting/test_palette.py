from __future__ import annotations

import pytest

from torch_gradcheck.reporting.facts import ContractStatus, Status
from torch_gradcheck.reporting.palette import CONTRACT_COLOURS, STATUS_COLOURS

COLOURS = sorted({*STATUS_COLOURS.values(), *CONTRACT_COLOURS.values()})


def luminance(colour: str) -> float:
    """The relative luminance of a colour in sRGB, as the guidelines for accessible pages (WCAG 2.1) define it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_white_words_on_a_colour_can_be_read_and_it_is_seen_on_black(colour: str) -> None:
    assert contrast(colour, "#ffffff") >= 4.9
    assert contrast(colour, "#000000") >= 3


def test_every_status_has_a_colour() -> None:
    assert set(STATUS_COLOURS) == set(Status)
    assert set(CONTRACT_COLOURS) == set(ContractStatus)
