"""The content of a report in its order, in words and figures; text and HTML only lay it out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch_gradcheck.reporting.facts import (
    Facts,
    ParameterReport,
    Status,
    badness,
)
from torch_gradcheck.reporting.facts.one_line import shape_of
from torch_gradcheck.reporting.printable import printable, prose
from torch_gradcheck.reporting.render.beside_reference import outcome_beside, summary_beside, tightness
from torch_gradcheck.reporting.render.columns import Column, columns_of
from torch_gradcheck.reporting.render.contract import Contract, contract_outcome, contract_section
from torch_gradcheck.reporting.render.figures import error_bar, figure, raised, word
from torch_gradcheck.reporting.render.limits import ALL, Limits
from torch_gradcheck.reporting.render.mistakes import Mistake, alike, mistakes_of
from torch_gradcheck.reporting.words import STATUS_WORDS, counted, noun, tolerance_in_words

FIGURE = re.compile(r"(?<![\w.:\[=-])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?: of \d+)?(?![\w.\]]*\w)")
"""A measured number in a sentence, or how many of how many; no index, line of code or option."""

MAX_ROWS = 10
"""Wrong rows that are shown where nothing else is asked for, and as many others; further ones are counted."""

SHOWN = 3
"""Rows of every status but `mismatch` that are shown where there are more than that."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table; `figures`, one a column, are `UNMEASURED` where nothing was."""

    status: Status
    mark: str
    name: str
    shape: str
    figures: tuple[str, ...]

    @property
    def is_wrong(self) -> bool:
        """Whether the row is a mismatch."""
        return self.status is Status.MISMATCH


@dataclass(frozen=True, slots=True)
class Fold:
    """The lines of one status that a long table leaves out, and the sentence that stands for them."""

    sentence: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Gap:
    """Parameters of one status for one reason, of which something is not proven."""

    status: Status
    mark: str
    names: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outline:
    """The whole content of a report, top to bottom.

    Attributes:
        style: the colour of the headline: red where something is wrong, green where all is proven, else yellow.
        called: the noun for its rows.
        place: where in the code the mistake of the culprit is; "" where that is not known.
        reference: the report on the reference, where that is wrong itself.
        columns: of the figures in `lines`.
        sides: what an entry's two numbers are.
    """

    headline: str
    style: str
    called: str
    culprit: str | None
    place: str
    summary: tuple[str, ...]
    reference: Outline | None
    columns: tuple[Column, ...]
    sides: tuple[str, str]
    lines: tuple[Line, ...]
    folds: tuple[Fold, ...]
    tied: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    more_mistakes: str
    contract: Contract | None
    gaps: tuple[Gap, ...]
    more_gaps: str
    notes: tuple[str, ...]


def outline(facts: Facts, max_rows: int | None = MAX_ROWS, only_wrong: bool = False) -> Outline:
    """Returns the content of the report on `facts`: strings of bounded number, printable and free of markup.

    Args:
        facts: what was found.
        max_rows: the number of wrong rows that are shown and explained, and of all others; None for no limit.
        only_wrong: show no others, and say nothing of what is not proven.
    """
    rows = [*facts.mismatches, *(row for row in facts if row.status is not Status.MISMATCH)]
    shown, left_out = _fold(rows, max_rows, only_wrong)
    told = ALL if max_rows is None else Limits()
    gaps, groups = [] if only_wrong else _gaps(rows, told), alike(facts)
    reference = facts.reference if facts.has_wrong_reference else None
    return Outline(
        headline=headline(facts),
        style=_style(facts),
        called=noun(row.role for row in facts),
        culprit=culprit_in_words(facts),
        place=printable(facts.place),
        summary=_summary(facts),
        reference=None if reference is None else outline(reference, max_rows, only_wrong),
        columns=columns_of(facts),
        sides=("analytic", "numeric") if facts.reference is None else ("candidate", "reference"),
        lines=tuple(_line(row, facts) for row in shown),
        folds=tuple(_folded(group, facts) for group in left_out),
        tied=_tied(facts, told),
        mistakes=tuple(mistake for group in groups[:max_rows] for mistake in mistakes_of(group, told)),
        more_mistakes=_more(
            sum(map(len, groups[len(groups[:max_rows]) :])), "that are wrong; report.mismatches has them all"
        ),
        contract=contract_section(facts),
        gaps=tuple(gaps[: told.listed]),
        more_gaps=_more(
            len(gaps) - len(gaps[: told.listed]), "that are not proven for other reasons; to_dict() has them all"
        ),
        notes=tuple(prose(note) for note in facts.notes if reference is None or note not in reference.notes),
    )


