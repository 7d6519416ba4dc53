"""The traced engine: J recorded once, then evaluated for many perturbations at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import Flags, Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.eager import EagerEngine
from torch_gradcheck.engines.engine import Engine, SubstituteEngine
from torch_gradcheck.engines.traced.chunks import SMALLEST, ChunkSize, Footprint, keep_freed_memory
from torch_gradcheck.engines.traced.cost import seconds_each
from torch_gradcheck.engines.traced.evaluation import Evaluated, evaluated
from torch_gradcheck.engines.traced.gradient import gradient_by_record
from torch_gradcheck.engines.traced.program import compiled
from torch_gradcheck.engines.traced.quantities import quantities_on_the_way
from torch_gradcheck.engines.traced.rules.perturbed import Perturbed, Span
from torch_gradcheck.engines.traced.threads import OnThreads, ThreadCount
from torch_gradcheck.engines.traced.untraceable import Strayed, Untraceable
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.torch_internals.devices import is_out_of_memory
from torch_gradcheck.torch_internals.dispatch import modes_disabled, vmap_or_nothing

MEMORY_LIMIT = 2**30
"""Bytes (1 GiB) that perturbed values may take beside the model and one forward's activations."""

WORTH_ALL_THREADS = 2**23
"""Bytes (8 MiB) written by all operations from which several threads are faster than one."""

COMPARED = 4
"""Coordinates of a parameter that are compared with J itself; half as many in a small tensor."""

SMALL_TENSOR = 64
"""The largest number of entries in a small tensor."""

SMALL_STEP, MANY, MOST = 1e-3, 64, 0.9
"""A parameter is left to other engines where, of this many perturbations or more by steps no larger than this, the
record does not hold for a share larger than this. Larger steps say nothing of the smaller ones that are tried next."""

TRACE_IN_EVALUATIONS = 80
"""The cost of recording J, in eager evaluations of J: 7 to 79 were measured, most where operations are short."""


def worth_tracing(evaluations: int, parameters: int) -> bool:
    """Whether the eager engine takes longer than recording J and comparing the record for every parameter.

    Args:
        evaluations: the number of evaluations of J to come, as a rule two for each coordinate.
        parameters: the number of tensors in θ.
    """
    return evaluations > TRACE_IN_EVALUATIONS + COMPARED * parameters


