"""The traced engine: J recorded once, then evaluated for many perturbations at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.engine import Engine
from torch_gradcheck.engines.traced.chunks import SMALLEST, ChunkSize, is_out_of_memory, keep_freed_memory
from torch_gradcheck.engines.traced.cost import seconds_each
from torch_gradcheck.engines.traced.evaluation import evaluated
from torch_gradcheck.engines.traced.gradient import gradient_by_record
from torch_gradcheck.engines.traced.program import compiled
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.threads import OnThreads, ThreadCount
from torch_gradcheck.engines.traced.untraceable import Untraceable
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.torch_internals.dispatch import vmap_or_nothing

MEMORY_LIMIT = 2**30
"""Bytes that perturbed values may take beside the model and one forward's activations."""

WORTH_ALL_CORES = 2**23
"""Bytes that operations write from which several cores are faster than one."""

PROBES = 4
"""Coordinates that are compared with J itself, half as many of a tensor of a few; every other one moves down."""

FEW = 64
"""Entries that are few."""

TRACE_IN_EVALUATIONS = 80
"""What recording J costs, in plain evaluations of J: 7 to 79 were measured, the more the shorter its operations."""


def worth_tracing(evaluations: int, parameters: int) -> bool:
    """Whether the plain engine takes longer than recording J and making sure of it for every parameter.

    Args:
        evaluations: how often J is to be evaluated, as a rule twice for each coordinate.
        parameters: how many tensors θ consists of.
    """
    return evaluations > TRACE_IN_EVALUATIONS + PROBES * parameters


