"""The colours of pages and plots, which people with any colour vision tell apart; a word or a shape says the same."""

from __future__ import annotations

from torch_gradcheck.reporting.facts import ContractStatus, Status

GREY = "#66707a"
"""Of what was not measured, and of what does not apply."""

RIGHT, WRONG, OPEN, FLAT = "#00795c", "#c03d00", "#8a6100", "#8250a8"
"""After the palette of Okabe and Ito, darkened: white text on them has a contrast of 5, they on black one of 3.
So they serve light and dark pages alike.

Source: M. Okabe, K. Ito, "Color Universal Design", 2008.
"""

NEGATIVE, POSITIVE = "#1f6fb5", "#c9650b"
"""Of numbers in a heat map, below and above zero: the larger, the more opaque."""

STATUS_COLOURS = {
    Status.MATCH: RIGHT,
    Status.MISMATCH: WRONG,
    Status.KINK: OPEN,
    Status.UNDECIDED: OPEN,
    Status.FLAT: FLAT,
    Status.UNUSED: GREY,
    Status.FROZEN: GREY,
}

CONTRACT_COLOURS = {
    ContractStatus.PASSED: RIGHT,
    ContractStatus.FAILED: WRONG,
    ContractStatus.NOT_APPLICABLE: GREY,
}
