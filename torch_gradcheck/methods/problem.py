"""The problem of a check: J borrowed, θ, the options, and what is measured of J when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.differences.noise import SIGMAS, Noise
from torch_gradcheck.differences.step_size import first_step
from torch_gradcheck.engines.selection import Elsewhere, Refusals, SelectedEngine, recorded, select_engine
from torch_gradcheck.engines.traced.engine import TracedEngine
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.gradients.analytic import AnalyticGradient, undefined_gradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.gradients.by_compiled_code import Backward
from torch_gradcheck.gradients.refused_gradients import told
from torch_gradcheck.gradients.repeated import RepeatedGradients, repeated_gradients
from torch_gradcheck.methods.directional.directions import Directions
from torch_gradcheck.methods.line import Line
from torch_gradcheck.methods.noise import NoiseNear, distances_near, noise_near
from torch_gradcheck.methods.noise_along import quieter_noise
from torch_gradcheck.methods.not_finite import finite
from torch_gradcheck.methods.on_trial import not_selected, slope_on_trial, theta_on_trial
from torch_gradcheck.methods.points_near_theta import PointsNearTheta
from torch_gradcheck.objective.loss import Loss, on_not_perturbed
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.objective.preflight import preflighted
from torch_gradcheck.objective.second_order import Slope
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.mode import DrawnIn
from torch_gradcheck.processes.team import Team
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.freed_memory import give_back_freed_memory

BACKWARD = "backward"
"""The name by which a rank keeps the gradients of its own backward until they are compared."""

LARGE = 2**20
"""Coordinates of a θ whose copies take so much memory that what is freed is given back to the system at once."""

BACKWARD_IN_EVALUATIONS = 3
"""About how many evaluations of J a run of it and its backward takes as long as: the leader runs one more of them."""


class Problem:
    """Whether the gradients on trial are those of J: all that the stages of a check need to find out.

    Everything is made when it is first asked for, while the model is lent, and kept: θ, J after its preflight, the
    noise of J, the engine that evaluates it.

    Args:
        model: the borrowed model.
        loss: the user's loss.
        borrowed: the way back to the first state around each evaluation of J.
        request: the options.
        threads: the number of threads the engine may spread operations over.
        progress: told of every evaluation of J.
        theta: θ, where it was made before the loan; None makes it.
        drawn_in: the precisions of random draws; None: that of the check.

    Attributes:
        kept: what a rank that does not lead keeps from one share to the next, by a name that its task has for it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        borrowed: Borrowed,
        request: Request,
        threads: int,
        progress: ProgressBar,
        theta: Theta | None = None,
        drawn_in: DrawnIn | None = None,
    ) -> None:
        self.model, self.request, self.progress = model, request, progress
        self._loss, self._borrowed, self._threads, self._drawn_in = loss, borrowed, threads, drawn_in
        self.kept: dict[str, Any] = {}
        self._refused: Refusals = {}
        self._foreseen: Line | None = None  # what the noise of J is measured from, where ranks have evaluated it
        if theta is not None:
            self.theta = theta

    @property
    def team(self) -> Team:
        """The ranks that share the work on this problem; this one alone where the others have no such problem."""
        return self.request.team.working_on(self)

    @cached_property
    def directions(self) -> Directions:
        """Directions through θ; made while the parameters hold it."""
        return Directions(self.objective, self.theta, self.request.seed, self.progress, self.team)

    def give_back_freed_memory(self) -> None:
        """Between two stages: the memory that one has freed is not in use while the other takes more, if θ is large."""
        if self.theta.coordinates >= LARGE:
            give_back_freed_memory()

    @property
    def evaluations(self) -> int:
        """How often J was evaluated on this rank."""
        return self.objective.evaluations

    @property
    def on_not_perturbed(self) -> str:
        """The note on tensors that require a gradient and are not on trial; "" without."""
        return on_not_perturbed(self._loss)

    @property
    def loss(self) -> Loss:
        """The user's loss over the model."""
        return self._loss

    def _beat(self) -> None:
        """Before every evaluation of J: the bar may move, and the ranks that wait hear that this one works."""
        self.progress.beat()
        self.request.team.pulse()

    @property
    def loss_function(self) -> Any:
        """The user's loss function or closure."""
        return self._loss.holders[0]

    @property
    def default_dtype(self) -> torch.dtype:
        """The caller's default dtype, which is that of the check while the model is lent."""
        return self._borrowed.default_dtype

    @cached_property
    def theta(self) -> Theta:
        """The parameters of the lent model, whose `train()` and `eval()` may have thawed some, and the variables."""
        return theta_on_trial(self.model, self._loss, self.request, lambda: self._loss_itself)

    @property
    def _loss_itself(self) -> Objective:
        """The user's loss; J, unless that is the slope, which is one along θ."""
        if self.request.order == 1:
            return self.objective
        dtype = self.request.dtype
        return Objective(self.model, self._loss.at(dtype), self._borrowed, dtype, self._drawn_in)

    @cached_property
    def slope(self) -> Slope | None:
        """J as the slope ⟨v, ∇J⟩ of the user's loss, in a check of second order; else None."""
        return None if self.request.order == 1 else slope_on_trial(self.model, self._loss, self.request)

    @cached_property
    def objective(self) -> Objective:
        """J, evaluated twice before any verdict; raises where it is no finite deterministic number."""
        dtype = self.request.dtype
        compute = self.slope or self._loss.at(dtype)
        hold = self.request.hold_detached

        def preflight() -> Objective:
            return preflighted(
                self.model,
                compute,
                self._borrowed,
                dtype,
                self._drawn_in,
                self._beat,
                hold,
                self._loss.variables,
                self._loss.words,
                self.slope,
                self._loss.given,
                partial(not_selected, self.model, self._loss, self.request),
            )

        def evaluated() -> Objective:
            return told(preflight, self.model)  # J may run a backward itself, as a closure or the slope of another J

        return finite(evaluated, self.slope, self.request.perturb)

    @cached_property
    def backward(self) -> Backward:
        """The backward that gives autograd's gradient on trial: of compiled code, where J runs any.

        The other ranks run theirs meanwhile, to be compared with it.
        """
        if self.team.can_share:
            self.team.order(run_backward, None)
        if not self.team.can_share or "_noise_near" in vars(self) or self.slope is not None:
            return self._run_backward()
        runs: list[Backward | Exception] = []
        line, distances = self.line(self.theta.checked), distances_near(self.objective)

        def run() -> None:
            try:
                runs.append(self._run_backward())
            except Exception as error:  # not the end for all ranks: another J may be tried for it
                runs.append(error)

        line.foresee(distances, run, BACKWARD_IN_EVALUATIONS)
        self._foreseen = line
        if isinstance(runs[0], Exception):
            raise runs[0]
        return runs[0]

    def _run_backward(self) -> Backward:
        return Backward(self.objective, self.theta, lambda: self.repeated.gradients)

    def gradients_once(self) -> Mapping[int, AnalyticGradient]:
        """The gradients on trial as one backward at θ gives them, which is not kept."""

        def eager() -> Mapping[int, AnalyticGradient]:
            return autograd_gradients(self.objective, self.theta, at_theta=True)

        return Backward(self.objective, self.theta, eager).gradients

    def gradients_now(self, wanted: Sequence[int] | None = None) -> dict[int, AnalyticGradient]:
        """Autograd's gradients at what the parameters hold now, by the backward on trial or, without one, eagerly.

        They are NaN where J is not defined there. At the `wanted` positions, and maybe at others; None: at all.
        """
        try:
            if "backward" in vars(self):
                return self.backward.again(wanted)
            return autograd_gradients(self.objective, self.theta, wanted=wanted)
        except Exception as error:
            if not self.objective.domain.excludes(error, self.objective):
                raise
            return {position: undefined_gradient(self.theta[position]) for position in self.theta.checked}

    @property
    def on_compiled_code(self) -> list[str]:
        """The notes on compiled code, on trial or not; none where no backward is on trial."""
        return self.backward.notes if "backward" in vars(self) else []

    @cached_property
    def noise(self) -> Noise:
        """The noise of J at θ and away from it; where that depends on it, J is recorded to know what it consists of."""
        return self._of_this_engine(self._noise_near)

    def noise_along(self, positions: Sequence[int]) -> Noise:
        """The noise of J where only these parameters move: that of the noisiest of them."""
        near = [self._quieter_noise.get(position) for position in positions]
        noises = [self.noise if each is None else self._of_this_engine(each) for each in near]
        return max(noises, key=lambda noise: noise.sigma)

    @cached_property
    def _quieter_noise(self) -> Mapping[int, NoiseNear]:
        return quieter_noise(self.objective, self.theta, self._noise_near, self.line)

    def _of_this_engine(self, near: NoiseNear) -> Noise:
        hidden = near.is_ambiguous and not self.engine.has_substitutes
        return near.of_hidden_ones if hidden else near.of_known_operations

    @property
    def hidden_noise(self) -> float:
        """The noise of J that is due to a part of it that is rounded out of sight; 0 where there is none."""
        known, hidden = self._noise_near
        return hidden.sigma if self.noise != known else 0.0

    @cached_property
    def repeated(self) -> RepeatedGradients:
        """Eager autograd's gradients of J, by two runs of the backward."""
        return repeated_gradients(self.objective, self.theta, self.request.tolerance, self.resolved)

    def resolved(self) -> float:
        """The error bar of a difference of J, by the step that suits its noise."""
        return float(self.noise.of_slope(np.array([2 * first_step(self.noise)]), np.array([self.noise.at_zero]))[0])

    @cached_property
    def _noise_near(self) -> NoiseNear:
        _ = self._points.value_a_step_away  # while the direction is at hand
        line, self._foreseen = self._foreseen or self.line(self.theta.checked), None
        return noise_near(self.objective, self.theta, line, self.theta.checked)

    def line(self, positions: Sequence[int]) -> Line:
        """J along a random direction through these parameters."""
        return self._points.line(positions, self.team)

    def get_ready(self) -> None:
        """What a rank that does not lead makes before its first share, while the leader makes the same and more."""
        _ = self.objective, self._points.value_a_step_away

    @cached_property
    def engine(self) -> SelectedEngine:
        """The engine that evaluates J at perturbed θ; all ranks that share the work make theirs at a time."""
        if self.team.can_share:
            self.team.order(make_engine, self._noise_near)
        engine = select_engine(
            self.objective,
            self.theta,
            always=self.request.method == "projected",
            threads=self._threads,
            elsewhere=self._elsewhere,
            noise=self._agreement,
            team=self.team,
        )
        self._points.forget_direction()
        return engine

    @cached_property
    def record(self) -> TracedEngine | None:
        """The record of J, made now where the engine has none; None where there is none that agrees with J."""
        made = self.engine.traced
        if made is not None or self.engine.refused or self.objective.runs_backward:
            return None if self.engine.refused else made
        parameters = [entry.parameter for entry in self.theta]
        try:
            return recorded(self.objective, parameters, 1, self._elsewhere, self._agreement)
        except Untraceable:
            return None
        finally:
            self._points.forget_direction()

    @property
    def _elsewhere(self) -> Elsewhere:
        """All parameters moved by a step: a point to compare a record of J with J at."""
        points = self._points
        return Elsewhere(points.a_step_away, frozenset(self.theta.checked), points.value_a_step_away)

    @property
    def _agreement(self) -> float:
        """What two right ways to evaluate J may differ by, in the unit of J."""
        noise = self._noise_near.of_known_operations
        return SIGMAS * max(noise.sigma, noise.growth * self._points.step)

    @property
    def refused(self) -> Refusals:
        """Why no faster engine evaluated J, or a parameter; nothing where no engine was asked for."""
        return self.engine.refused if "engine" in vars(self) else self._refused

    def take_over(self, noise: Noise, refused: Refusals) -> None:
        """Takes from an examined problem of the same J what need not be measured and traced again."""
        self.noise, self._quieter_noise, self._refused = noise, {}, refused

    def direction(self, k: int) -> RandomDirection:
        """The k-th random direction through all checked parameters, drawn from the seed of the request."""
        return self._points.direction(k)

    def near(self, k: int, distance: float) -> AbstractContextManager[object]:
        """A block in which the parameters hold the k-th random point near θ; direction 0 is that of the noise."""
        return self.direction(k + 1).at(distance)

    @cached_property
    def _points(self) -> PointsNearTheta:
        theta = self.theta  # which may be refused before J is evaluated
        return PointsNearTheta(self.objective, theta, self.request.seed)


def run_backward(problem: Problem, share: object) -> None:  # noqa: ARG001 - a task
    """Has a rank run its backward once, and keep what that gives, or the exception that it ends in."""
    try:
        problem.kept[BACKWARD] = problem.gradients_once()
    except Exception as error:  # told only if the leader's has ended in none
        problem.kept[BACKWARD] = error


def make_engine(problem: Problem, noise: NoiseNear) -> None:
    """Makes the engine of a rank, which takes the noise of J from the leader."""
    vars(problem)["_noise_near"] = noise
    _ = problem.engine