def _style(facts: Facts) -> str:
    if facts.is_wrong or facts.backward_spread:
        return "red"
    return "green" if facts.proven else "yellow"


def culprit_in_words(facts: Facts) -> str | None:
    """Returns the culprit's name, or what it is where it has none; None without a culprit."""
    return None if facts.culprit is None else printable(facts.culprit) or _model_itself(facts)


def _model_itself(facts: Facts) -> str:
    if facts.notes and facts.notes[0].startswith("the compiler ("):
        return "the compiled model"
    return "the model itself" if facts.place else "the model's own forward"


def one_line(facts: Facts) -> str:
    """Returns the headline, and the culprit where there is one."""
    culprit = culprit_in_words(facts)
    return headline(facts) if culprit is None else f"{headline(facts)}; culprit: {culprit}"


def one_line_with_place(facts: Facts) -> str:
    """Returns the same, and where in the code the mistake is, where that is known."""
    return f"{one_line(facts)}, {printable(facts.place)}" if facts.place else one_line(facts)


def headline(facts: Facts) -> str:
    """Returns the outcome on one line: the numbers of gradients that are wrong, right, or neither; the contract."""
    counts = Counter(row.status for row in facts)
    total = counted([row.role for row in facts])
    others = [
        f"{counts[status]:,} {words.counted}"
        for status, words in STATUS_WORDS.items()
        if words.counted and counts[status]
    ]
    if facts.reference is not None:
        outcome = outcome_beside(facts)
    elif counts[Status.MISMATCH]:
        outcome = f"gradients WRONG in {counts[Status.MISMATCH]:,} of {total}"
    elif facts.backward_spread:
        outcome = f"the backward is NOT ONE FUNCTION, {counts[Status.MATCH]:,} of {total} right"
    elif counts[Status.MATCH] or facts.passed:
        outcome = f"gradients right{raised(facts.tolerance)}: {counts[Status.MATCH]:,} of {total}"
    else:
        outcome = f"no gradient proven right: 0 of {total}"
    if facts.order == 2:
        outcome = outcome.replace("gradient", "second-order gradient")
    return ", ".join(filter(None, [outcome, *others, contract_outcome(facts)]))


def _summary(facts: Facts) -> tuple[str, ...]:
    if facts.reference is not None:
        return summary_beside(facts, headline(facts.reference), _effort(facts))
    noise = "unknown" if math.isnan(facts.noise) else error_bar(facts.noise)
    return (
        f"{ratio_in_words(facts)}; up to {tolerance_in_words(facts.tolerance)} passes{_allowed(facts)}",
        f"{_what(facts)} {facts.loss:.8g} (noise {noise}); {printable(facts.method)} method, {_effort(facts)}",
        f"{printable(facts.dtype)}, mode {printable(facts.mode)}, seed {facts.seed}",
    )


def _allowed(facts: Facts) -> str:
    """Returns what else passes, where a ratio beyond the tolerance did: what rounding explains."""
    ratio = facts.relative_error
    if ratio is None or not math.isfinite(ratio) or (ratio > facts.tolerance) is bool(facts.mismatches):
        return ""
    if not facts.mismatches:
        return ", and what the error bars explain"
    worst = max(facts.mismatches, key=badness)
    are = "is" if worst.mismatched == 1 else "are"
    return f" in every entry: {worst.mismatched:,} of {worst.checked:,} {are} wrong in {printable(worst.name)}"


def _effort(facts: Facts) -> str:
    by = "" if facts.processes == 1 else f" by {facts.processes:,} processes"
    return f"{_count(facts.evaluations, 'evaluation')} of J{by}, {facts.seconds:,.2f} s"


def _what(facts: Facts) -> str:
    return "loss" if facts.order == 1 else "⟨v, ∇J⟩"


def ratio_in_words(facts: Facts) -> str:
    """Returns Ng's ratio over θ and the word for it, or that there is none; of a candidate what rounding explains."""
    if facts.reference is not None:
        return tightness(facts)
    if facts.relative_error is None:
        return "no relative error: nothing was decided"
    in_words = word(facts.relative_error, facts.verdict, facts.tolerance)
    return f"relative error {figure(facts.relative_error)} ({in_words}) over {_decided_part(facts)}"


