"""Selects each parameter's engine: the fastest candidate that pays, is allowed, and agrees with the eager one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.engine import Engine, SubstituteEngine
from torch_gradcheck.engines.memoized import MemoizedEngine
from torch_gradcheck.engines.shared import SharedSampling, Wanted
from torch_gradcheck.engines.traced.engine import TracedEngine, worth_tracing
from torch_gradcheck.engines.traced.untraceable import Strayed, Untraceable
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.processes.team import Team
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.modules import named_modules


@dataclass(frozen=True)
class Elsewhere:
    """A point at which every parameter differs from θ, and J there.

    Attributes:
        at: gives a block inside which the parameters hold that point, and after which they hold θ; those at the given
            positions of θ stay where they are.
        moved: positions of the parameters that differ from θ where none is to stay.
        value: J at the point where none stays.
    """

    at: Callable[[frozenset[int]], AbstractContextManager[object]]
    moved: frozenset[int]
    value: float


@dataclass(frozen=True)
class EngineRequest:
    """What a candidate needs to know before it takes J.

    Attributes:
        objective: J.
        parameters: the tensors of θ.
        eager: the engine to believe.
        worth_tracing: whether recording J costs less than it saves, or is wanted whatever it costs.
        threads: the largest number of threads that operations are spread over.
        elsewhere: a point to compare a substitute of J at.
        noise: what two right ways to evaluate J may differ by, in the unit of J.
    """

    objective: Objective
    parameters: list[torch.Tensor]
    eager: EagerEngine
    worth_tracing: bool
    threads: int
    elsewhere: Elsewhere
    noise: float


Candidate = Callable[[EngineRequest], Engine | None]
"""Builds an engine; gives None where the engine does not pay or J does not allow it, raises Untraceable where it fails
on J."""


def traced(request: EngineRequest) -> TracedEngine | None:
    """J recorded once. A J that calls `backward()` itself is not recorded."""
    if not request.worth_tracing or request.objective.runs_backward:
        return None
    return recorded(request.objective, request.parameters, request.threads, request.elsewhere, request.noise)


def recorded(
    objective: Objective, parameters: Sequence[torch.Tensor], threads: int, elsewhere: Elsewhere, noise: float
) -> TracedEngine:
    """A record of J that agrees with J elsewhere, where parameters that stray from the record stay at θ.

    Raises:
        Untraceable: J cannot be recorded, the record gives another value, or it holds nowhere but at θ.
    """
    engine, staying = TracedEngine(objective, parameters, threads=threads), frozenset[int]()
    while True:
        with elsewhere.at(staying):
            try:
                engine.confirm(objective.value() if staying else elsewhere.value, noise)
                return engine
            except Strayed as strayed:
                if strayed.upstream <= staying or elsewhere.moved <= staying | strayed.upstream:
                    raise
                staying |= strayed.upstream


def memoized(request: EngineRequest) -> MemoizedEngine | None:
    """J by its modules, those upstream of the perturbation from memory. A J that needs a graph is not remembered."""
    objective = request.objective
    if not request.worth_tracing or objective.runs_backward or objective.needs_graph:
        return None
    return MemoizedEngine(request.eager, objective.model, objective.value, request.parameters)


def eager(request: EngineRequest) -> EagerEngine:
    """J itself, whatever it is made of."""
    return request.eager


CANDIDATES: tuple[Candidate, ...] = (traced, memoized, eager)
"""Every engine, the fastest first. The eager one is the last: it takes any J and is always believed."""


def select_engine(
    objective: Objective,
    theta: Theta,
    *,
    always: bool,
    threads: int,
    elsewhere: Elsewhere,
    noise: float,
    team: Team | None = None,
) -> SelectedEngine:
    """The engine of J, out of `CANDIDATES`.

    Args:
        objective: J.
        theta: its parameters, lent in the precision of the check.
        always: whether recording J pays however few evaluations are to come.
        threads: the largest number of threads that operations are spread over.
        elsewhere: a point to compare a substitute of J at.
        noise: what two right ways to evaluate J may differ by, in the unit of J.
        team: the ranks that share its samples; None: this one alone.
    """
    parameters: list[torch.Tensor] = [entry.parameter for entry in theta]
    request = EngineRequest(
        objective,
        parameters,
        EagerEngine(objective.value, parameters),
        always or worth_tracing(2 * theta.coordinates, len(theta.checked)),
        threads,
        elsewhere,
        noise,
    )
    engines: list[Engine] = []
    refusal: Untraceable | None = None
    for candidate in CANDIDATES:
        try:
            engine = candidate(request)
        except Untraceable as why:
            refusal = refusal or why
        else:
            engines += [] if engine is None else [engine]
    return SelectedEngine(engines, request.eager, noise=noise, counted=objective.count, refusal=refusal, team=team)


Refusals = Mapping[int | None, Untraceable]
"""Parameter, or None for all of them → why a faster engine was not used."""


class SelectedEngine:
    """The fastest engine that can be trusted, parameter by parameter.

    A substitute of J is used for a parameter only if its values agree with J's at a few coordinates, which are compared
    along with the first samples.

    Args:
        engines: the fastest first; the last is no substitute.
        eager: the engine to believe.
        noise: what two right ways to evaluate J may differ by, in the unit of J.
        counted: called with the number of evaluations that were made without a call of J.
        refusal: why a candidate that is not among the engines cannot evaluate J.
        team: the ranks that share its samples; None: this one alone.

    Attributes:
        refused: parameter, or None for all of them → why no substitute of J could be used.
        substituted: the number of samples that were taken without a call of J.
        sharing: of samples, over the ranks.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        eager: EagerEngine,
        *,
        noise: float,
        counted: Callable[[int], None],
        refusal: Untraceable | None = None,
        team: Team | None = None,
    ) -> None:
        self.eager = eager
        self.substituted = 0
        self._engines = engines
        self._substitutes = [engine for engine in engines if isinstance(engine, SubstituteEngine)]
        self.refused: dict[int | None, Untraceable] = {}
        if refusal is not None and not self._substitutes:
            self.refused[None] = refusal
        self._noise, self._counted = noise, counted
        self.sharing = SharedSampling(team or Team(), counted)
        self._estimates: dict[
            tuple[int, int], float | None
        ] = {}  # parameter, position of its engine → seconds a sample
        self._in_use: Counter[int] = Counter()  # parameter → position of its engine
        self._at_zero: dict[int, float] = {}  # a substitute's only of parameters whose values have agreed

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """See `Engine.sample`."""
        seconds = self._seconds_by_record(parameter)
        if self.sharing.pays(len(steps), seconds):
            return self.sharing.sample(Wanted(parameter, coordinates, steps), seconds)
        return self._sample(parameter, coordinates, steps)

    def _sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """The samples by the engine of this rank."""
        while isinstance(engine := self._engines[self._in_use[parameter]], SubstituteEngine):
            by_eager = engine.by_eager
            try:
                samples = self._believed(engine, parameter, coordinates, steps)
            except Untraceable as refusal:
                self._in_use[parameter] += 1
                self._at_zero.pop(parameter, None)
                if not isinstance(self._engines[self._in_use[parameter]], SubstituteEngine):
                    self.refused[parameter] = refusal
            else:
                self._count(len(steps) - (engine.by_eager - by_eager))
                return samples
        return engine.sample(parameter, coordinates, steps)

    def gradients(self) -> list[torch.Tensor | None] | None:
        """The gradient of a substitute of J, by parameter, None where J depends on none; None without a substitute.

        Raises:
            Untraceable: no substitute can be differentiated.
        """
        refusal: Untraceable | None = None
        for engine in self._substitutes:
            try:
                gradients = engine.gradients()
            except Untraceable as why:
                refusal = why
                continue
            if gradients is not None:
                self._counted(1)
                return gradients
        if refusal is not None:
            raise refusal
        return None

    @cached_property
    def value_substitute(self) -> Callable[[], float] | None:
        """Evaluates a substitute of J at what the parameters hold now; None without one that agreed everywhere."""
        if self.refused:
            return None
        return next((self._counting(engine) for engine in self._substitutes if engine.value() is not None), None)

    def _counting(self, engine: SubstituteEngine) -> Callable[[], float]:
        def value() -> float:
            by_eager = engine.by_eager
            found = engine.value()
            assert found is not None, "it had one before"
            self._count(1 - (engine.by_eager - by_eager))
            return found

        return value

    def _count(self, samples: int) -> None:
        """Take in samples that were taken without a call of J; what a substitute asked J for has been counted."""
        self.substituted += samples
        self._counted(samples)

    @property
    def traced(self) -> TracedEngine | None:
        """The record of J, where one is among the engines."""
        return next((engine for engine in self._engines if isinstance(engine, TracedEngine)), None)

    @property
    def has_substitutes(self) -> bool:
        """Whether anything but J itself is evaluated, many perturbations at a time."""
        return bool(self._substitutes)

    def seconds_each(self, parameter: int) -> float | None:
        """An estimate of the seconds that one sample of a parameter takes; None where no substitute of J knows."""
        estimates = (engine.seconds_each(parameter) for engine in self._substitutes)
        return next((seconds for seconds in estimates if seconds is not None), None)

    def _seconds_by_record(self, parameter: int) -> float | None:
        """The seconds of a sample by the engine in use, as the record of J lets expect; None where it is J itself."""
        in_use = parameter, self._in_use[parameter]
        if in_use not in self._estimates:
            engine = self._engines[in_use[1]]
            self._estimates[in_use] = engine.seconds_each(parameter) if isinstance(engine, SubstituteEngine) else None
        return self._estimates[in_use]

    def zero_of(self, parameter: int) -> float | None:
        """The same as `at_zero` where samples of a substitute of J have brought it along; else None."""
        return self._at_zero.get(parameter) if self._seconds_by_record(parameter) is not None else None

    def at_zero(self, parameter: int) -> float:
        """J(θ) as the engine of this parameter computes it, with its own roundoff.

        Where that is a substitute of J, the first samples bring it along.
        """
        if parameter not in self._at_zero:
            here = self.sample(parameter, np.zeros(1, dtype=np.int64), np.zeros(1))
            self._at_zero[parameter] = float(here.values[0])
        return self._at_zero[parameter]

    def _believed(self, engine: SubstituteEngine, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """A substitute's samples; the first ones of a parameter are compared, and bring J(θ) along."""
        if parameter in self._at_zero:  # then they have been compared
            return engine.sample(parameter, coordinates, steps)
        taken, values = engine.sample_compared(
            parameter, np.append(coordinates, 0), np.append(steps, 0.0), self.eager, self._noise
        )
        self._at_zero[parameter] = float(values[-1])
        return Samples(taken[:-1], values[:-1])


def module_name_of(refusal: Untraceable, model: torch.nn.Module) -> str:
    """The qualified name of the module that a refusal names; "" where that is none of the model's."""
    return next((name for name, module in named_modules(model) if module is refusal.module), "")


def on_refusals(refused: Refusals, model: nn.Module, whom: str) -> str:
    """The note on why, and in which module, J was evaluated one coordinate at a time; "" where it was not."""
    if not refused:
        return ""
    refusal = next(iter(refused.values()))
    where = module_name_of(refusal, model)
    told = (
        f"evaluated one coordinate at a time for {whom}" if whom else "J's slopes verified the gradient on trial itself"
    )
    return f"{told}: {refusal}{f' (in {where})' if where else ''}"


def whom(refused: Refusals, rows: Sequence[ParameterReport]) -> str:
    """The names of the parameters for which J was evaluated one coordinate at a time."""
    if None in refused:
        return "every parameter"
    return listed([rows[position].name for position in refused if position is not None])
