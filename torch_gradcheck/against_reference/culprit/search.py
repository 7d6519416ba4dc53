"""The module at fault: after a mismatch, every module that both sides have under one name is judged alone.

What a call was given, forward and backward, is recorded in a run of the candidate, in its own dtypes. Alone, a mistake
shows that is a small share of the gradients of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from torch import nn

from torch_gradcheck.against_reference.culprit.hidden_mistakes import hidden_in, is_seen_in
from torch_gradcheck.against_reference.culprit.sentences import CulpritWords, place_of_code
from torch_gradcheck.against_reference.culprit.single_modules import SingleModule, code_of
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.pair import Pair
from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.counterparts import Counterparts
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent, parts_on_trial
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.diagnosis.culprit.call_recording import GradientTaps, Recording
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall
from torch_gradcheck.diagnosis.culprit.single_calls import in_one_line
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.modules import named_modules

TRIED = 2
"""How many calls of one module are tried: those that are given the largest gradients."""

MOST_HIDDEN = 3
"""How many modules that are wrong alone are looked for in gradients that rounding may explain: the worst ones."""

TAPS = GradientTaps(inputs=False, rooted=False)
"""Outputs of calls are replaced by copies, to record the gradients that arrive for them."""


@dataclass(frozen=True)
class Verdict:
    """A module alone.

    Attributes:
        single: the module, and what it was called with.
        verdicts: on each of its gradients and outputs.
        raises: why it could not be judged; "" where it was.
    """

    single: SingleModule
    verdicts: Sequence[Judged] = ()
    raises: str = ""

    @cached_property
    def wrong(self) -> list[Judged]:
        """What is wrong of it, the furthest beyond its error bar first; empty where it is right."""
        return sorted([each for each in self.verdicts if each.is_wrong], key=attrgetter("excess"), reverse=True)

    @property
    def excess(self) -> float:
        """By how many times its error bar the worst tensor is off."""
        return self.wrong[0].excess if self.wrong else 0.0

    @property
    def has_right_outputs(self) -> bool:
        """Whether its forward is right, so that nothing but its backward can be wrong."""
        return all(each.compared.entry.role is not Role.OUTPUT for each in self.wrong)


NO_CULPRIT = Culprit(None, ())
"""Nothing is wrong."""


def culprit_beside(
    pair: Pair, found: Candidate, exact: Run, verdicts: Sequence[Judged], rows: Sequence[ParameterReport]
) -> Culprit:
    """The innermost module that is wrong when it is run alone, in the words of a report.

    Modules whose code is not the reference's are tried first, and the others only where none of these is wrong. Those
    whose outputs get no gradient are tried last, and inside of what is wrong.

    Args:
        pair: the candidate and its reference.
        found: what the candidate computed.
        exact: what the reference computed in float64.
        verdicts: on the whole.
        rows: of the report, one a verdict.
    """
    wrong = [each for each, row in zip(verdicts, rows, strict=True) if row.status is Status.MISMATCH]
    if not wrong:
        return NO_CULPRIT

    def is_seen(each: Verdict) -> bool:
        return bool(each.wrong) and is_seen_in(pair, found, exact, verdicts, each.single, each.verdicts)

    return _found(pair, sorted(wrong, key=attrgetter("excess"), reverse=True), is_seen)


def with_hidden(
    pair: Pair, found: Candidate, exact: Run, verdicts: Sequence[Judged]
) -> tuple[Sequence[Judged], Culprit]:
    """The verdicts where nothing is wrong: with those on what a module spoils whose mistake rounding hides, and this.

    Only modules are tried whose code is not the reference's.

    Args:
        pair: the candidate and its reference.
        found: what the candidate computed.
        exact: what the reference computed in float64.
        verdicts: on the whole.
    """
    values, words = pair.counterparts, CulpritWords(pair.candidate)
    if any(each.is_wrong for each in verdicts) or not _has_patched(values):
        return verdicts, NO_CULPRIT
    try:
        recording = _recorded(pair.candidate, values, pair.request)
    except Exception:  # a model that cannot be recorded is judged as a whole alone
        return verdicts, NO_CULPRIT
    singles = [each for each in _singles(recording.calls, values) if each.has_gradients]
    tried = [_judged(single, values, pair.request) for single in _groups(singles)[0]]
    wrong = sorted([each for each in tried if each.wrong], key=attrgetter("excess"), reverse=True)
    for each in wrong[:MOST_HIDDEN]:
        hidden = hidden_in(pair, found, exact, verdicts, each.single, each.verdicts)
        if hidden is not None:
            return hidden, _named([each], words)
    return verdicts, Culprit(None, (words.made_up_for(wrong[0].single, wrong[0].wrong),)) if wrong else NO_CULPRIT


def _has_patched(values: Counterparts) -> bool:
    """Whether a module of both sides has other code than the reference's; the models themselves aside."""
    theirs = dict(named_modules(values.reference))
    own = [(theirs[name], each) for name, each in named_modules(values.candidate) if name and name in theirs]
    return any(code_of(one) is not code_of(other) for one, other in own)