class TracedEngine(SubstituteEngine):
    """Evaluates J from a record of the operations it consists of.

    For each parameter the operations upstream are not repeated. Those downstream run for a chunk of perturbations at a
    time, and only on the entries that these change. θ is neither written nor copied, and J's Python code does not run
    again: the engine is valid as long as θ, buffers and batch hold the values they had. Perturbations under which J
    reads other values than at θ to decide by (conditions, indices) are left to the eager engine.

    Args:
        objective: J(θ), deterministic, a 0-dim real tensor.
        parameters: θ, read by the objective as these very objects, or through any view of their memory.
        memory_limit: bytes for the values of a chunk; the values of one forward come on top.
        threads: the largest number of threads that operations are spread over; None for torch's own.

    Attributes:
        seconds_to_trace: the seconds that recording took.

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
        self._objective = objective
        self._eager = EagerEngine(self._value_of_J, list(parameters))
        self._threads, self._one_thread = ThreadCount(threads or torch.get_num_threads()), ThreadCount(1)
        self._memory_limit = memory_limit
        self._chunks: dict[int, tuple[Footprint, ChunkSize]] = {}
        self.seconds_to_trace = perf_counter() - started

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        """J(θ + steps[k]·e_coordinates[k]) for every k; see `Engine`.

        Raises:
            Untraceable: J as a function of this parameter cannot be evaluated from the record.
        """
        coordinates, steps = np.asarray(coordinates, dtype=np.int64), np.asarray(steps, dtype=np.float64)
        values, taken, strayed = np.empty(len(steps)), np.empty(len(steps)), np.zeros(len(steps), dtype=np.bool_)
        written = self._chunks_of(parameter)[0].written_bytes * len(steps)
        threads = self._threads if written > WORTH_ALL_THREADS else self._one_thread
        # Neighbours in memory tend to change the same rows and columns, which costs less.
        rest = np.argsort(coordinates, kind="stable")
        with modes_disabled(), torch.no_grad(), vmap_or_nothing():
            while len(rest):
                here = self._next(parameter, coordinates, rest)
                samples = self._chunk(parameter, coordinates[here], steps[here], threads)
                if samples is not None:
                    taken[here], values[here], strayed[here] = samples
                    rest = rest[len(here) :]
        by_eager = np.flatnonzero(strayed)
        if len(by_eager):
            taken[by_eager], values[by_eager] = self._eager.sample(parameter, coordinates[by_eager], steps[by_eager])
            self.by_eager += len(by_eager)
        return Samples(taken, values)

    def confirm(self, expected: float, noise: float) -> None:
        """Compare the record with J itself at what the parameters hold now, which is not θ in any of them.

        Values may reach J by a way that the recording does not see: another thread, a pointer. They are constants in
        the record, and need not depend on the few coordinates that `sample_compared` compares.

        Args:
            expected: J itself at what the parameters hold now.
            noise: what two right ways to evaluate J may differ by, in the unit of J.

        Raises:
            Strayed: the record does not hold there.
            Untraceable: the record gives another value.
        """
        found = self._by_record()
        dtype = self._program.values[self._program.output].dtype
        if found is not None and _differ(np.array(found), np.array(expected), noise, dtype):
            raise Untraceable(
                f"with all parameters moved the recorded operations give J = {found!r}, J itself {expected!r}: values "
                "reach it by a way that the recording does not see"
            )

    def value(self) -> float | None:
        """J by the record at what the parameters hold now; None where the record contains draws made at θ.

        Where the record does not hold there, it is J itself.
        """
        try:
            return self._by_record()
        except Strayed:
            self.by_eager += 1
            return self._value_of_J()

    def _by_record(self) -> float | None:
        with modes_disabled(), torch.no_grad(), OnThreads(1):
            return self._program.again()

    def _value_of_J(self) -> float:  # noqa: N802
        J = self._objective
        return J.value() if isinstance(J, Objective) else float(J().detach())

    def gradients(self, wanted: Sequence[int] | None = None) -> list[Tensor | None]:
        """The gradient of every parameter by aten's own formulas, see `gradient_by_record`; None where J has none.

        `wanted` are those that are asked for, None for all.

        Raises:
            Untraceable: the record cannot be differentiated.
        """
        return gradient_by_record(self._program, wanted)

    def quantities(self) -> list[Tensor]:
        """Every value between θ and J, see `quantities_on_the_way`, at what the parameters hold now.

        Raises:
            Untraceable: an operation cannot be run again on these values.
        """
        return quantities_on_the_way(self._program)

    def seconds_each(self, parameter: int) -> float:
        """An estimate of the seconds that one sample of this parameter takes, by the shapes in the record."""
        return seconds_each(self._program, parameter)

    def sample_compared(
        self,
        parameter: int,
        coordinates: Indices,
        steps: Floats,
        reference: Engine,
        noise: float,
        *,
        probes: int = COMPARED,
    ) -> Samples:
        """The same as `sample`, after a comparison with another engine at a few coordinates, by steps of both signs.

        The samples to compare and those asked for are taken in one call, whose fixed cost is that of many samples.
        The steps of the comparison have a size of their own: at the steps asked for, which may be tiny, 0, or so large
        that J overflows, two different functions may have the same values.

        Args:
            parameter: position of the parameter in θ.
            coordinates: as in `sample`.
            steps: as in `sample`.
            reference: the engine to believe.
            noise: what two right ways to evaluate J may differ by, in the unit of J.
            probes: the number of coordinates to compare.

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
        """Coordinates to compare, the first and the last among them, and their steps, every other one negative."""
        theta = _real_coordinates(self._theta(parameter))
        last = theta.numel() - 1
        more = count - 2 if theta.numel() > SMALL_TENSOR else (count + 1) // 2 - 2
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
        """A sentence on the first value that differs from the expected one; None where none does."""
        wrong = _differ(found, expected.values, noise, self._theta(parameter).dtype)
        if not wrong.any():
            return None
        k = int(np.argmax(wrong))
        return (
            f"coordinate {coordinates[k]} moved by {expected.steps[k]:.3g} gives J = {found[k]!r} from the "
            f"recorded operations, {expected.values[k]!r} from J itself"
        )

    def _chunks_of(self, parameter: int) -> tuple[Footprint, ChunkSize]:
        """What a perturbation of a parameter takes, and how many are evaluated at once; known once it is sampled."""
        if parameter not in self._chunks:
            footprint = self._program.footprint(parameter)
            self._chunks[parameter] = footprint, ChunkSize(self._memory_limit, footprint)
        return self._chunks[parameter]

    def _next(self, parameter: int, coordinates: Indices, order: Indices) -> Indices:
        """The perturbations of the next chunk."""
        here = order[: self._chunks_of(parameter)[1].size]
        theta = self._theta(parameter)
        if theta.ndim > 2:
            # Kernels of convolutions: with one output channel a chunk, the next layer convolves that channel alone.
            channel = theta[0].numel() * (2 if theta.is_complex() else 1)
            alone = int(np.searchsorted(coordinates[here], (coordinates[here[0]] // channel + 1) * channel))
            if alone >= SMALLEST:
                here = here[:alone]
        return here

    def _theta(self, parameter: int) -> Tensor:
        return self._program.values[self._program.parameters[parameter]]

    def _chunk(
        self, parameter: int, coordinates: Indices, steps: Floats, threads: ThreadCount
    ) -> tuple[Floats, Floats, Flags] | None:
        """Steps and values of one chunk, and for which of them the record does not hold.

        None where memory did not suffice and the next chunk should be smaller.

        Raises:
            Untraceable: the record holds for too few.
        """
        start, taken = perturbed(self._theta(parameter), coordinates, steps)
        try:
            with threads.chunk():
                found = evaluated(self._program, parameter, start, threads.adapt)
            threads.ended()
        except (RuntimeError, MemoryError) as error:
            if len(steps) == 1 or not is_out_of_memory(error):
                raise
            self._chunks_of(parameter)[1].out_of_memory(len(steps))
            return None
        self._chunks_of(parameter)[1].measured(len(steps), found.peak_bytes)
        return taken, found.J.double().numpy(), _strayed(found, steps)


def _strayed(found: Evaluated, steps: Floats) -> Flags:
    """For which perturbations of a chunk the record does not hold.

    Raises:
        Untraceable: for most of many small ones, so that recorded evaluations are wasted on this parameter.
    """
    if found.strayed is None:
        return np.zeros(len(found.J), dtype=np.bool_)
    strayed = found.strayed.numpy()
    of_small = strayed[np.abs(steps) <= SMALL_STEP]
    if len(of_small) >= MANY and of_small.mean() > MOST and found.guard is not None:
        raise found.guard.strayed("under most small perturbations")
    return strayed


def _differ(found: Floats, expected: Floats, noise: float, dtype: torch.dtype) -> Flags:
    """Which values of J differ from the expected ones by more than noise. An infinite or NaN one is not compared."""
    allowed = noise + 64 * torch.finfo(dtype).eps * np.abs(expected)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        return np.asarray(~(np.abs(found - expected) <= allowed) & np.isfinite(expected))


def perturbed(theta: Tensor, coordinates: Indices, steps: Floats) -> tuple[Perturbed, Floats]:
    """A parameter with one coordinate moved by each step, and the steps that its precision allows."""
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
    """A parameter as a vector in C order; (real, imaginary) pairs of a complex one."""
    return real_view(theta.resolve_conj()).reshape(-1)
