"""Runs one recorded call alone, to measure what its backward contributes to the error E of a wrong coordinate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.diagnosis.culprit.argument_copies import laid_out_alike, tensors_of
from torch_gradcheck.diagnosis.culprit.arguments_alone import arguments_with_leaves, moved_arguments
from torch_gradcheck.diagnosis.culprit.recorded_call import RecordedCall, summary
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate, change
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil, extrapolated_derivatives, through_stencil
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.objective.held_values import HeldValues
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.precision.dtypes import are_finite, epsilon
from torch_gradcheck.precision.lower_precisions import TRIED_FIRST, Rounding, may_be_rounded, rounding_of_all
from torch_gradcheck.torch_internals.autograd import before_hooks, has_hooks
from torch_gradcheck.torch_internals.tensors import version_of

SHARP = 0.02
"""A derivative with an error bar of at most 2 % of E needs no ladder of steps."""

OWN_MISTAKE = 0.1
"""A contribution above 10 % of E is a mistake of the call."""

ERROR_BARS_OFF = 3.0
"""A contribution of at most 3 error bars is no mistake."""

SAME_OUTPUT = 1e-6
"""A call run alone must repeat the outputs of the run: their sums may differ by 1e-6 of the sum of absolute values."""

ONLY_FUNCTION = np.zeros(1, dtype=np.int64)
"""The index of the one function that is differentiated: f_0(t) = ⟨ḡ, M(x + t·ẋ)⟩."""


class CannotBeRunAlone(Exception):  # noqa: N818 - it says what is the matter, and is never seen by users
    """The reason why a call cannot be checked alone."""


@dataclass(frozen=True)
class Contribution:
    """The contribution of one call to E, calls inside of it included.

    Attributes:
        error: the call's gradient along the tangents, less the derivative; NaN or infinite where the gradient is.
        error_bar: of `error`.
        of_theta: the call's gradient for the wrong coordinate itself.
        mutates: whether the backward wrote to the gradient it was given.
        rounding: the lower precision that all its gradients are numbers of; None where there is none.
    """

    error: float
    error_bar: float
    of_theta: float = 0.0
    mutates: bool = False
    rounding: Rounding | None = None


NOTHING = Contribution(0.0, 0.0)


class _Backward(NamedTuple):
    """One backward of a call by itself; for `mutates` and `rounding` see `Contribution`.

    Attributes:
        outputs: what the call puts out.
        of_inputs: the gradient for each tensor in its arguments; None where there is none, or it is given twice.
        of_theta: the gradient for each wrong coordinate itself, before the parameter's own hooks.
    """

    outputs: list[torch.Tensor]
    of_inputs: list[torch.Tensor | None]
    of_theta: dict[WrongCoordinate, float]
    mutates: bool
    rounding: Rounding | None

    def along(self, tangents: Tangents, wrong: WrongCoordinate) -> float:
        """The gradient along the tangents of the inputs: ⟨gradient for x, ẋ⟩, and that for the coordinate itself."""
        pairs = zip(self.of_inputs, tangents, strict=False)
        return self.of_theta[wrong] + sum(inner(g, x) for g, x in pairs if g is not None and x is not None)


class CallRunner:
    """Runs calls alone, in the regime that J is evaluated in, and counts the runs.

    Args:
        objective: J.
        wrong: the coordinates that are followed.
        limit: the largest number of runs.
        noise: of J that calls make out of sight, by rounding to a lower precision.

    Attributes:
        runs: how many times a call was run.
    """

    def __init__(self, objective: Objective, wrong: Sequence[WrongCoordinate], limit: int, noise: float) -> None:
        self.objective, self.limit, self.runs, self._noise = objective, limit, 0, noise
        self._wrong = wrong
        self._backwards: dict[RecordedCall, _Backward] = {}
        self._held: dict[RecordedCall, HeldValues] = {}
        # Gradients of all of θ are asked for, as in the real run: a branch that is not asked for would not run.
        self._theta = objective.leaves
        self._hooked = {each.entry.parameter for each in wrong if has_hooks(each.entry.parameter)}

    def contribution(self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> Contribution:
        """The contribution of a call to E along the tangents of its inputs.

        Uses the gradients that left the call in the recorded run, where these are known.

        Raises:
            CannotBeRunAlone: the call raises, has other outputs, is not differentiable here or is too noisy, or the
                limit of runs is reached.
        """
        if not call.receives:
            return NOTHING
        if not all(are_finite(g).all() for g in call.cotangents if g is not None):
            return NOTHING  # the mistake happened further downstream
        tangents = _differentiable(call, tangents)
        backward = self._backward(call)
        analytic = backward.along(tangents, wrong)
        numeric, error_bar = self._numeric(call, tangents, wrong, backward.outputs, analytic, abs(wrong.error))
        return Contribution(
            analytic - numeric, error_bar, backward.of_theta[wrong], backward.mutates, backward.rounding
        )

    def is_wrong_along(self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> bool:
        """Whether the gradient of a call is off along given tangents, by a large share of what the coordinate's is.

        Both are relative errors here: what a call contributes to E need not be known.

        Raises:
            CannotBeRunAlone: as `contribution`.
        """
        if not (call.receives and all(are_finite(g).all() for g in call.cotangents if g is not None)):
            return False
        relative = min(1.0, abs(wrong.error) / (abs(wrong.analytic) + abs(wrong.numeric)))
        backward = self._backward(call)
        analytic = backward.along(tangents, wrong)
        scale = relative * abs(analytic)
        numeric, error_bar = self._numeric(call, tangents, wrong, backward.outputs, analytic, scale)
        mistake = OWN_MISTAKE * relative * (abs(analytic) + abs(numeric))
        return abs(analytic - numeric) > max(mistake, ERROR_BARS_OFF * error_bar)

    def gradient_of_theta(self, call: RecordedCall, wrong: WrongCoordinate) -> float:
        """The gradient of a call, inside the run's gradients of its outputs, for the wrong coordinate itself.

        Raises:
            CannotBeRunAlone: the call raises, or the limit of runs is reached.
        """
        if not all(are_finite(g).all() for g in call.cotangents if g is not None):
            return 0.0  # as in `contribution`
        return self._backward(call).of_theta[wrong]

    def alone(self, call: RecordedCall) -> AbstractContextManager[None]:
        """The regime in which a call is run alone; counts as one run.

        Raises:
            CannotBeRunAlone: the limit of runs is reached.
        """
        return self._alone(call)

    def outputs_and_gradients(self, call: RecordedCall) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """What the call puts out when it is run alone, and what its backward then gives for each of its inputs.

        Raises:
            CannotBeRunAlone: the call raises, puts out something else than in the run, or the limit of runs is reached.
        """
        backward = self._backward(call)
        return backward.outputs, backward.of_inputs

    def _backward(self, call: RecordedCall) -> _Backward:
        """The backward of a call by itself, run when it is first asked for.

        Raises:
            CannotBeRunAlone: the call raises, or puts out something else than in the run.
        """
        if call not in self._backwards:
            self._backwards[call] = self._run_backward(call)
        return self._backwards[call]

    def _run_backward(self, call: RecordedCall) -> _Backward:
        parameters = list(dict.fromkeys(wrong.entry.parameter for wrong in self._wrong))
        with ExitStack() as stack:
            return self._with_raw(call, {each: stack.enter_context(before_hooks(each)) for each in parameters})

    def _with_raw(self, call: RecordedCall, raw: Mapping[torch.Tensor, list[torch.Tensor]]) -> _Backward:
        """The same, where `raw` collects the gradients of the wrong parameters before their hooks."""
        with self._alone(call), torch.enable_grad():
            leaves: list[torch.Tensor] = []
            outputs = self._called(call, arguments_with_leaves(call, leaves))
            copies = [output.detach().clone() for output in outputs]
            if not _same(call, copies):
                raise CannotBeRunAlone("puts out something else when it is run alone")
            received = [(laid_out_alike(g), output) for g, output in _received(call, outputs) if output.requires_grad]
            cotangents = [g for g, _ in received]
            versions = [version_of(g) for g in cotangents]
            theta = [each for each in self._theta if each.requires_grad]
            asked = {id(each) for each in theta}
            inputs = [leaf for leaf in dict.fromkeys(leaves) if leaf.requires_grad and id(leaf) not in asked]
            wrong = {id(each.entry.parameter) for each in self._wrong}
            unwanted = Unwanted([leaf for leaf in theta if id(leaf) not in wrong])
            found = _gradients([output for _, output in received], [*inputs, *theta], cotangents, unwanted)
        gradients = dict(zip(inputs, found, strict=False))
        of_theta = dict(zip(theta, found[len(inputs) :], strict=False))
        return _Backward(
            copies,
            [call.left.get(k, gradients.pop(leaf, None)) for k, leaf in enumerate(leaves)],
            {wrong: self._of_theta(wrong, of_theta, raw) for wrong in self._wrong},
            [version_of(g) for g in cotangents] != versions,
            _rounding_of([*[each for each in found if each is not None], *unwanted.kept]),
        )

    def _of_theta(
        self,
        wrong: WrongCoordinate,
        found: Mapping[torch.Tensor, torch.Tensor | None],
        raw: Mapping[torch.Tensor, list[torch.Tensor]],
    ) -> float:
        """The gradient for the coordinate, before the parameter's hooks if it has any.

        A Function that asks for it in its backward makes hooks run, too: they see more than what comes out.
        """
        parameter = wrong.entry.parameter
        if parameter in self._hooked or parameter not in found:
            return sum(wrong.of(gradient) for gradient in raw[parameter])
        gradient = found[parameter]
        return 0.0 if gradient is None else wrong.of(gradient)

    def _numeric(
        self,
        call: RecordedCall,
        tangents: Tangents,
        wrong: WrongCoordinate,
        reference: list[torch.Tensor],
        analytic: float,
        scale: float,
    ) -> tuple[float, float]:
        """d/dt ⟨ḡ, M(x + t·ẋ)⟩ and its error bar, sharp enough for errors of the size `scale`.

        From one step where that gives the call's own gradient, as it does of most calls; from two steps where these are
        sharp enough; else from a ladder.
        """

        def sampler(_: Indices, steps: Floats) -> Samples:
            taken, values = zip(*[self._value(call, tangents, wrong, reference, t) for t in steps], strict=True)
            return Samples(np.array(taken), np.array(values))

        eps = epsilon(self.objective.dtype)
        size = sum(_squares(g, y) for g, y in _received(call, reference)) ** 0.5
        noise = Noise(0.0, max(2 * eps * size, self._noise), eps)
        unit, step = np.array([wrong.unit]), first_step(Noise(size, noise.sigma, eps))
        near = through_stencil(sampler, ONLY_FUNCTION, unit, Stencil(step, 0), noise)
        slope, roundoff = float(near.central[0]), float(near.roundoff[0])
        off = abs(analytic - slope)
        needed = SHARP * (scale if np.isfinite(scale) else off)
        if np.isfinite(scale) and roundoff + off <= needed:
            return slope, roundoff + off
        far = through_stencil(sampler, ONLY_FUNCTION, unit, Stencil(8 * step, 0), noise)
        error_bar = roundoff + abs(slope - float(far.central[0])) / 8
        if error_bar <= needed or (np.isfinite(error_bar) and not np.isfinite(analytic)):
            return slope, error_bar
        estimates = extrapolated_derivatives(sampler, ONLY_FUNCTION, unit, noise)
        if estimates.kinked[0] or not np.isfinite(estimates.error_bar[0]):
            raise CannotBeRunAlone("has no derivative along the direction tried")
        return float(estimates.central[0]), float(estimates.error_bar[0])

    def _value(
        self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate, reference: list[torch.Tensor], step: float
    ) -> tuple[float, float]:
        taken, outputs = self.outputs(call, tangents, wrong, step)
        moved = [change(output, before) for output, before in zip(outputs, reference, strict=True)]
        return taken, sum(inner(cotangent, change) for cotangent, change in _received(call, moved))

    def outputs(
        self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate, step: float
    ) -> tuple[float, list[torch.Tensor]]:
        """The step really taken, and copies of the call's outputs with θ and the inputs moved by it."""
        with wrong.moved(step) as taken, self._alone(call), torch.set_grad_enabled(self.objective.needs_graph):
            outputs = self._called(call, moved_arguments(call, tangents, taken))
            return taken, [output.detach().clone() for output in outputs]

    @contextmanager
    def _alone(self, call: RecordedCall) -> Iterator[None]:
        """The regime of J with the random state at the start of the call; counts one run.

        Raises:
            CannotBeRunAlone: the limit of runs is reached.
        """
        if self.runs >= self.limit:
            raise CannotBeRunAlone(f"was not looked at after {self.limit:,} runs of single modules")
        self.runs += 1
        with self.objective.regime(held=self._values_in(call)):
            call.random.restore()
            yield
            if self.objective.strays:
                raise CannotBeRunAlone("detaches other values when it is run alone")

    def _values_in(self, call: RecordedCall) -> HeldValues | None:
        """What the call holds where J holds its values: recorded at θ, by the call's backward, which runs first."""
        if self.objective.held is None:
            return None
        return self._held.setdefault(call, HeldValues())

    def _called(self, call: RecordedCall, arguments: tuple[Any, Any]) -> list[torch.Tensor]:
        try:
            outputs = tensors_of(call.run(arguments))
        except Exception as error:
            raise CannotBeRunAlone(f"raises {in_one_line(error)} when it is run alone") from error
        if [tuple(output.shape) for output in outputs] != [shape for shape, _, _ in call.outputs]:
            raise CannotBeRunAlone("puts out something else when it is run alone")
        return outputs