def _found(pair: Pair, wrong: Sequence[Judged], is_seen: Callable[[Verdict], bool]) -> Culprit:
    candidate, values, request = pair.candidate, pair.counterparts, pair.request
    words = CulpritWords(candidate)
    try:
        recording = _recorded(candidate, values, request)
    except Exception as error:  # whatever a recorded run raises, the verdict on the gradients stands
        return Culprit(None, (words.none(f"a run in which calls are recorded raises {in_one_line(error)}"),))
    if recording.full:
        return Culprit(None, (words.none("the inputs of all modules together take more than 1 GiB"),))
    tried, singles = list[Verdict](), _singles(recording.calls, values)
    without = [each for each in singles if not each.has_gradients]

    for group in _groups([each for each in singles if each.has_gradients]):
        tried += [_judged(single, values, request) for single in group]
        found = [each for each in tried if each.wrong]
        if found:
            inside = [_judged(single, values, request) for single in _inside(without, found)]
            return _named([*found, *filter(is_seen, inside)], words)
    others = list[Verdict]()
    for group in _groups(without):
        others += [_judged(single, values, request) for single in group]
        found = [each for each in others if is_seen(each)]
        if found:
            return _named(found, words)
    raising = [each for each in tried if each.raises]
    if raising:
        return Culprit(None, (words.not_judged(raising[0].single, raising[0].raises),))
    unjudged = list(dict.fromkeys([each.single.name for each in others if each.raises]))
    return words.of_itself(recording.calls, wrong, len({each.single.name for each in tried}), unjudged)


def _recorded(candidate: Computation, values: Counterparts, request: Request) -> Recording:
    """The calls of one run of the candidate, forward and backward, under the caller's autocast."""
    autocast = CallersAutocast()
    with lent(candidate, request, Start(values=values.moved)) as borrowed:
        recording = Recording(lambda: borrowed.random_state, TAPS)
        theta = theta_of(candidate.model, (), (), candidate.loss.variables)
        ran(autocast.over(candidate.at(None)), parts_on_trial(theta), borrowed, recording)
        return recording


def _singles(calls: Sequence[RecordedCall], values: Counterparts) -> list[SingleModule]:
    """The calls that can be judged of modules that both sides have, the innermost modules first."""
    names = {id(module): name for name, module in reversed(list(named_modules(values.candidate)))}
    theirs = dict(named_modules(values.reference))
    found: dict[str, list[SingleModule]] = {}
    for call in calls:
        name = names.get(id(call.owner), "") if isinstance(call.owner, nn.Module) else ""
        if name in theirs and name and not call.in_backward:
            same = found.setdefault(name, [])
            same.append(SingleModule(name, call, len(same), theirs[name]))
    judgeable = {name: [each for each in group if each.can_be_judged] for name, group in found.items()}
    tried = [sorted(group, key=lambda each: each.size, reverse=True)[:TRIED] for group in judgeable.values()]
    return [each for group in reversed(tried) for each in group]


def _groups(singles: Sequence[SingleModule]) -> list[list[SingleModule]]:
    patched = [each for each in singles if each.is_patched]
    return [patched, [each for each in singles if not each.is_patched]]


def _judged(single: SingleModule, values: Counterparts, request: Request) -> Verdict:
    try:
        return Verdict(single, single.judged(values, request))
    except Exception as error:  # of the user's code, which is made to be called by the model around it
        return Verdict(single, raises=in_one_line(error))


def _named(found: Sequence[Verdict], words: CulpritWords) -> Culprit:
    """The culprit among wrong modules: innermost, right in its forward if one is, and the furthest off of these."""
    around = {id(call) for each in found for call in _around(each.single.call)}
    innermost = [each for each in found if id(each.single.call) not in around]
    first = max(innermost, key=lambda each: (each.has_right_outputs, each.excess))
    others = [each.single.name for each in innermost if each.single.name != first.single.name]
    notes = words.of_module(first.single, first.wrong, list(dict.fromkeys(others)))
    place = place_of_code(first.single.module, list(first.single.call.inside()), first.wrong)
    return Culprit(first.single.name, notes, place=place)


def _inside(singles: Sequence[SingleModule], found: Sequence[Verdict]) -> list[SingleModule]:
    """Those that one of these was called around."""
    calls = {id(each.single.call) for each in found}
    return [each for each in singles if any(id(call) in calls for call in _around(each.call))]


def _around(call: RecordedCall) -> list[RecordedCall]:
    """The calls that a call is made in."""
    return [] if call.parent is None else [call.parent, *_around(call.parent)]