def _decided_part(facts: Facts) -> str:
    checked = [row.status for row in facts if row.status.is_checked]
    return "the whole θ" if all(status.is_decided for status in checked) else "the decided part of θ"


def _fold(
    rows: Sequence[ParameterReport], most: int | None, only_wrong: bool
) -> tuple[list[ParameterReport], list[list[ParameterReport]]]:
    """Returns the rows of a table in their order, and the rows left out, grouped by status."""
    by_status: dict[Status, list[ParameterReport]] = {}
    for row in rows:
        by_status.setdefault(row.status, []).append(row)
    wrong = by_status.pop(Status.MISMATCH, [])
    is_short = most is None or len(rows) - len(wrong) <= most
    shown = list(wrong[:most])
    for status, group in by_status.items():
        shown += [] if only_wrong else group if is_short else _most_telling(group, status, min(SHOWN, most or 0))
    kept = set(map(id, shown))  # and not the rows themselves, which are compared by all that they hold
    left_out = [[row for row in group if id(row) not in kept] for group in (wrong, *by_status.values())]
    return [row for row in rows if id(row) in kept], [group for group in left_out if group]


def _most_telling(rows: Sequence[ParameterReport], status: Status, most: int) -> list[ParameterReport]:
    """Returns the first rows of a status or, where they have been proven right, those with the largest errors."""
    return sorted(rows, key=badness, reverse=True)[:most] if status.is_proven else list(rows[:most])


def _line(row: ParameterReport, facts: Facts) -> Line:
    return Line(
        status=row.status,
        mark=STATUS_WORDS[row.status].mark,
        name=printable(row.name),
        shape=shape_of(row.shape),
        figures=tuple(column.cell(row, facts.tolerance) for column in columns_of(facts)),
    )


def _folded(rows: Sequence[ParameterReport], facts: Facts) -> Fold:
    words = STATUS_WORDS[rows[0].status]
    sentence = _more(len(rows), words.folded)
    if not words.leaves_open:
        sentence += f", {_range([badness(row) for row in rows])}"
    return Fold(sentence, tuple(_line(row, facts) for row in rows))


def _range(ratios: Sequence[float]) -> str:
    """Returns the range of relative errors in words: "relative errors 3.1e-09 to 7.7e-06"."""
    lowest, highest = figure(min(ratios)), figure(max(ratios))
    return f"relative error {lowest}" if lowest == highest else f"relative errors {lowest} to {highest}"


def _tied(facts: Facts, limits: Limits) -> tuple[str, ...]:
    tied = [row for row in facts if row.aliases]
    sentences = [f"{printable(row.name)} is also {limits.names(row.aliases)}" for row in tied[: limits.listed]]
    more = _more(len(tied) - len(sentences), "with other names")
    return (*sentences, more) if more else tuple(sentences)


def _gaps(rows: Sequence[ParameterReport], limits: Limits) -> list[Gap]:
    groups: dict[tuple[Status, str], list[tuple[str, str]]] = {}
    for status in sorted(STATUS_WORDS, key=lambda status: not STATUS_WORDS[status].is_told_first):
        leaves_open = STATUS_WORDS[status].leaves_open
        for row in rows:
            if leaves_open and row.status is status:
                reason = row.reason or leaves_open
                groups.setdefault((status, FIGURE.sub("#", reason)), []).append((row.name, reason))
    return [
        Gap(
            status,
            STATUS_WORDS[status].mark,
            limits.names([name for name, _ in group]),
            prose(_in_one([reason for _, reason in group])),
        )
        for (status, _), group in groups.items()
    ]


def _in_one(reasons: Sequence[str]) -> str:
    """Returns sentences that differ in their figures as one, with ranges in the place of these."""
    words = FIGURE.split(reasons[0])
    figures = [sorted(set(each), key=_number) for each in zip(*map(FIGURE.findall, reasons), strict=True)]
    ranges = [each[0] if len(each) == 1 else f"{each[0]} to {each[-1]}" for each in figures]
    return words[0] + "".join(span + after for span, after in zip(ranges, words[1:], strict=True))


def _number(figure: str) -> float:
    return float(figure.partition(" ")[0])


def _more(count: int, what: str) -> str:
    """Returns the line for `count` things left out; "" when there are none."""
    return f"… and {count:,} more {what}" if count > 0 else ""


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