class Unwanted:
    """Gradients of which only the lower precision is asked that holds them: most are let go at the first look.

    Args:
        leaves: that have these gradients.

    Attributes:
        kept: of a gradient that some lower precision may hold all of it, of another its first entries.
    """

    def __init__(self, leaves: Sequence[torch.Tensor]) -> None:
        self.leaves, self.kept = leaves, list[torch.Tensor]()

    def see(self, gradient: torch.Tensor) -> None:
        """Takes in a gradient."""
        first = _first_of(gradient)
        self.kept.append(gradient if first is None or may_be_rounded(_numbers(first)) else first)


def _first_of(gradient: torch.Tensor) -> torch.Tensor | None:
    """A copy of the entries that are looked at first; None of a gradient that is no ordinary one."""
    if gradient.layout is not torch.strided or gradient.is_complex():
        return None
    return gradient.detach().reshape(-1)[:TRIED_FIRST].clone()


def _gradients(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor], unwanted: Unwanted
) -> list[torch.Tensor | None]:
    try:
        return gradients_of(outputs, inputs, cotangents, unwanted=unwanted.leaves, seen=unwanted.see)
    except Exception as error:
        raise CannotBeRunAlone(f"raises {in_one_line(error)} in its backward when it is run alone") from error


def in_one_line(error: Exception) -> str:
    """An exception's type and the first line of its message, such as "ValueError (no batch)"."""
    lines = str(error).splitlines()
    return f"{type(error).__name__} ({lines[0]})" if lines else type(error).__name__


