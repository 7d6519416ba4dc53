"""J(θ): one deterministic scalar function of the borrowed parameters, evaluated in one precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import nn

from torch_gradcheck.borrowing.loan import Borrowed
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.collectives import CollectiveWatch, collective_watch
from torch_gradcheck.objective.domain import Domain
from torch_gradcheck.objective.given import UNKNOWN, Given
from torch_gradcheck.objective.held_values import HeldValues, in_words
from torch_gradcheck.objective.holding import Holding
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.own_steps import StepWatch
from torch_gradcheck.objective.refused_places import named_module
from torch_gradcheck.objective.returned import scalar
from torch_gradcheck.objective.unseen import Activity
from torch_gradcheck.objective.variables import Variable, objects_of
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.precision.mode import DrawnIn, PrecisionMode
from torch_gradcheck.reporting.words import LOSS_WORDS, LossWords, listed
from torch_gradcheck.torch_internals.modules import module_at
from torch_gradcheck.torch_internals.scripted import hides_interrupt

ROUNDOFF_BETWEEN_CALLS = 1e3
"""Two equal calls may differ by this many machine epsilons of J, 2e-13 in float64, and still be one function: atomic
adds on a GPU sum in any order."""


class Objective:
    """J(θ) at whatever the borrowed parameters hold.

    Made by `preflighted`, which evaluates it at θ, learns what an evaluation needs and hands it on finished; afterwards
    only its counts grow.

    Attributes:
        model: the borrowed model.
        dtype: the precision J is evaluated in.
        loss: J(θ) at the weights being checked.
        evaluations: the number of evaluations of J so far.
        spread: the largest difference between evaluations at the same θ; 0 when they agree to the bit.
        largest_output: the largest absolute value in the output of a module.
        overridden: op name → modules in which a lower precision was overridden.
        replaced: whether grouped products were computed by other operations than torch's own.
        needs_graph: J is another function without autograd, or calls autograd itself.
        runs_backward: an evaluation calls `backward()` itself, as closures of `torch.optim` do.
        stepped: the classes of the optimizers that an evaluation has move tensors that require a gradient.
        aside: the ids of such tensors that are not on trial, and that J reads after its own step.
        reads_held_steps: J reads what its steps have moved, as held values only: so it is held at θ, too.
        activity: the modules that ran at θ, and which of their units fired.
        drawn_in: the precisions in which random numbers are drawn; None: that of the check.
        with_graph: the value that J, a slope, has where its backward makes a graph, if that is another one; else None.
        held: the values that J reads where its graph is cut; None where all moves with θ.
        domain: where J is defined.
        variables: what J depends on besides the model's parameters.
        words: what a report calls the code that computes J.
        given: what the caller gave to compute it.
    """

    def __init__(
        self,
        model: nn.Module,
        compute: Callable[[], Any],
        borrowed: Borrowed,
        dtype: torch.dtype,
        drawn_in: DrawnIn | None = None,
        beat: Callable[[], None] = lambda: None,
        held: HeldValues | None = None,
        variables: Sequence[Variable] = (),
        words: LossWords = LOSS_WORDS,
        given: Given = UNKNOWN,
    ) -> None:
        self.model, self.dtype, self.drawn_in = model, dtype, drawn_in
        self.loss = math.nan
        self.evaluations = 0
        self.spread = 0.0
        self.largest_output = 0.0
        self.overridden: dict[str, set[str]] = {}
        self.replaced = False
        self.needs_graph = True
        self.runs_backward = False
        self.stepped: tuple[str, ...] = ()
        self.aside: frozenset[int] = frozenset()
        self.reads_held_steps = False
        self.with_graph: float | None = None
        self.activity = Activity(model)
        self._compute, self._borrowed, self._beat = compute, borrowed, beat
        self.variables = variables
        self.words, self.given = words, given
        self._needs_mode = True
        self.held = held
        self.domain = Domain(borrowed)
        self._holding: Holding | None = None

    def __call__(self) -> torch.Tensor:
        """J as a 0-dim tensor, with a graph where one is needed; leaves the state as it was."""
        with torch.set_grad_enabled(self.needs_graph), self.evaluation():
            return self.compute()

    def drawn(self) -> RandomState:
        """The generators that J draws from, in the state that it starts from; one more evaluation."""
        with self.evaluation():
            state = RandomState.of_everything(self._borrowed.generators)
            self.compute()
            state.narrow_to_moved()
        return state

    @property
    def random_state(self) -> RandomState:
        """The present state of the generators that J draws from."""
        return self._borrowed.random_state

    @property
    def raises_precision(self) -> bool:
        """Whether J is evaluated under a mode that raises casts to a lower precision, operation by operation."""
        return self._needs_mode

    def at_theta(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """What a lent parameter holds at θ, to be read only, in some dtype; None of one that is not lent."""
        return self._borrowed.first_values(parameter)

    def count(self, evaluations: int) -> None:
        """Evaluations that were made without calling this object."""
        self.evaluations += evaluations

    def value(self) -> float:
        """J(θ), as cheaply as possible; NaN where it raises because it is not defined there."""
        try:
            return float(self().detach())
        except Exception as error:
            if not math.isfinite(self.loss) or not self.domain.excludes(error, self):
                raise
            return math.nan

    def value_again(self) -> float:
        """J(θ) once more; `spread` takes in how far it lies from the first value."""
        again = self.value()
        self.spread = max(self.spread, abs(again - self.loss))
        return again

    def evaluation_as_it_is(self) -> _Evaluation:
        """The regime of one evaluation in which casts to a lower precision are not raised."""
        self.evaluations += 1
        self._beat()
        return _Evaluation(self._borrowed, None, None, collective_watch(self.model))

    def evaluation(self, mode: PrecisionMode | None = None, *, at_theta: bool = False) -> _Evaluation:
        """The regime of one evaluation; `compute` inside the block, and a backward, so that it shares the regime.

        At θ, values are held by themselves: with `at_theta` nothing is done to hold them, unless J's own steps, taken
        back, would change them.
        """
        self.evaluations += 1
        self._beat()
        return self.regime(mode, self.held if self.reads_held_steps or not at_theta else None)

    def regime(self, mode: PrecisionMode | None = None, held: HeldValues | None = None) -> _Evaluation:
        """The same for a part of J that is run alone, which is no evaluation of J; `held` are its values."""
        if mode is None and self._needs_mode:
            mode = PrecisionMode(self.dtype)
        if mode is not None:
            mode.drawn_in = self.drawn_in
        self._holding = None if held is None else Holding(held, self.leaves, self._borrowed.lends)
        return _Evaluation(self._borrowed, mode, self._holding, collective_watch(self.model))

    @property
    def strays(self) -> bool:
        """Whether the evaluation, or the part of J, that is running asks for other held values than at θ."""
        return self._holding is not None and self._holding.strayed

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The parameters and variables that the graph of J begins at."""
        leaves = dict.fromkeys(
            [*self.model.parameters(), *objects_of(self.variables)]
        )  # a parameter may be in the batch, too
        return [leaf for leaf in leaves if leaf.requires_grad]

    def compute(self) -> torch.Tensor:
        """J as a 0-dim tensor; only inside `evaluation`. NaN where values are held, and J asks for other ones."""
        loss = scalar(self._compute(), self.given)
        return loss if self._holding is None else self._holding.finished(loss)

    def holding(self, held: HeldValues) -> Objective:
        """The same J with values held, recorded by one evaluation at θ; it counts its evaluations itself."""
        other = copy(self)
        other.held, other.needs_graph = held, True
        if not held.complete:
            other.value()
        return other

    def record_evaluation(self) -> float:
        """J(θ) with a graph, noting which casts had to be overridden and which generators it draws from."""
        with forward_hooks(self.model, self._record_output) as watch, StepWatch(self.leaves) as steps:
            mode = PrecisionMode(self.dtype, watch.current_module)
            with torch.enable_grad(), self.evaluation(mode):
                value = float(self.compute().detach())
                self.runs_backward = self._borrowed.has_gradients()
                self._borrowed.learn_from_evaluation()
        self.overridden, self.replaced, self.stepped = mode.overridden, mode.replaced, tuple(steps.stepped)
        self._needs_mode = bool(mode.overridden) or mode.replaced or mode.has_drawn
        return value

    def is_after_its_step(self, *, holding: bool = False) -> bool:
        """Whether J has another value where each step that it takes is taken back at once; two more evaluations.

        With `holding` what is held stays as it was when J had taken its steps.
        """
        values = []
        for takes_back in (False, True):
            with torch.enable_grad(), self.evaluation(at_theta=not holding), StepWatch(self._moving, takes_back):
                values.append(float(self.compute().detach()))
        return self.same(values[0], self.loss) and not self.same(values[1], self.loss)

    def without_its_steps(self) -> AbstractContextManager[object]:
        """A block in which each step that J takes is taken back at once, so that the backward of J is that at θ."""
        return StepWatch(self._moving, takes_back=True) if self.stepped else nullcontext()

    @property
    def _moving(self) -> list[torch.Tensor]:
        """The leaves whose steps are taken back."""
        return [leaf for leaf in self.leaves if id(leaf) not in self.aside]

    def _record_output(self, name: str, tensors: list[torch.Tensor]) -> None:
        self.activity.saw(name, tensors)
        for tensor in tensors:
            if tensor.is_meta:
                raise InvalidRequestError(on_meta(named_module(name, module_at(self.model, name))))
            if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
                self.largest_output = max(self.largest_output, float(tensor.detach().abs().max()))

    @property
    def apart_with_graph(self) -> float:
        """How far a slope whose backward makes a graph lies from one that makes none, relative to the larger one."""
        if self.with_graph is None:
            return 0.0
        return abs(self.with_graph - self.loss) / max(abs(self.with_graph), abs(self.loss))

    def same(self, one: float, other: float) -> bool:
        """Whether two values of J are one number up to the roundoff two equal calls may differ by."""
        return one == other or abs(one - other) <= ROUNDOFF_BETWEEN_CALLS * epsilon(self.dtype) * abs(other)