class TracedEngine:
    """Evaluates J from a record of the operations it consists of.

    For each parameter the operations upstream are not repeated, those downstream run for a chunk of perturbations at
    a time, and only on what these touch. θ is neither written nor copied, and J's Python does not run again: the
    engine is good for as long as θ, buffers and batch hold the values they had.

    Args:
        objective: J(θ), deterministic, a 0-dim real tensor.
        parameters: θ, read by the objective as these very objects, or through any view of their memory.
        memory_limit: bytes for the values of a chunk; the values of one forward come on top.
        threads: how many cores operations may be spread over; None as many as torch does.

    Attributes:
        seconds_to_trace: what recording took.

    Raises:
        Untraceable: J cannot be recorded.
    """

    def __init__(
        self,
        objective: Callable[[], Tensor],
        parameters: Sequence[Tensor],
        *,
        memory_limit: int = MEMORY_LIMIT,
        threads: int | None = None,
    ) -> None:
        started = perf_counter()
        keep_freed_memory()
        self._program = compiled(objective, parameters)
        self._cores, self._one_core = ThreadCount(threads or torch.get_num_threads()), ThreadCount(1)
        self._footprints = [self._program.footprint(parameter) for parameter in range(len(parameters))]
        self._chunks = [ChunkSize(memory_limit, footprint) for footprint in self._footprints]
        self.seconds_to_trace = perf_counter() - started

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """J(θ + steps[k]·e_coordinates[k]) for every k; see `Engine`.

        Raises:
            Untraceable: J as a function of this parameter cannot be evaluated from the record.
        """
        coordinates, steps = np.asarray(coordinates, dtype=np.int64), np.asarray(steps, dtype=np.float64)
        values, taken = np.empty(len(steps)), np.empty(len(steps))
        is_long = self._footprints[parameter].written * len(steps) > WORTH_ALL_CORES
        # Neighbours in memory tend to touch the same rows and columns, which is cheaper.
        rest = np.argsort(coordinates, kind="stable")
        with _disable_current_modes(), torch.no_grad(), vmap_or_nothing():
            while len(rest):
                here = self._next(parameter, coordinates, rest)
                samples = self._chunk(parameter, coordinates[here], steps[here], is_long=is_long)
                if samples is not None:
                    taken[here], values[here] = samples
                    rest = rest[len(here) :]
        return Samples(taken, values)

    def confirm(self, expected: float, noise: float) -> None:
        """Compare the record with J itself at what the parameters hold now, all of them moved.

        Values may reach J by a way that the recording does not see: another thread, a pointer. They are constants in
        the record, and the few coordinates that `sample_compared` looks at need not be among those they depend on.

        Args:
            expected: J there.
            noise: what two right ways to evaluate J may differ by.

        Raises:
            Untraceable: the record gives another value.
        """
        with _disable_current_modes(), torch.no_grad(), OnThreads(1):
            found = self._program.again()
        dtype = self._program.values[self._program.output].dtype
        if found is not None and _differ(np.array(found), np.array(expected), noise, dtype):
            raise Untraceable(
                f"with all parameters moved the recorded operations give J = {found!r}, J itself {expected!r}: values "
                "reach it by a way that the recording does not see"
            )

    def gradients(self) -> list[Tensor | None]:
        """The gradient of every parameter by aten's own formulas, see `rederived`; None where J depends on none.

        Raises:
            Untraceable: the record cannot be differentiated.
        """
        return gradient_by_record(self._program)

    def seconds_each(self, parameter: int) -> float:
        """What one coordinate of this parameter takes, by the shapes in the record."""
        return seconds_each(self._program, parameter)

    def sample_compared(
        self,
        parameter: int,
        coordinates: Indices,
        steps: Floats,
        reference: Engine,
        noise: float,
        *,
        probes: int = PROBES,
    ) -> Samples:
        """The same as `sample`, once another engine has found the same at a few coordinates, with steps of both signs.

        What is compared goes along with what was asked for, in one call: its fixed cost is that of many samples. The
        steps are of a size of its own. At those asked for, be they tiny, 0, or so large that J overflows, two different
        functions may look the same.

        Args:
            parameter: which one.
            coordinates: asked for.
            steps: asked for, one for each of the coordinates.
            reference: the engine to believe.
            noise: what two right ways to evaluate J may differ by.
            probes: how many coordinates to compare.

        Raises:
            Untraceable: J as a function of this parameter cannot be evaluated from the record, or not rightly so.
        """
        if self._theta(parameter).numel() == 0:
            return self.sample(parameter, coordinates, steps)
        probed, there = self._probes(parameter, probes)
        expected = reference.sample(parameter, probed, there)
        taken, values = self.sample(parameter, np.append(coordinates, probed), np.append(steps, expected.steps))
        asked = len(steps)
        difference = self._difference(parameter, probed, expected, values[asked:], noise)
        if difference is not None:
            raise Untraceable(difference)
        return Samples(taken[:asked], values[:asked])

    def _probes(self, parameter: int, count: int) -> tuple[Indices, Floats]:
        """Coordinates to compare, the first and the last among them, and how far to move each."""
        theta = _real_coordinates(self._theta(parameter))
        last = theta.numel() - 1
        more = count - 2 if theta.numel() > FEW else (count + 1) // 2 - 2
        drawn = {0, last}
        if more > 0:
            random = Random(parameter)
            drawn.update(random.randint(0, last) for _ in range(more))
        coordinates = np.array(sorted(drawn), dtype=np.int64)
        here = theta[torch.from_numpy(coordinates)].double().numpy()
        steps = torch.finfo(theta.dtype).eps ** (1 / 3) * np.maximum(1.0, np.abs(here))
        steps[1::2] *= -1
        return coordinates, steps

    def _difference(
        self, parameter: int, coordinates: Indices, expected: Samples, found: Floats, noise: float
    ) -> str | None:
        """The first value that is not what it should be, as a sentence; None where all are."""
        wrong = _differ(found, expected.values, noise, self._theta(parameter).dtype)
        if not wrong.any():
            return None
        k = int(np.argmax(wrong))
        return (
            f"coordinate {coordinates[k]} moved by {expected.steps[k]:.3g} gives J = {found[k]!r} from the "
            f"recorded operations, {expected.values[k]!r} from J itself"
        )

    def _next(self, parameter: int, coordinates: Indices, order: Indices) -> Indices:
        """The perturbations of the next chunk."""
        here = order[: self._chunks[parameter].size]
        theta = self._theta(parameter)
        if theta.ndim > 2:
            # Kernels of convolutions: with one output channel at a time the next layer convolves that one alone.
            channel = theta[0].numel() * (2 if theta.is_complex() else 1)
            alone = int(np.searchsorted(coordinates[here], (coordinates[here[0]] // channel + 1) * channel))
            if alone >= SMALLEST:
                here = here[:alone]
        return here

    def _theta(self, parameter: int) -> Tensor:
        return self._program.values[self._program.parameters[parameter]]

    def _chunk(self, parameter: int, coordinates: Indices, steps: Floats, *, is_long: bool) -> Samples | None:
        """One chunk, or None where memory did not suffice and the next should be smaller."""
        cores = self._cores if is_long else self._one_core
        before, started = cores.used, perf_counter()
        moved, taken = perturbed(self._theta(parameter), coordinates, steps)
        try:
            with cores.chunk():
                J, peak_bytes = evaluated(self._program, parameter, moved, cores.look)
            cores.ended()
        except (RuntimeError, MemoryError) as error:
            if len(steps) == 1 or not is_out_of_memory(error):
                raise
            self._chunks[parameter].out_of_memory(len(steps))
            return None
        if len(steps) == self._chunks[parameter].size and cores.used == before:  # others tell nothing
            self._chunks[parameter].measured(len(steps), perf_counter() - started, peak_bytes)
        return Samples(taken, J.double().numpy())


def _differ(found: Floats, expected: Floats, noise: float, dtype: torch.dtype) -> Flags:
    """Where values of J are not what they should be; one that is not finite says nothing."""
    allowed = noise + 64 * torch.finfo(dtype).eps * np.abs(expected)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return np.asarray(~(np.abs(found - expected) <= allowed) & np.isfinite(expected))


def perturbed(theta: Tensor, coordinates: Indices, steps: Floats) -> tuple[Perturbed, Floats]:
    """θ with one coordinate moved by each step, and the steps that its precision allows."""
    flat = _real_coordinates(theta)
    at = torch.from_numpy(coordinates)
    old = flat[at].double()
    x = (old + torch.from_numpy(steps)).to(flat.dtype)
    taken = (x.double() - old).numpy()
    entries = coordinates
    if theta.is_complex():
        entries = coordinates // 2
        pairs = flat.reshape(-1, 2)[torch.from_numpy(entries)]
        pairs[torch.arange(len(steps), device="cpu"), at % 2] = x
        x = torch.view_as_complex(pairs)
    places = np.unravel_index(entries, tuple(theta.shape)) if theta.ndim else ()
    region = [Span(place.astype(np.int64), 1) for place in places]
    return Perturbed(theta, x.reshape(-1, *(1 for _ in region)), region), taken


def _real_coordinates(theta: Tensor) -> Tensor:
    """θ in C order; (real, imaginary) pairs of a complex one."""
    return real_view(theta.resolve_conj()).reshape(-1)