def _differentiable(call: RecordedCall, tangents: Tangents) -> Tangents:
    """The tangents of inputs that required a gradient, else None: a detached input is its caller's doing."""
    return [tangent if asked else None for tangent, asked in zip(tangents, call.differentiable, strict=True)]


def _received(call: RecordedCall, outputs: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a gradient that arrived and the output that it arrived for."""
    return [(g, output) for g, output in zip(call.cotangents, outputs, strict=True) if g is not None]


def _squares(gradient: torch.Tensor, output: torch.Tensor) -> float:
    """Σ |g y|² over the entries that are finite."""
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    squares = (dense.abs() * output.abs()).square()
    return float(torch.nan_to_num(squares, nan=0.0, posinf=0.0).sum())


def _rounding_of(gradients: Sequence[torch.Tensor]) -> Rounding | None:
    """The coarsest lower precision that holds all these numbers exactly; None where there is none."""
    strided = [each.detach() for each in gradients if each.layout is torch.strided and not each.is_complex()]
    return rounding_of_all([_numbers(each) for each in strided])


def _numbers(gradient: torch.Tensor) -> Floats:
    return np.asarray(gradient.double().numpy(force=True).ravel())


def _same(call: RecordedCall, outputs: Sequence[torch.Tensor]) -> bool:
    """Whether the outputs have the sums, and sums of absolute values, of those in the recorded run."""

    def close(one: float, other: float, scale: float) -> bool:
        return one == other or abs(one - other) <= SAME_OUTPUT * scale or (one != one and other != other)

    pairs = zip(call.outputs, map(summary, outputs), strict=True)
    return all(close(a, b, size) and close(size, again, size) for (_, a, size), (_, b, again) in pairs)


def inner(gradient: torch.Tensor, change: torch.Tensor) -> float:
    """⟨g, x⟩ = Σ g·x; for complex tensors Σ Re(conj(g)·x), where g = ∂J/∂Re + i·∂J/∂Im."""
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    product = dense.conj() * change if dense.is_complex() else dense * change
    return float((product.real if product.is_complex() else product).sum())