class _Evaluation:
    """The state that J is evaluated in, as a context manager.

    It is a class, as `Loan` is: an interrupt would leave a generator suspended, to end at some later time.
    """

    def __init__(
        self,
        borrowed: Borrowed,
        mode: PrecisionMode | None,
        holding: Holding | None,
        watch: CollectiveWatch | None = None,
    ) -> None:
        self._borrowed, self._mode, self._holding, self._watch = borrowed, mode, holding, watch

    def __enter__(self) -> None:
        self._borrowed.before_evaluation()
        if self._watch is not None:  # before those that look for the line of user code that calls them
            self._watch.__enter__()  # type: ignore[no-untyped-call]
        if self._mode is not None:
            self._mode.__enter__()  # type: ignore[no-untyped-call]
        if self._holding is not None:
            self._holding.__enter__()

    def __exit__(self, *exception: object) -> None:
        if self._holding is not None:
            self._holding.__exit__(*exception)
        if self._mode is not None:
            self._mode.__exit__(*exception)
        if self._watch is not None:
            self._watch.__exit__(*exception)
        self._borrowed.after_evaluation()
        if hides_interrupt(exception[1]):
            raise KeyboardInterrupt


def on_meta(module: str) -> str:
    """The words on a module whose output has no numbers."""
    return (
        f"{module} returned a tensor on the meta device, which has no numbers: compute it on the device of its input."
    )


