"""Directions in θ, each through one tensor or many, and J along them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from torch_gradcheck.arrays import BLOCK, Floats, Indices, blocks
from torch_gradcheck.differences.sampling import Sampler, Samples
from torch_gradcheck.methods.directional.motions import Direction, Drawn, InSizes
from torch_gradcheck.methods.directional.names import Names
from torch_gradcheck.methods.directional.shared import Share, can_be_split, ranks_of, values_of
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.perturbation import pieces, real_view, sizes, typical_size
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.processes.channel import LEADER
from torch_gradcheck.processes.team import Team
from torch_gradcheck.reporting.progress import ProgressBar


class Directions:
    """Makes directions in θ and evaluates J along them.

    θ is put back by assignment of what parameters hold at θ, as the loan says. A random direction in float32 takes half
    as much memory as θ in float64.

    Args:
        objective: J.
        theta: its parameters; those that are not checked do not move.
        seed: of the random directions; the same seed gives the same directions on every device.
        progress: advanced by one at every evaluation.
        team: the ranks that share the evaluations, each of which has such directions; None: this one alone.
        beside: the parameters are moved, and directions begin where they are now, of which a copy is held.
    """

    def __init__(
        self,
        objective: Objective,
        theta: Theta,
        seed: int,
        progress: ProgressBar,
        team: Team | None = None,
        *,
        beside: bool = False,
    ) -> None:
        self._objective, self._theta, self._seed, self._progress = objective, theta, seed, progress
        self._team = team or Team()
        self._names = Names()
        self._tensors = {position: real_view(theta[position].parameter.data) for position in theta.checked}
        self._saved = {position: self._held(position, beside) for position in theta.checked}

    def _held(self, position: int, beside: bool) -> Tensor:
        """What a parameter holds where directions begin, to be read only, in its own dtype or another."""
        held = None if beside else self._objective.at_theta(self._theta[position].parameter)
        return self._tensors[position].clone() if held is None else real_view(held.resolve_conj())

    @cached_property
    def sizes(self) -> dict[int, float]:
        """The root mean square of each parameter's finite entries, 1 where all are 0."""
        means = {position: _root_mean_square(x) for position, x in self._tensors.items()}
        return {position: mean or 1.0 for position, mean in means.items()}

    def sizes_of_entries(self, position: int, times: Tensor | None = None) -> Tensor:
        """The size of every entry of a parameter where directions begin, shape (coordinates,), in float64.

        Args:
            position: of the parameter in θ.
            times: shape (coordinates,), numbers to multiply the sizes with; None is 1.
        """
        saved, like = self._saved[position].reshape(-1), self._tensors[position]
        found, typical = torch.empty(saved.numel(), dtype=torch.float64, device=like.device), typical_size(like)
        for at in blocks(saved.numel()):
            size = sizes(saved[at].to(like), typical)
            found[at] = size if times is None else size * times[at].double()
        return found

    def in_sizes(self, random: Drawn) -> InSizes:
        """The direction in which every entry moves by its size times its component in a random direction."""
        return InSizes(random, self.sizes_of_entries)

    def random(self, number: int, scales: Mapping[int, float]) -> Drawn:
        """The random direction `number` through the tensors that have a scale.

        Every component is ± the tensor's scale times a number from [1/2, 3/2]; padding does not move. A tensor's
        components depend on seed, number and position only, not on the other tensors in the direction.

        Args:
            number: which direction.
            scales: by position in θ, how far a step of 1 moves a coordinate of that tensor.
        """
        return Drawn(number, scales, partial(_components, self._theta, self._seed))

    @property
    def at_a_time(self) -> int:
        """How many directions can be sampled in the time of one: as many as ranks share the work."""
        return self._team.size if self._team.can_share else 1

    def reach(self, direction: Direction) -> float:
        """The smallest step along a direction that moves some coordinate by its tensor's size."""
        moved = {p: abs(scale) * float(components.abs().max()) for p, (scale, components) in direction.items()}
        return min(self.sizes[position] / most for position, most in moved.items())

    def sampler(
        self,
        directions: Sequence[Direction],
        substitute: Callable[[], float] | None = None,
        visit: Callable[[int], None] = lambda _: None,
    ) -> Sampler:
        """A sampler of f_i(t) = J(θ + t·directions[i]), by J itself or by a substitute, at what the parameters hold.

        Args:
            directions: through θ.
            substitute: of J, that of the engine; None is J itself.
            visit: called with every i that is sampled, before its samples or while other ranks take them.
        """

        def sample(which: Indices, steps: Floats) -> Samples:
            if can_be_split(self._team, which, steps):
                values = self._split(directions, which, steps, substitute, visit)
            else:
                values = self._values(directions, which, steps, substitute, visit)
            return Samples(np.array(steps, dtype=np.float64), values)

        return sample

    def at(self, *moves: tuple[Direction, float]) -> _At:
        """θ + Σ step · direction inside the block, for (direction, step) in `moves`; θ, by assignment, after it."""
        return _At(self, moves)

    def move(self, moves: Sequence[tuple[Direction, float]]) -> None:
        """From anywhere to θ + Σ step · direction; tensors in no direction stay where they are."""
        begun: set[int] = set()
        for direction, step in moves:
            for position, (scale, components) in direction.items():
                before = self._tensors[position] if position in begun else self._saved[position]
                _add(before, components, step * scale, self._tensors[position])
                begun.add(position)

    def put_back(self, positions: Iterable[int]) -> None:
        """The parameters at these positions as they are at θ."""
        for position in positions:
            self._tensors[position].copy_(self._saved[position])

    def _values(
        self,
        directions: Sequence[Direction],
        which: Indices,
        steps: Floats,
        substitute: Callable[[], float] | None,
        visit: Callable[[int], None] = lambda _: None,
    ) -> Floats:
        """J at θ + steps[k] · directions[which[k]], shape (K,), one direction after the other."""
        value, values = substitute or self._objective.value, np.empty(len(steps))
        for i in dict.fromkeys(which.tolist()):
            visit(i)
            at = np.flatnonzero(which == i)
            values[at] = self._along(value, directions[i], steps[at].tolist())
            _forget(directions[i] if len(directions) > 1 else {})
        return values

    def _along(self, value: Callable[[], float], direction: Direction, steps: list[float]) -> list[float]:
        """J at θ + each step · direction; θ is put back by assignment."""
        values = []
        try:
            for step in steps:
                self.move([(direction, step)])
                values.append(value())
                self._progress.advance()
        finally:
            self.put_back(direction)
        return values

    # Shared with other ranks --------------------------------------------------------------------------------------

    def _split(
        self,
        directions: Sequence[Direction],
        which: Indices,
        steps: Floats,
        substitute: Callable[[], float] | None,
        visit: Callable[[int], None],
    ) -> Floats:
        """What `_values` gives, each pair of steps by one rank."""
        values, rank_of = np.empty(len(steps)), ranks_of(which, steps, self._team.size)
        places = [np.flatnonzero(rank_of == rank) for rank in range(self._team.size)]
        named = [
            self._share(rank, directions, which[at], steps[at], substitute is not None)
            for rank, at in enumerate(places[1:], 1)
        ]

        def own() -> None:
            mine = places[LEADER]
            values[mine] = self._values(directions, which[mine], steps[mine], substitute, visit)
            for i in [i for i in dict.fromkeys(which.tolist()) if i not in which[mine]]:
                visit(i)
                _forget(directions[i])

        answers = self._team.shared(values_of, [None, *named], meanwhile=own)
        for at, (found, evaluations) in zip(places[1:], answers[1:], strict=True):
            values[at] = found
            self._objective.count(evaluations)
            self._progress.advance(len(at))
        return values

    def _share(
        self, rank: int, directions: Sequence[Direction], which: Indices, steps: Floats, by_substitute: bool
    ) -> Share:
        """A rank's share of the samples, with the directions that it needs by name."""
        needed, which = np.unique(which, return_inverse=True)
        return Share(self._names.given(rank, [directions[i] for i in needed]), which, steps, by_substitute)

    def of_share(self, share: Share, substitute: Callable[[], float] | None) -> Floats:
        """J at every sample of a share, on the rank that it is for."""
        return self._values(
            self._names.called(share.names, self.random, self.in_sizes), share.which, share.steps, substitute
        )


