"""The contract: its entries in the order of the report, each tried by a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.reporting.facts import ContractEntry

ENTRIES: Mapping[str, Callable[[Trial], ContractEntry]] = {}
"""Name → what tries it."""


def contract_of(trial: Trial) -> list[ContractEntry]:
    """Every entry, tried; an exception of the function inside of a trial belongs to its entry and does not come out."""
    return [tried(trial) for tried in ENTRIES.values()]