def evaluation_of(borrowed: Borrowed) -> AbstractContextManager[None]:
    """The regime of one run of a lent model as it is: from its first state, to which it is put back."""
    return _Evaluation(borrowed, None, None)


def on_overridden(objective: Objective) -> str:
    """The note on lower precisions that were raised to that of the check, and in which modules; "" without."""
    if not objective.overridden:
        return ""
    modules = sorted({name or objective.words.with_model for names in objective.overridden.values() for name in names})
    return (
        f"casts and tensors of a lower precision were computed in {name_of(objective.dtype)}, in {listed(modules)} "
        f"(as torch calls these operations: {', '.join(sorted(objective.overridden))})"
    )


def on_replaced(objective: Objective) -> str:
    """The note on an operation of torch that was computed by other ones; "" without."""
    if not objective.replaced:
        return ""
    return f"grouped products were computed group by group: torch has no kernel for them in {name_of(objective.dtype)}"


def on_graph(objective: Objective, accumulated: bool) -> str:
    """The note on evaluations of J that need autograd; "" where they do not."""
    if accumulated:
        steps = f" and steps {listed(objective.stepped)} (put back each time)" if objective.stepped else ""
        code = objective.words.runs_backward
        return f"{code} calls backward() itself{steps}: what it leaves in .grad is what was checked"
    if objective.needs_graph and objective.held is None:
        return "J was evaluated with autograd on: under no_grad it cannot be computed, or has another value"
    return ""


def on_spread(objective: Objective) -> str:
    """The note on two equal calls that differ by roundoff; "" where they agree to the bit."""
    if not objective.spread:
        return ""
    return f"two equal calls differ by {objective.spread:.0e}, which may be rounding: it counts as noise of J"


def on_held(objective: Objective, asked: bool) -> str:
    """The note on values that are held at θ, and by which lines; "" where that was not asked for."""
    if not asked:
        return ""
    if objective.held is None:
        return "hold_detached=True, and nothing that J depends on is detached: nothing was held"
    held, strays = f"held at its value at θ: what is {in_words(objective.held.cuts)}", objective.held.strays
    if not strays:
        return held
    return (
        f"{held}; {strays} evaluations detached other values than at θ, as a condition may do, and give no value of J"
    )
