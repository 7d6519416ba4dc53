"""One call run alone: what its own backward is off by along one direction of its inputs and of θ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.diagnosis.culprit.argument_copies import replaced, tensors_of
from torch_gradcheck.diagnosis.culprit.call_recording import RecordedCall, summary
from torch_gradcheck.diagnosis.culprit.tangents import Tangents, WrongCoordinate
from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.differences.richardson import Stencil, extrapolated_derivatives, through_stencil
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.gradients.by_autograd import gradients_of
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.lower_precisions import Rounding, rounding_of_all
from torch_gradcheck.torch_internals.autograd import before_hooks
from torch_gradcheck.torch_internals.tensors import version_of

SHARP = 0.02
"""An error bar of this share of E is narrow enough."""

SAME = 1e-6
"""A call run alone must put out what it did before, to this relative difference."""

FIRST = np.zeros(1, dtype=np.int64)


class CannotBeRunAlone(Exception):  # noqa: N818 - it says what is the matter, and is never seen by users
    """Why nothing can be told about a call."""


@dataclass(frozen=True)
class Contribution:
    """What a call's backward, with all that happens inside of it, contributes to E.

    Attributes:
        error: its gradient along the direction, less the derivative; NaN or infinite where the gradient is.
        noise: the error bar of that.
        of_theta: its gradient for the wrong coordinate itself.
        mutates: whether the backward wrote to the gradient it was given.
        rounding: the lower precision that all its gradients are numbers of, if there is one.
    """

    error: float
    noise: float
    of_theta: float = 0.0
    mutates: bool = False
    rounding: Rounding | None = None


NOTHING = Contribution(0.0, 0.0)


class _Analytic(NamedTuple):
    """What a call's own backward says; see `Part`."""

    total: float
    of_theta: float
    mutates: bool
    rounding: Rounding | None


class CallRunner:
    """Runs calls alone, in the regime that J is evaluated in, and counts.

    Attributes:
        runs: how many calls were run.
        limit: how many may be.
    """

    def __init__(self, objective: Objective, limit: int) -> None:
        self.objective, self.limit, self.runs = objective, limit, 0
        # All of θ is asked for, as in the real run: a branch that is not asked does not run, and spoils nothing.
        self._theta = list(objective.model.parameters())

    def part(self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> Contribution:
        """The part of E that lies in a call, by the gradients that left it in the real run.

        Raises:
            CannotBeRunAlone: it raises, puts out something else, is not differentiable here, or is too noisy to tell.
        """
        if not call.receives:
            return NOTHING
        if not all(torch.isfinite(g).all() for g in call.cotangents if g is not None):
            return NOTHING  # what is wrong with it happened further downstream
        tangents = _asked_for(call, tangents)
        outputs = self.outputs(call, tangents, wrong, 0.0)[1]
        if not _same(call, outputs):
            raise CannotBeRunAlone("puts out something else when it is run alone")
        analytic = self._analytic(call, tangents, wrong)
        numeric, noise = self._numeric(call, tangents, wrong, outputs, analytic.total)
        return Contribution(analytic.total - numeric, noise, analytic.of_theta, analytic.mutates, analytic.rounding)

    def _analytic(self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate) -> _Analytic:
        """⟨its gradient for x, ẋ⟩ and its gradient for θ before the parameter's own hooks."""
        parameter = wrong.entry.parameter
        with self._alone(call), torch.enable_grad():
            leaves: list[torch.Tensor] = []
            outputs = self._called(call, _with_leaves(call, leaves))
            received = [(g.clone(), output) for g, output in _received(call, outputs) if output.requires_grad]
            cotangents = [g for g, _ in received]
            with before_hooks(parameter) as raw:
                theta = [each for each in self._theta if each.requires_grad]
                inputs = [leaf for leaf in dict.fromkeys(leaves) if leaf.requires_grad]
                found = _asked([output for _, output in received], [*inputs, *theta], cotangents)
        gradients = dict(zip(inputs, found, strict=False))
        of_theta = total = sum(wrong.of(gradient) for gradient in raw)
        for k, leaf in enumerate(leaves):
            gradient, tangent = gradients.pop(leaf, None), tangents[k]  # a tensor given twice counts once
            gradient = call.returned.get(k, gradient)
            if tangent is not None and gradient is not None:
                total += inner(gradient, tangent)
        mutates = any(version_of(cotangent) for cotangent in cotangents)
        return _Analytic(total, of_theta, mutates, rounding_of([each for each in found if each is not None]))

    def _numeric(
        self,
        call: RecordedCall,
        tangents: Tangents,
        wrong: WrongCoordinate,
        reference: list[torch.Tensor],
        analytic: float,
    ) -> tuple[float, float]:
        """d/dt ⟨ḡ, M(x + t·ẋ)⟩ and its error bar: from two steps where that is sharp enough, else from the ladder."""

        def sampler(_: Indices, steps: Floats) -> Samples:
            taken, values = zip(*(self._value(call, tangents, wrong, reference, t) for t in steps), strict=True)
            return Samples(np.array(taken), np.array(values))

        eps = epsilon(self.objective.dtype)
        size = sum(float((g.abs() * y.abs()).square().sum()) for g, y in _received(call, reference)) ** 0.5
        noise = Noise(0.0, 2 * eps * size, eps)
        unit, step = np.array([wrong.unit]), first_step(Noise(size, noise.sigma, eps))
        (fine, bar), (coarse, _) = (
            through_stencil(sampler, FIRST, unit, Stencil(h, 0), noise) for h in (step, 8 * step)
        )
        bound = float(bar[0] + abs(fine[0] - coarse[0]) / 8)
        off = abs(analytic - fine[0])
        needed = SHARP * (abs(wrong.error) if np.isfinite(wrong.error) else off)
        if bound <= needed or (np.isfinite(bound) and not np.isfinite(analytic)):
            return float(fine[0]), bound
        estimates = extrapolated_derivatives(sampler, FIRST, unit, noise)
        if estimates.kinked[0] or not np.isfinite(estimates.error_bar[0]):
            raise CannotBeRunAlone("has no derivative along the direction tried")
        return float(estimates.central[0]), float(estimates.error_bar[0])

    def _value(
        self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate, reference: list[torch.Tensor], step: float
    ) -> tuple[float, float]:
        taken, outputs = self.outputs(call, tangents, wrong, step)
        moved = [output - before for output, before in zip(outputs, reference, strict=True)]
        return taken, sum(inner(cotangent, change) for cotangent, change in _received(call, moved))

    def outputs(
        self, call: RecordedCall, tangents: Tangents, wrong: WrongCoordinate, step: float
    ) -> tuple[float, list[torch.Tensor]]:
        """The step really taken, and copies of the outputs with θ and the inputs moved by it."""
        with wrong.moved(step) as taken, self._alone(call), torch.set_grad_enabled(self.objective.needs_graph):
            outputs = self._called(call, _moved(call, tangents, taken))
            return taken, [output.detach().clone() for output in outputs]

    @contextmanager
    def _alone(self, call: RecordedCall) -> Iterator[None]:
        """The regime of J, with the random state that the call began with."""
        if self.runs >= self.limit:
            raise CannotBeRunAlone(f"was not looked at after {self.limit:,} runs of single modules")
        self.runs += 1
        with self.objective.regime():
            call.random.restore()
            yield

    def _called(self, call: RecordedCall, arguments: tuple[Any, Any]) -> list[torch.Tensor]:
        try:
            outputs = tensors_of(call.run(arguments))
        except Exception as error:
            raise CannotBeRunAlone(f"raises {said(error)} when it is run alone") from error
        if [tuple(output.shape) for output in outputs] != [shape for shape, _, _ in call.outputs]:
            raise CannotBeRunAlone("puts out something else when it is run alone")
        return outputs


def _asked(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor]
) -> list[torch.Tensor | None]:
    try:
        return gradients_of(outputs, inputs, cotangents)
    except Exception as error:
        raise CannotBeRunAlone(f"raises {said(error)} in its backward when it is run alone") from error


