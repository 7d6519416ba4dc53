"""The loan of a model: the caller's own tensors are set aside, copies take their place, and all comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_gradcheck.borrowing.attributes import AttributeStates
from torch_gradcheck.borrowing.captures import Captures, captures_of
from torch_gradcheck.borrowing.code_caches import CodeCaches
from torch_gradcheck.borrowing.random_state import RandomState, seed_everything
from torch_gradcheck.borrowing.script_attributes import ScriptAttributes
from torch_gradcheck.borrowing.spectral_norm import PowerIterations
from torch_gradcheck.borrowing.switches import SwitchState
from torch_gradcheck.borrowing.tensor_copies import FirstValues, TensorCopies
from torch_gradcheck.borrowing.way_back import Steps, go_back
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.processes.signals import HeldSignals
from torch_gradcheck.request import Mode
from torch_gradcheck.torch_internals.devices import has_float64
from torch_gradcheck.torch_internals.modules import compiler_is_imported, named_buffers

ONE_AT_A_TIME = RLock()
"""Random state and switches belong to the whole process: checks in several threads wait for each other.

A forward that itself waits for a check in another thread would wait for ever.
"""

PATIENCE = 0.1
"""Seconds between two looks for Ctrl-C, while a check waits for one in another thread."""

LEARNING_EVALUATIONS = 3
"""The number of evaluations from which caches are learned: one with a graph, one without, one with a graph again."""


@dataclass(frozen=True)
class Start:
    """The state that evaluations of J start from, where that is not a seed and the model's present buffers.

    Attributes:
        random: the state of the random generators; None for that of the seed.
        values: tensor → the numbers that it starts with, in a dtype of their own.
        device: of everything that is lent; None: of these numbers, or each tensor's own.
    """

    random: RandomState | None = None
    values: Mapping[torch.Tensor, torch.Tensor] = field(default_factory=dict)
    device: torch.device | None = None

    def restore(self) -> None:
        """Puts the random generators to this state, where it has one."""
        if self.random is not None:
            self.random.restore()


class Borrowed:
    """A model while it is lent; resets it before and after each evaluation of J.

    Attributes:
        generators: the random generators that J reaches, besides the global ones.
        default_dtype: the caller's own; while the model is lent it is the precision of the check.
    """

    def __init__(
        self,
        tensors: TensorCopies,
        holders: AttributeStates,
        scripts: ScriptAttributes,
        generators: Sequence[Any],
        default_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._tensors = tensors
        self._holders = holders
        self._scripts = scripts
        self.generators = generators
        self.default_dtype = default_dtype
        self._collects_gradients = True
        self._learning_evaluations = LEARNING_EVALUATIONS
        self._random = RandomState.of_everything(generators)

    def before_evaluation(self) -> None:
        """Puts random generators back to the state that evaluations start from."""
        self._random.restore()

    @property
    def has_drawn(self) -> bool:
        """Whether a random generator is no longer in the state that evaluations start from."""
        return self._random.has_moved()

    @property
    def random_state(self) -> RandomState:
        """The present state of the generators that J draws from, as far as is known: none where it draws nothing."""
        return self._random.now()

    def after_evaluation(self) -> None:
        """Resets buffers, attributes and `.grad` to their contents before the evaluation."""
        if self._learning_evaluations:
            self._learning_evaluations -= 1
            self._holders.learn_caches()
        self._scripts.rewind()
        self._tensors.rewind()
        self._holders.rewind()
        if self._collects_gradients:
            self._tensors.drop_gradients()

    def take_for_first(self) -> None:
        """Has evaluations start from what the lent tensors hold now."""
        self._tensors.take_for_first()

    def is_moved(self) -> bool:
        """Whether a lent tensor holds other values than evaluations start from at θ."""
        return self._tensors.are_moved()

    def at_first(self) -> FirstValues:
        """A block inside of which the lent tensors hold what evaluations start from at θ."""
        return self._tensors.at_first()

    def first_values(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What evaluations start from in a lent tensor, to be read only; see `TensorCopies.first`."""
        return self._tensors.first(tensor)

    def lends(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor object is one of the caller's, and not made while the model is lent."""
        return self._tensors.hold(tensor)

    def has_gradients(self) -> bool:
        """Whether the evaluation left something in `.grad`: it ran a backward of its own."""
        return self._tensors.have_gradients()

    def learn_from_evaluation(self) -> None:
        """After the first evaluation: notes the state that it left untouched, which later ones need not reset."""
        self._random.narrow_to_moved()
        self._tensors.learn_what_changes()
        self._collects_gradients = self.has_gradients()


Lent = TypeVar("Lent")
"""What a loan gives: the borrowed model itself, or something built around it."""


class Loan(Generic[Lent]):
    """Lends a model in `mode`, everything it and `holders` hold in `dtype`; takes it back whatever happens.

    A class and not a generator: between a `with` and a generator's `finally` lie frames of contextlib's, where Ctrl-C
    could land and leave the copies in place.

    Args:
        model: what is lent.
        holders: the functions that compute J, and other things that J reaches (random generators in a batch).
        mode: as the request has it.
        dtype: the precision; None leaves every tensor in its own.
        seed: of the random state.
        lent: makes what the `with` block gets; it may build, and must not evaluate: signals are held meanwhile.
        start: the state that evaluations start from; None for `seed` and the model's buffers.
        apart: tensors whose copies share memory with no other one: `x.detach()`, kept for a target, stays when x moves.
    """

    def __init__(
        self,
        model: nn.Module,
        holders: Sequence[Any],
        mode: Mode,
        dtype: torch.dtype | None,
        seed: int,
        lent: Callable[[Borrowed], Lent],
        start: Start | None = None,
        apart: Sequence[torch.Tensor] = (),
    ) -> None:
        self._apart = apart
        self._model, self._mode, self._dtype, self._seed, self._start = model, mode, dtype, seed, start
        self._lent = lent
        self._captures = captures_of(model, *holders)
        self._generators = list(self._captures.generators.values())
        self._signals = HeldSignals(frozenset({Loan.__enter__.__code__, Loan.__exit__.__code__}))
        self._undo: Steps = []

    def __enter__(self) -> Lent:
        try:
            self._signals.install()
            while not self._wait_for_others():
                self._give_back()  # delivers the interrupt
                self._signals.install()
            lent = self._lent(self._take())
        except BaseException:
            self._give_back()
            raise
        if self._signals.waiting:
            self._give_back()  # delivers the interrupt
        return lent

    def __exit__(self, *exception: object) -> None:
        self._give_back()

    def _wait_for_others(self) -> bool:
        """Waits while a check runs in another thread; returns False when a signal came meanwhile."""
        while not ONE_AT_A_TIME.acquire(timeout=PATIENCE):
            if self._signals.waiting:
                return False
        self._undo.append(ONE_AT_A_TIME.release)
        return True

    def _take(self) -> Borrowed:
        """Sets everything aside; each step registers its way back before it changes anything."""
        _check_numbers(self._model, self._captures)
        _check_contents(self._captures)
        if self._dtype is torch.float64 and (self._start is None or self._start.device is None):
            for key, tensor in self._captures.tensors.items():
                check_has_float64(self._captures.names.get(key, "a tensor of the model"), tensor)
        inference = torch.inference_mode(False)
        inference.__enter__()
        self._undo += [lambda: inference.__exit__(None, None, None), *_compiled_parts_run_eagerly()]
        default_dtype = torch.get_default_dtype()
        switches, random = SwitchState(), RandomState.of_everything(self._generators)
        lent = self._captures.modules.values()
        holders, iterations, caches = AttributeStates(self._captures), PowerIterations(lent), CodeCaches(lent)
        start = self._start or Start()
        everything = list(self._captures.tensors.values())
        tensors = TensorCopies(everything, self._dtype, start.values, self._apart, start.device)
        scripts = ScriptAttributes(lent)
        self._undo += [switches.restore, random.restore, caches.restore, iterations.restore, holders.restore]
        self._undo += [scripts.restore, tensors.swap_back]
        tensors.swap_in()
        scripts.point_to_tensors()
        iterations.hold()
        perturbed = [*self._model.parameters(), *self._apart]
        switches.settle(self._dtype, coordinates=sum(each.numel() for each in perturbed))
        if self._mode != "keep":
            self._model.train(self._mode == "train")
            holders.start()
            scripts.start()
        if self._start is None or self._start.random is None:
            seed_everything(self._seed)
        else:
            self._start.restore()
        return Borrowed(tensors, holders, scripts, self._generators, default_dtype)

    def _give_back(self) -> None:
        try:
            go_back(self._undo)
        finally:
            self._signals.release()


def lend(
    model: nn.Module,
    holders: Sequence[Any],
    mode: Mode,
    dtype: torch.dtype | None,
    seed: int,
    start: Start | None = None,
    apart: Sequence[torch.Tensor] = (),
) -> Loan[Borrowed]:
    """A loan whose block gets the borrowed model itself; see `Loan` for the arguments."""
    return Loan(model, holders, mode, dtype, seed, lambda borrowed: borrowed, start, apart)


def _compiled_parts_run_eagerly() -> list[Callable[[], None]]:
    """Turns torch.compile off, which would compile the model again with modes of the check; returns the way back."""
    if not compiler_is_imported():
        return []
    stance = torch.compiler.set_stance("force_eager")
    return [lambda: stance.__exit__(None, None, None)]


def _check_numbers(model: nn.Module, captures: Captures) -> None:
    """Raises InvalidRequestError where a module holds a tensor without numbers to compute with.

    A module beside the model may be on the meta device: a skeleton that `torch.func.functional_call` gives numbers.
    """
    for name, buffer in named_buffers(model):
        _check_is_initialised(f"buffer {name!r}", buffer)
        _check_is_material(f"buffer {name!r}", buffer)
    for module in captures.modules.values():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            _check_is_initialised(f"{name!r} of a {type(module).__name__}", tensor)


def _check_contents(captures: Captures) -> None:
    """Raises InvalidRequestError where a tensor cannot stand for a copy: autograd refers to its contents."""
    for key, tensor in captures.tensors.items():
        if not tensor.is_leaf and tensor.retains_grad:
            name = captures.names.get(key) or f"a tensor of shape {tuple(tensor.shape)}"
            raise InvalidRequestError(
                f"{name} is held by the model, the loss or the closure, and retain_grad() was called on it: its "
                "contents cannot be lent. Let it go, or hold .detach().requires_grad_() of it."
            )


def check_has_float64(name: str, tensor: torch.Tensor) -> None:
    """Raises InvalidRequestError where a tensor cannot be copied into float64 on its device, as on Apple's GPUs."""
    if (tensor.is_floating_point() or tensor.is_complex()) and not has_float64(tensor.device):
        raise InvalidRequestError(
            f"dtype=torch.float64: {name} is on {tensor.device}, which has no float64. Move the model and the batch to "
            "the CPU, or check with dtype=torch.float32, with wider error bars."
        )


def _check_is_initialised(what: str, tensor: torch.Tensor) -> None:
    if is_lazy(tensor):
        raise InvalidRequestError(f"{what} is not initialised yet (a lazy module): call it once on a batch first.")


def _check_is_material(what: str, tensor: torch.Tensor) -> None:
    if tensor.is_meta:
        raise InvalidRequestError(
            f"{what} is on the meta device and holds no numbers: materialise the module first, "
            "for example with to_empty(device='cpu') and an initialisation."
        )