class _At:
    """A class and not a generator, which an interrupt could leave behind, to put θ back at some later time."""

    def __init__(self, directions: Directions, moves: Sequence[tuple[Direction, float]]) -> None:
        self._directions, self._moves = directions, moves
        self._positions = {position for direction, _ in moves for position in direction}

    def __enter__(self) -> None:
        try:
            self._directions.move(self._moves)
        except BaseException:
            self._directions.put_back(self._positions)
            raise

    def __exit__(self, *exception: object) -> None:
        self._directions.put_back(self._positions)


def _components(theta: Theta, seed: int, number: int, position: int) -> Tensor:
    """The components of a tensor in the random direction of a number, in float32."""
    entry = theta[position]
    generator = np.random.default_rng([seed, number, position])
    components = torch.from_numpy(generator.random(entry.coordinates, dtype=np.float32))
    components.mul_(2).sub_(1)
    components.add_(torch.full_like(components, 0.5).copysign_(components))
    components[torch.from_numpy(entry.padding)] = 0
    return components


def _forget(direction: Direction) -> None:
    """Lets go of the components of a random direction, which can be drawn again."""
    if isinstance(direction, Drawn):
        direction.forget()


def _add(saved: Tensor, components: Tensor, factor: float, out: Tensor) -> None:
    """out = saved + factor · components, a piece at a time: float32 components take thrice as long in one go."""
    for begin, before, after in pieces(saved, out):
        component = components[begin : begin + before.numel()].to(after)
        torch.add(before.to(after), component.view(after.shape), alpha=factor, out=after)


def _root_mean_square(x: Tensor) -> float:
    """Of the entries that are finite; no direction moves the others."""
    norm, count = float(torch.linalg.vector_norm(x)), x.numel()
    if not math.isfinite(norm):
        finite = x[torch.isfinite(x)]
        norm, count = float(torch.linalg.vector_norm(finite)), finite.numel()
    return norm / count**0.5 if count else 0.0


def slope(direction: Direction, gradients: Mapping[int, Floats]) -> float:
    """The slope that the gradients predict along a direction: ⟨gradient, direction⟩, summed over its tensors."""
    return sum([scale * _dot(gradients[position], components) for position, (scale, components) in direction.items()])


def _dot(gradient: Floats, components: Tensor) -> float:
    """The sum of the products, in float64, a block at a time."""
    blocks = zip(torch.from_numpy(gradient).split(BLOCK), components.split(BLOCK), strict=True)
    return sum([float(torch.dot(values, block.double())) for values, block in blocks])
