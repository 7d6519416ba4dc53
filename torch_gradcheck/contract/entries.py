"""The contract: its entries in the order of the report, each tried by a file of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from torch_gradcheck.contract.forward_ad import forward_ad
from torch_gradcheck.contract.grad_output_kept import grad_output_kept
from torch_gradcheck.contract.inputs_kept import inputs_kept
from torch_gradcheck.contract.layouts import layouts
from torch_gradcheck.contract.needs_input_grad import needs_input_grad
from torch_gradcheck.contract.outcome import Raised, attempted, not_applicable
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.contract.released import released
from torch_gradcheck.contract.repeatable import repeatable
from torch_gradcheck.contract.second_order import second_order
from torch_gradcheck.contract.shapes_and_dtypes import shapes_and_dtypes
from torch_gradcheck.contract.trial import Trial
from torch_gradcheck.contract.undefined_grads import undefined_grads
from torch_gradcheck.contract.vmap import vmap
from torch_gradcheck.reporting.facts import ContractEntry

IN_ANY_PRECISION: Mapping[str, Callable[[Trial], ContractEntry]] = {
    "repeatable": repeatable,
    "inputs_kept": inputs_kept,
    "grad_output_kept": grad_output_kept,
    "layouts": layouts,
    "needs_input_grad": needs_input_grad,
    "undefined_grads": undefined_grads,
    "shapes_and_dtypes": shapes_and_dtypes,
    "released": released,
    "vmap": vmap,
}
"""Name → what tries it, of the entries that difference nothing."""

OF_SLOPES: Mapping[str, Callable[[ProblemTrial], ContractEntry]] = {
    "second_order": second_order,
    "forward_ad": forward_ad,
}
"""Those that do."""

LAST = "vmap"
"""The name of the last entry of a report."""

ENTRIES = (*[name for name in IN_ANY_PRECISION if name != LAST], *OF_SLOPES, LAST)
"""The names in the order of the report."""


def contract_of(trial: Trial) -> list[ContractEntry]:
    """Every entry, tried; an exception of the function inside of a trial belongs to its entry and does not come out.

    Nor does a warning, which would be an exception where warnings are errors: of backward hooks where the input needs
    no gradient, say. The function has run before, with the caller's filters.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_attempted(name, trial) for name in ENTRIES]


def entry_of(name: str, trial: Trial) -> ContractEntry:
    """The entry of this name; one that needs slopes is tried in the precision of a check by differences only."""
    if name in IN_ANY_PRECISION:
        return IN_ANY_PRECISION[name](trial)
    if isinstance(trial, ProblemTrial):
        return OF_SLOPES[name](trial)
    return not_applicable(name, "it needs differences, and these float64: it is tried without reference=")


def _attempted(name: str, trial: Trial) -> ContractEntry:
    """The entry; one that raises where nothing was to be expected has not been tried, and accuses nobody."""
    found = attempted(lambda: entry_of(name, trial))
    return not_applicable(name, f"could not be tried: {found}") if isinstance(found, Raised) else found
