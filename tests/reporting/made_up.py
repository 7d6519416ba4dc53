"""Reports made by hand or drawn, all the way down to the reports that they hold."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.reporting.render.samples import ANY_ROW, SAMPLES, any_of, report_of
from torch_gradcheck.reporting.facts import ContractEntry, Facts
from torch_gradcheck.reporting.report import Report


def whole(found: Facts) -> Report:
    """The facts as a report, and those of the reference and of `.grad` as well."""
    held = {name: whole(part) for name in ("reference", "in_grad") if (part := getattr(found, name)) is not None}
    return replace(report_of(found), **held)


REPORTS = {name: whole(found) for name, found in SAMPLES.items()}


def _any_facts(rows: int, inside: st.SearchStrategy[Facts | None]) -> st.SearchStrategy[Facts]:
    """Facts with any values and at most so many rows; `inside` makes the report on `.grad` or on a reference."""
    parameters = st.lists(ANY_ROW, max_size=rows).map(tuple)
    notes, contract = st.lists(st.text(), max_size=2), st.lists(st.from_type(ContractEntry), max_size=2)
    return any_of(Facts, parameters=parameters, in_grad=inside, reference=inside, notes=notes, contract=contract)


ANY_REPORT: st.SearchStrategy[Report] = _any_facts(3, st.none() | _any_facts(1, st.none())).map(whole)
"""Any values in every field, on both floors of a report."""