def said(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__} ({lines[0]})" if lines else type(error).__name__


def _asked_for(call: RecordedCall, tangents: Tangents) -> Tangents:
    """The tangents of the inputs that a gradient was asked for: what is detached is its caller's affair."""
    return [tangent if asked else None for tangent, asked in zip(tangents, call.differentiable, strict=True)]


def _moved(call: RecordedCall, tangents: Tangents, step: float) -> tuple[Any, Any]:
    moved: dict[torch.Tensor, torch.Tensor] = {}
    position = iter(range(len(tangents)))

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        k = next(position, None)
        if tensor not in moved:
            tangent = tangents[k] if k is not None else None
            new = tensor.clone() if tangent is None else tensor + step * tangent
            asked = k is not None and call.differentiable[k] and torch.is_grad_enabled()
            moved[tensor] = _writable(new.requires_grad_()) if asked else new
        return moved[tensor]

    arguments: tuple[Any, Any] = replaced(call.arguments, replace)
    return arguments


def _with_leaves(call: RecordedCall, leaves: list[torch.Tensor]) -> tuple[Any, Any]:
    """The arguments with new leaves for their tensors, which `leaves` then lists in order."""
    views: dict[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = {}

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        k = len(leaves)
        known = k < len(call.differentiable)
        if tensor not in views:
            leaf = tensor.clone().requires_grad_(known and call.differentiable[k])
            views[tensor] = leaf, _writable(leaf)
        if known:
            leaves.append(views[tensor][0])
        return views[tensor][1]

    arguments: tuple[Any, Any] = replaced(call.arguments, replace)
    return arguments


def _writable(leaf: torch.Tensor) -> torch.Tensor:
    """A copy of the leaf: a module may write to its input, and must not to a leaf or its views."""
    return leaf.clone() if leaf.requires_grad else leaf


def _received(call: RecordedCall, outputs: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each gradient that arrived with the output it arrived for."""
    return [(g, output) for g, output in zip(call.cotangents, outputs, strict=True) if g is not None]


def rounding_of(gradients: Sequence[torch.Tensor]) -> Rounding | None:
    """The lower precision that every one of these numbers is a number of."""
    strided = [each.detach() for each in gradients if each.layout is torch.strided and not each.is_complex()]
    return rounding_of_all([each.cpu().double().numpy().ravel() for each in strided])


def _same(call: RecordedCall, outputs: Sequence[torch.Tensor]) -> bool:
    def close(one: float, other: float, scale: float) -> bool:
        return abs(one - other) <= SAME * scale or (one != one and other != other)

    pairs = zip(call.outputs, map(summary, outputs), strict=True)
    return all(close(a, b, size) and close(size, again, size) for (_, a, size), (_, b, again) in pairs)


def inner(gradient: torch.Tensor, change: torch.Tensor) -> float:
    """⟨g, x⟩; for complex numbers Re(ḡ·x), g being ∂J/∂Re + i·∂J/∂Im."""
    dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    product = dense.conj() * change if dense.is_complex() else dense * change
    return float((product.real if product.is_complex() else product).sum())
