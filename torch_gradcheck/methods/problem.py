"""The reference: J's noise measured, then every checked parameter's gradient tried against centered differences."""

from __future__ import annotations

import time

import numpy as np

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.noise import POINTS, SIGMAS, Noise, measured_noise
from torch_gradcheck.differences.richardson import Stencil
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.engines.selection import Elsewhere, select_engine
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.theta import Theta, flat_values
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.entry_check import EntryCheck
from torch_gradcheck.verdicts.judge import judge_gradient
from torch_gradcheck.verdicts.kinks import NEARBY_GRADIENTS
from torch_gradcheck.verdicts.trial import ParameterTrial

FAR = 1e-2
"""How far away from θ, relative to it, noise is measured again: what steps of a ladder may be taken by."""

APART = 1e-8
"""How far apart the points are there, relative to θ: as wide as the stairs of J where 10⁸ is added and taken away."""

FEWER_POINTS = 7
"""How many values that takes, where no more than its size is asked for."""

LARGER = 4.0
"""How many times larger than at θ noise is there where it is seen to grow."""

WIDE = 1e-4
"""A relative step this large was chosen because gradients are small: the next parameter's may be, too."""


class Numerical:
    """Centered differences of J over θ, through one engine.

    Args:
        objective: J.
        theta: its parameters, lent in the precision of the check.
        threads: how many cores the traced engine may keep busy.
        request: tolerance, step and seed.
    """

    def __init__(self, objective: Objective, theta: Theta, request: Request, threads: int) -> None:
        self._objective, self._theta, self._request = objective, theta, request
        self._step = epsilon(objective.dtype) ** (1 / 3)
        direction = self._direction(0)
        with direction.at(self._step):
            a_step_away = objective.value()
        sigma = self._sigma(direction)
        growth = self._growth(direction, sigma)
        self.noise = Noise(objective.loss, sigma, epsilon(objective.dtype), growth)
        self.engine = select_engine(
            objective,
            theta,
            always=request.method == "projected",
            threads=threads,
            elsewhere=Elsewhere(lambda: direction.at(self._step), a_step_away),
            noise=SIGMAS * max(sigma, growth * self._step),
        )
        self._nearby: dict[tuple[int, float], dict[int, AnalyticGradient]] = {}

    def trials(self, gradients: dict[int, AnalyticGradient], progress: ProgressBar) -> dict[int, ParameterTrial]:
        """Every checked parameter tried, in the order of θ, by position."""
        progress.start(2 * self._theta.coordinates, "")
        trials: dict[int, ParameterTrial] = {}
        previous_stencil: Stencil | None = None
        for position in self._theta.checked:
            progress.at(self._theta[position].name)
            started, before = time.perf_counter(), self._objective.evaluations
            coordinates = self._theta[position].coordinates_on_trial
            check = self.check(position, coordinates, gradients[position], progress)
            results = judge_gradient(check, previous_stencil)
            if results.stencil.step > WIDE:
                previous_stencil = results.stencil
            trials[position] = ParameterTrial(
                coordinates,
                check.analytic,
                gradients[position].reached,
                results,
                evaluations=self._objective.evaluations - before,
                seconds=time.perf_counter() - started,
            )
        return trials

    def eager_sampler(self, position: int) -> Sampler:
        """J along single coordinates of one parameter, evaluated in the plainest way."""
        return lambda which, steps: self.engine.eager.sample(position, which, steps)

    def check(
        self, position: int, coordinates: Indices, gradient: AnalyticGradient, progress: ProgressBar
    ) -> EntryCheck:
        """Whether these coordinates of one parameter's gradient are right."""

        def sampler_of(engine: Engine) -> Sampler:
            def sampler(which: Indices, steps: Floats) -> Samples:
                samples = engine.sample(position, coordinates[which], steps)
                progress.advance(len(which))
                return samples

            return sampler

        def nearby(k: int, distance: float) -> Sampler:
            def sample_there(which: Indices, steps: Floats) -> Samples:
                with self._direction(k + 1).at(distance):
                    return self.engine.eager.sample(position, coordinates[which], steps)

            return sample_there

        def nearby_analytic(k: int, distance: float) -> Floats:
            return self._gradients_nearby(k, distance)[position].values[coordinates]

        values = flat_values(self._theta[position])[coordinates]
        return EntryCheck(
            sampler=sampler_of(self.engine),
            at_zero=lambda: self.engine.at_zero(position),
            eager_sampler=sampler_of(self.engine.eager),
            nearby=nearby,
            nearby_analytic=nearby_analytic if self._request.gradients is None else None,
            analytic=gradient.values[coordinates],
            analytic_epsilon=gradient.epsilon,
            unit=np.maximum(1.0, np.abs(values)),
            scale=_scale(values),
            noise=self.noise,
            tolerance=self._request.tolerance,
            eps=self._request.eps,
        )

    def _gradients_nearby(self, k: int, distance: float) -> dict[int, AnalyticGradient]:
        """What autograd says at the k-th point near θ; the last few are kept for the parameters that follow."""
        if (k, distance) not in self._nearby:
            if len(self._nearby) >= NEARBY_GRADIENTS:
                self._nearby.pop(next(iter(self._nearby)))
            with self._direction(k + 1).at(distance):
                self._nearby[k, distance] = autograd_gradients(self._objective, self._theta)
        return self._nearby[k, distance]

    def _sigma(self, direction: RandomDirection) -> float:
        """The noise of J near θ: on one side of it, so that a kink at θ itself is not taken for noise."""
        values = self._along(direction, POINTS, epsilon(self._objective.dtype) ** (2 / 3))
        noise = self._objective.spread
        if np.any(values != values[0]):
            return max(measured_noise(values), noise)
        # J does not move at all. A loss that is rounded to 0, or to a constant, is not free of noise for that: the
        # quantities inside of it are rounded.
        return max(epsilon(self._objective.dtype) * self._objective.largest_output, noise)

    def _growth(self, direction: RandomDirection, sigma: float) -> float:
        """How noise grows with the distance from θ, by what it is far away; 0 where that is what it is at θ."""
        with np.errstate(all="ignore"):  # J may be infinite so far away
            spacing = max(APART, epsilon(self._objective.dtype) ** (2 / 3))
            noise = measured_noise(self._along(direction, FEWER_POINTS, spacing, start=FAR))
        if not LARGER * sigma < noise < np.inf:
            return 0.0
        # The direction moves entries by their size, a step of 1 those below 1 by 1.
        return noise / FAR / min(1.0, self._typical_size())

    def _typical_size(self) -> float:
        """The root mean square of what is checked, 1 where all of it is 0."""
        squares, count = 0.0, 0
        for position in self._theta.checked:
            values = flat_values(self._theta[position])
            squares, count = squares + float(np.sum(values**2)), count + len(values)
        return (squares / count) ** 0.5 if squares else 1.0

    def _along(self, direction: RandomDirection, points: int, spacing: float, *, start: float = 0.0) -> Floats:
        """J at equally spaced points close to each other in a direction from θ, the one at `start` left out."""
        values = []
        for point in range(1, points + 1):
            with direction.at(start + point * spacing):
                values.append(self._objective.value())
        return np.array(values)

    def _direction(self, k: int) -> RandomDirection:
        parameters = [self._theta[position].parameter for position in self._theta.checked]
        return RandomDirection(parameters, (self._request.seed + k) % 2**63)


def _scale(values: Floats) -> Floats:
    """The larger of |x| and the root mean square of all, 1 where all are 0."""
    typical = float(np.sqrt(np.mean(values**2))) if len(values) else 0.0
    return np.maximum(np.abs(values), typical or 1.0)
