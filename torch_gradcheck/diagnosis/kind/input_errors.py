"""What is wrong with the gradient that one call gives for one of its inputs, from the numbers of that call.

Both gradients come from the same upstream gradient in float64, so a fit leaves next to nothing, and every entry beyond
its few coefficients counts against coincidence. What fits nothing is not named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import factor_in_words
from torch_gradcheck.diagnosis.kind.finding import Kind
from torch_gradcheck.diagnosis.kind.kinds import partial
from torch_gradcheck.diagnosis.kind.limits import clipped
from torch_gradcheck.diagnosis.kind.orders import permuted, transposed
from torch_gradcheck.diagnosis.kind.slicewise import ENOUGH, Slices, ways_to_slice
from torch_gradcheck.diagnosis.kind.terms import factors_by_slices, factors_in_words
from torch_gradcheck.reporting.facts import DiagnosisKind

EXACT = 1e-8
"""A fit leaves at most 1e-8 of the error's norm: both gradients are known to about 1e-14 of the right one's."""

RIGHT = 1e-9
"""A gradient that is off by at most 1e-9 of its norm is right; an entry, of the largest entry."""

LARGEST = 4_000_000
"""Larger gradients are not fitted."""

SEVERAL = 6
"""So many wrong slopes, and as many right ones, show that the wrong ones lie outside of a range."""

RUN = 3
"""So many wrong slopes, at least, show where on the axis of the input they lie."""

ZERO = 1e-13
"""An entry below 1e-13 of the largest is zero."""


MEASURED = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?|\d+ of (the )?\d+")
"""Numbers in words that say no more than how large the mistake is."""

EVERYWHERE = "everywhere"
"""Where a slope is wrong that is wrong at every input."""


@dataclass(frozen=True)
class InputGradient:
    """The gradient that a call gives for an input, beside the right one; all arrays have the input's shape.

    Attributes:
        on_trial: what the backward gives.
        right: what it should give.
        value: the input.
        upstream: the gradients that arrived for outputs of this shape, by name.
        outputs: the outputs of this shape, by name.
        others: other inputs of this shape, such as targets, by name.
        elsewhere: gradients that would be right for something else, with words for the end of the same sentence.
        elementwise: every entry of the output, and of both gradients, depends on the same entry of the input only.
    """

    on_trial: Floats
    right: Floats
    value: Floats
    upstream: Mapping[str, Floats] = field(default_factory=dict)
    outputs: Mapping[str, Floats] = field(default_factory=dict)
    others: Mapping[str, Floats] = field(default_factory=dict)
    elementwise: bool = False
    elsewhere: Callable[[], Iterable[tuple[str, Floats]]] = tuple

    @property
    def error(self) -> Floats:
        """By how much the gradient is off."""
        return np.asarray(self.on_trial - self.right)

    @property
    def is_right(self) -> bool:
        """Whether it is off by rounding only."""
        return bool(
            np.linalg.norm(self.error) <= RIGHT * max(np.linalg.norm(self.right), np.linalg.norm(self.on_trial))
        )

    @property
    def wrong(self) -> Flags:
        """The entries that are off by more than rounding."""
        largest = max(float(np.max(np.abs(self.right), initial=0.0)), float(np.max(np.abs(self.on_trial), initial=0.0)))
        return np.asarray(np.abs(self.error) > RIGHT * largest)


@dataclass(frozen=True)
class InputMistake:
    """The mistake in the gradient of an input.

    Attributes:
        kind: of the parameters upstream that it spoils.
        words: what is wrong with it, as the end of a sentence that begins "the gradient of the input".
        error: by how much it is off according to the fit, shape of the input.
        factor: on the right gradient or on the term, None without one.
        own_kind: of a parameter that is this input itself, where it is another one.
    """

    kind: DiagnosisKind
    words: str
    error: Floats
    factor: float | None = None
    own_kind: DiagnosisKind | None = None

    @property
    def form(self) -> str:
        """The words without what differs from call to call: measured numbers, and how many entries are wrong."""
        return MEASURED.sub("…", self.words)


def input_mistake(gradient: InputGradient) -> InputMistake | None:
    """The mistake, None where the gradient is right or none of the fits explains it."""
    finite = bool(np.all(np.isfinite(gradient.on_trial)) and np.all(np.isfinite(gradient.right)))
    if not finite or gradient.is_right or not np.any(gradient.right) or gradient.right.size > LARGEST:
        return None
    with np.errstate(all="ignore"):
        return next((found for fit in FITS if (found := fit(gradient)) is not None), None)


def _factor(gradient: InputGradient) -> InputMistake | None:
    """PROPAGATED: a factor on all of it, 0 and −1 among them."""
    factor = _coefficient(gradient.on_trial, gradient.right)
    left = gradient.on_trial - factor * gradient.right
    if not _leaves_nothing(left, gradient.error) or np.sum(gradient.right != 0) < ENOUGH:
        return None
    factor = 0.0 if abs(factor) < EXACT else factor
    words = "zero or None" if not factor else "minus the right one" if abs(factor + 1) < EXACT else ""
    words = words or f"{factor_in_words(factor)} × the right one"
    return InputMistake(DiagnosisKind.PROPAGATED, f"is {words}", (factor - 1) * gradient.right, factor)


def _term(gradient: InputGradient) -> InputMistake | None:
    """MISSING_TERM: off by one multiple of the upstream gradient, an output, an input or 1 in every entry."""
    ones = [("1", np.ones(gradient.right.shape))] if gradient.right.size > ENOUGH else []
    for name, term in [*_terms(gradient), *ones]:
        factor = _coefficient(gradient.error, term)
        if _leaves_nothing(gradient.error - factor * term, gradient.error):
            words = f"is off by {factor_in_words(factor)} · {name} in every entry: a term too few or too many"
            return InputMistake(DiagnosisKind.MISSING_TERM, words, factor * term, factor)
    return None


def _term_and_constant(gradient: InputGradient) -> InputMistake | None:
    """MISSING_TERM: off by one multiple of these and one of 1, as of a smoothed target."""
    for name, term in _terms(gradient):
        mean, centred = float(np.mean(gradient.error)), term - np.mean(term)
        factor = _coefficient(gradient.error - mean, centred) if np.any(centred) else 0.0
        constant = mean - factor * float(np.mean(term))
        fitted = factor * term + constant
        if _leaves_nothing(gradient.error - fitted, gradient.error):
            added = f"{'+' if constant > 0 else '−'} {factor_in_words(abs(constant))}"
            words = f"is off by {factor_in_words(factor)} · {name} {added} in every entry: a term too few or too many"
            return InputMistake(DiagnosisKind.MISSING_TERM, words, fitted)
    return None


def _terms(gradient: InputGradient) -> list[tuple[str, Floats]]:
    """What the error may be a multiple of, with names; of enough entries that are not zero to prove it."""
    known = chain(gradient.upstream.items(), gradient.outputs.items(), gradient.others.items())
    return [
        (name, term)
        for name, term in [*known, ("the input", gradient.value)]
        if np.sum(np.abs(term) > ZERO) > ENOUGH and np.all(np.isfinite(term))
    ]


def _projection(gradient: InputGradient) -> InputMistake | None:
    """PROJECTION: off by a multiple of 1, the input or an output in every slice, another one in each.

    Of the fits that explain it, the one with the fewest coefficients is told.
    """
    bases = list(_bases(gradient))
    fits = [(way, names, basis) for way in ways_to_slice(gradient.right.shape) for names, basis in bases]
    for way, names, basis in sorted(fits, key=lambda each: each[0].count * len(each[1])):
        fit = way.fitted(gradient.error, basis(way), EXACT)
        if fit is not None and _leaves_nothing(gradient.error - fit, gradient.error):
            words = (
                f"is off by a multiple of {' and one of '.join(names)} {way.words}, another one in each "
                f"slice: the backward lacks the term with {' and '.join(names)} there, or has it wrong"
            )
            return InputMistake(DiagnosisKind.PROJECTION, words, fit)
    return None


def _bases(gradient: InputGradient) -> Iterator[tuple[tuple[str, ...], Callable[[Slices], list[Floats]]]]:
    """What the error may be a multiple of, slice by slice, with names: single things before pairs of them."""
    ones, value = np.ones(gradient.right.shape), gradient.value
    outputs = list(gradient.outputs.items())
    single = [("1 (its mean)", ones), ("the input", value), *outputs]
    single += [(f"exp({name})", np.exp(values)) for name, values in outputs if np.all(values <= 0)]
    yield from (((name,), _always(values)) for name, values in single)
    yield ("the input less its mean",), lambda way: [way.centred(value)]
    yield from ((("1 (its mean)", name), _always(ones, values)) for name, values in single[1:])


def _always(*basis: Floats) -> Callable[[Slices], list[Floats]]:
    """The same basis whatever the slices."""
    return lambda _: list(basis)


def _slicewise(gradient: InputGradient) -> InputMistake | None:
    """PROPAGATED: the right gradient times another factor in every slice."""
    for way in ways_to_slice(gradient.right.shape):
        fit = way.fitted(gradient.on_trial, [gradient.right], EXACT)
        fits = fit is not None and _leaves_nothing(gradient.on_trial - fit, gradient.error)
        if fit is not None and fits and way.are_independent(gradient.right):
            words = f"is the right one {factors_in_words(factors_by_slices(fit, gradient.right), way.words)}"
            return InputMistake(DiagnosisKind.PROPAGATED, words, fit - gradient.right)
    return None


def _unmasked(gradient: InputGradient) -> InputMistake | None:
    """UNMASKED: wrong only where the right gradient is zero, and not at all elsewhere."""
    zero = np.abs(gradient.right) <= ZERO * np.max(np.abs(gradient.right))
    wrong = gradient.wrong
    count, masked = int(np.sum(wrong)), int(np.sum(zero))
    if np.any(wrong & ~zero) or count < 2 or int(np.sum(~zero)) < ENOUGH:
        return None
    reason = _why_zero(gradient, wrong, zero)
    place = None if reason else _block(gradient)
    words = f"is not zero at {count} of the {masked} entries where it should be{reason}"
    told, own_kind = (words, None) if place is None else (place.words, place.own_kind)
    return InputMistake(DiagnosisKind.UNMASKED, told, np.where(wrong, gradient.error, 0.0), own_kind=own_kind)


def _why_zero(gradient: InputGradient, wrong: Flags, zero: Flags) -> str:
    """Words on what makes the right gradient zero where the one on trial is not; "" where that is not known.

    It is another input that is zero in these entries only. Or it is a mask, where the call works entry by entry and
    what arrives is not zero there: the output does not change with the input.
    """
    for name, other in gradient.others.items():
        if np.all(other[wrong] == 0) and np.all(other[~zero] != 0):
            return f", as where a backward lacks the factor {name}, which is zero there"
    is_mask = gradient.elementwise and len(gradient.upstream) == 1 and bool(np.all(_arrived(gradient)[wrong]))
    return ", as where a backward lacks the mask of its forward" if is_mask else ""


def _elsewhere(gradient: InputGradient) -> InputMistake | None:
    """PROPAGATED: right for something else, such as without what arrives for another output."""
    for words, values in gradient.elsewhere():
        fits = values.shape == gradient.right.shape and _leaves_nothing(gradient.on_trial - values, gradient.error)
        if fits and np.sum(values != 0) >= ENOUGH:
            return InputMistake(DiagnosisKind.PROPAGATED, words, gradient.error)
    return None


def _slope(gradient: InputGradient) -> InputMistake | None:
    """SLOPE: the call works entry by entry, and its derivative is wrong everywhere or on one side of a value.

    Where it is a constant factor off in every slice, that says more.
    """
    where = _region(gradient) if _is_pointwise(gradient) else ""
    sliced = _slicewise(gradient) if where == EVERYWHERE else None
    return sliced or (_with_slope(gradient, where) if where else None)


def _slope_somewhere(gradient: InputGradient) -> InputMistake | None:
    """SLOPE: the call works entry by entry, and its derivative is wrong in some entries without a pattern."""
    if not _is_pointwise(gradient):
        return None
    _, wrong = _tried(gradient)
    return _with_slope(gradient, f"in {int(np.sum(wrong))} of {wrong.size} entries")


def _is_pointwise(gradient: InputGradient) -> bool:
    """Whether slopes can be told, and some are wrong."""
    if not gradient.elementwise or len(gradient.upstream) != 1:
        return False
    _, wrong = _tried(gradient)
    return wrong.size >= ENOUGH and bool(np.any(wrong))


def _tried(gradient: InputGradient) -> tuple[Floats, Flags]:
    """The inputs that an upstream gradient arrived for, and whether the slope is wrong there."""
    known = _arrived(gradient)
    return gradient.value[known], gradient.wrong[known]


def _arrived(gradient: InputGradient) -> Flags:
    (upstream,) = gradient.upstream.values()
    return np.asarray(np.abs(upstream) > ZERO * np.max(np.abs(upstream)))


def _with_slope(gradient: InputGradient, where: str) -> InputMistake:
    """The mistake, with the slope that is off the most."""
    (upstream,) = gradient.upstream.values()
    off = np.where(gradient.wrong & _arrived(gradient), np.abs(gradient.error / upstream), 0.0)
    worst = np.unravel_index(np.argmax(off), off.shape)
    x, on_trial, right, g = (
        float(each[worst]) for each in (gradient.value, gradient.on_trial, gradient.right, upstream)
    )
    words = f"has the wrong slope {where}: at {x:.4g} it is {on_trial / g:.4g}, the derivative is {right / g:.4g}"
    return InputMistake(DiagnosisKind.SLOPE, words, gradient.error)


def _region(gradient: InputGradient) -> str:
    """Where the slope is wrong, in words: by the input or, as for a loss, by another one, or by their difference."""
    values, wrong = _tried(gradient)
    if where := _where("the input", values, wrong) or _outside("the input", values, wrong):
        return where
    others = {name: other[_arrived(gradient)] for name, other in gradient.others.items()}
    axes = others | {f"the input less {name}": values - other for name, other in others.items()}
    if not SEVERAL <= np.sum(wrong) <= len(wrong) - SEVERAL:
        return ""
    told = (_where(name, x, wrong) or _outside(name, x, wrong) for name, x in axes.items() if np.all(np.isfinite(x)))
    return next(filter(None, told), "")


def _where(what: str, values: Floats, wrong: Flags) -> str:
    """The inputs with a wrong slope, in words: all, or those on one side of a value or between two; "" for others."""
    if np.all(wrong):
        return EVERYWHERE
    low, high = float(np.min(values[wrong])), float(np.max(values[wrong]))
    if np.sum(wrong) < RUN or np.any(~wrong & (values >= low) & (values <= high)):
        return ""
    if high == np.max(values):
        return f"where {what} is {low:.4g} or more"
    if low == np.min(values):
        return f"where {what} is {high:.4g} or less"
    return f"where {what} is from {low:.4g} to {high:.4g}"


def _outside(what: str, values: Floats, wrong: Flags) -> str:
    """The inputs with a wrong slope, in words, where they are all below one value or above another; else ""."""
    if not SEVERAL <= np.sum(wrong) <= len(wrong) - SEVERAL:
        return ""
    low, high = float(np.min(values[~wrong])), float(np.max(values[~wrong]))
    if np.any(wrong & (values >= low) & (values <= high)):
        return ""
    below, above = values[values < low], values[values > high]
    if not below.size or not above.size:
        return ""
    return f"where {what} is {float(np.max(below)):.4g} or less, or {float(np.min(above)):.4g} or more"


def _other_mask(gradient: InputGradient) -> InputMistake | None:
    """UNMASKED: both gradients are one multiple of the upstream gradient or zero, but not in the same entries."""
    if len(gradient.upstream) != 1:
        return None
    known = _arrived(gradient)
    (upstream,) = gradient.upstream.values()
    right, on_trial = (each[known] / upstream[known] for each in (gradient.right, gradient.on_trial))
    factor = float(right[np.argmax(np.abs(right))])
    allowed = EXACT * abs(factor)
    if not all(np.all((np.abs(each) <= allowed) | (np.abs(each - factor) <= allowed)) for each in (right, on_trial)):
        return None
    lost, kept = (int(np.sum(np.abs(each) <= allowed)) for each in (on_trial[right != 0], right[on_trial != 0]))
    if min(lost, kept) < RUN or np.any(gradient.error[~known]):
        return None
    words = (
        f"is zero at {lost} entries where it should not be and not zero at {kept} where it should be: the backward has "
        "another mask than the forward"
    )
    return InputMistake(DiagnosisKind.UNMASKED, words, gradient.error)


def _misplaced(gradient: InputGradient) -> InputMistake | None:
    """PROPAGATED: transposed, permuted or limited in value, as gradients of parameters are."""
    return _as_of_parameter(gradient, (transposed, permuted, clipped), DiagnosisKind.PROPAGATED)


def _block(gradient: InputGradient) -> InputMistake | None:
    """BLOCK: right except in places that can be named: rows, a head, a tile, single entries."""
    return _as_of_parameter(gradient, (partial,), DiagnosisKind.BLOCK)


def _as_of_parameter(gradient: InputGradient, kinds: tuple[Kind, ...], kind: DiagnosisKind) -> InputMistake | None:
    noise = RIGHT * float(np.max(np.abs(gradient.right)))
    evidence = Evidence.of(gradient.on_trial, gradient.right, gradient.value, noise, RIGHT, has_channels=False)
    found = next((each for fit in kinds if (each := fit(evidence, ())) is not None), None)
    if found is None:
        return None
    words = found.diagnosis.message.removeprefix("dθ ").replace("dθ", "it")
    return InputMistake(kind, words, gradient.error, own_kind=found.diagnosis.kind)


FITS: tuple[Callable[[InputGradient], InputMistake | None], ...] = (
    _factor,
    _term,
    _unmasked,
    _other_mask,
    _elsewhere,
    _slope,
    _term_and_constant,
    _projection,
    _misplaced,
    _block,
    _slicewise,
    _slope_somewhere,
)
"""All fits, in the order in which they are tried: those with the fewest coefficients first."""


def _coefficient(values: Floats, of: Floats) -> float:
    """The multiple of `of` that is closest to `values`."""
    return float(np.vdot(values, of) / np.vdot(of, of))


def _leaves_nothing(left: Floats, error: Floats) -> bool:
    return bool(np.linalg.norm(left) <= EXACT * np.linalg.norm(error))
