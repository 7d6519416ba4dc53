"""The summary of a monitored run: a line, and one more for each step of which something is left to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch_gradcheck.errors import GradcheckError
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.printable import prose
from torch_gradcheck.reporting.render.outline import headline, one_line_with_place
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.training_step.regimes import is_left_open


def unproven(report: Report) -> str:
    """The reason why a report proved nothing of the model's backward, or of `.grad`; "" where it did."""
    if report.mismatches:
        return ""
    if report.backward_spread:
        return headline(report)
    left_open = [row.reason for row in report if is_left_open(row)]
    if left_open:
        return f"{len(left_open)} of {len(report)} parameters are undecided, {left_open[0]}"
    if not any(row.status.is_proven for row in report):
        return f"nothing was proven: {_counted(list(report))}"
    rows = [] if report.in_grad is None else [row for row in report.in_grad if row.status.is_checked]
    if not rows or any(row.status.is_proven for row in rows):
        return ""
    if all(row.status is Status.UNDECIDED for row in rows):
        return f".grad could not be judged: {rows[0].reason}"
    return f"nothing was proven of .grad: {_counted(rows)}"


def wrong_in_words(report: Report) -> str:
    """How much is wrong, and with what: the culprit and its line of code, else the mistake that most rows share."""
    if report.culprit is not None:
        return one_line_with_place(report)
    mistakes = Counter(row.diagnosis.message for row in report.mismatches if row.diagnosis is not None)
    return "; ".join(
        [headline(report), *[" ".join(prose(message).splitlines()) for message, _ in mistakes.most_common(1)]]
    )


def summary_of(
    steps: int,
    reports: Mapping[int, Report],
    errors: Mapping[int, GradcheckError],
    besides: Sequence[str] = (),
) -> str:
    """The outcome of a run.

    Args:
        steps: the training steps that are over.
        reports: step → its report.
        errors: step → why it could not be checked.
        besides: lines on what else is to be said: steps that were not checked, gradients that vanish or explode.
    """
    wrong = {step: wrong_in_words(report) for step, report in reports.items() if report.mismatches}
    unknown = {step: words for step, report in reports.items() if (words := unproven(report))}
    failed = {step: f"could not be checked: {error}" for step, error in errors.items()}
    grad = sum(".grad" in words for words in unknown.values())
    parts = [
        f"gradients checked on {len(reports)} of {steps} training steps",
        (f"{len(wrong)} wrong" if wrong else "none wrong") if reports else "",
        f".grad not judged on {grad}" if grad else "",
        f"nothing proven on {len(unknown) - grad}" if len(unknown) > grad else "",
        f"{len(failed)} could not be checked" if failed else "",
    ]
    lines = [f"  step {step}: {words}" for step, words in sorted({**wrong, **unknown, **failed}.items())]
    return "\n".join([", ".join(filter(None, parts)), *lines, *(f"  {line}" for line in besides)])


def never_came(steps: Sequence[int], over: bool) -> str:
    """A line on scheduled steps that did not come, or have not yet; "" without one."""
    if not steps:
        return ""
    came = "scheduled and never reached" if over else "still to come"
    return f"step{'' if len(steps) == 1 else 's'} {listed(steps)}: {came}"


def unfinished(step: int, batches: int, accumulate: int, over: bool) -> str:
    """A line on a scheduled step of which some batches came."""
    came = f"step {step}: {batches} of its {accumulate} batches came"
    return f"{came}. Say step(batch, last=True) where a window ends early" if over else f"{came} so far"


def _counted(rows: Sequence[ParameterReport]) -> str:
    counts = Counter(str(row.status) for row in rows)
    return ", ".join(f"{number} {status}" for status, number in counts.items()) or "no parameter was checked"
