"""Reports made by hand or drawn, all the way down to the reports that they hold."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tests.reporting.render.samples import ANY_ROW, SAMPLES, any_of, report_of
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.report import Report


def whole(found: Facts) -> Report:
    """The facts as a report, and those of the reference and of `.grad` as well."""
    held = {name: whole(part) for name in ("reference", "in_grad") if (part := getattr(found, name)) is not None}
    return replace(report_of(found), **held)


REPORTS = {name: whole(found) for name, found in SAMPLES.items()}

ANY_REPORT: st.SearchStrategy[Report] = any_of(Facts, parameters=st.lists(ANY_ROW, max_size=8).map(tuple)).map(whole)
