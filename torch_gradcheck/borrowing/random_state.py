"""The state of random generators, read and put back, and all of them seeded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_gradcheck.borrowing.switches import Switch, attribute_switch
from torch_gradcheck.torch_internals.devices import accelerator_type


class _Saved(NamedTuple):
    """A generator with its state; `own` is the object, where it is not a global one."""

    generator: Switch
    state: Any
    own: Any = None

    def has_moved(self) -> bool:
        return not _same(self.generator.read(), self.state)


class SentStates(NamedTuple):
    """States of generators on their way to another process: the global ones, the current device first, and others."""

    of_globals: Sequence[Any]
    of_own: Sequence[Any]


class RandomState:
    """The state of random generators at one moment, to go back to."""

    def __init__(self, saved: Sequence[_Saved]) -> None:
        self._saved = list(saved)

    @classmethod
    def of_everything(cls, own: Sequence[Any] = ()) -> RandomState:
        """The state of every generator that a model may draw from.

        These are the global ones of Python and numpy, torch's on the CPU and on every device of the accelerator, and
        the `own` ones, which the caller's objects refer to.
        """
        of_globals = [_Saved(generator, generator.read()) for generator in _global_generators()]
        return cls([*of_globals, *(_Saved(switch := _own_generator(each), switch.read(), each) for each in own)])

    def now(self) -> RandomState:
        """The present state of the same generators."""
        return RandomState([saved._replace(state=saved.generator.read()) for saved in self._saved])

    @property
    def is_empty(self) -> bool:
        """Whether this is the state of no generator."""
        return not self._saved

    @property
    def own(self) -> list[Any]:
        """The generators that are not global, and that the caller's objects refer to."""
        return [saved.own for saved in self._saved if saved.own is not None]

    @property
    def states(self) -> SentStates:
        """The states alone, which another process can be sent."""
        return SentStates(
            *([each.state for each in self._saved if (each.own is None) is of_all] for of_all in (True, False))
        )

    @classmethod
    def received(cls, states: SentStates, own: Sequence[Any]) -> RandomState:
        """These states, of the global generators of this process and of its own `own` ones, in their order."""
        switches = [*zip(_global_generators(), states.of_globals, strict=False)]
        mine = [_Saved(_own_generator(each), state, each) for each, state in zip(own, states.of_own, strict=False)]
        return cls([*(_Saved(switch, state) for switch, state in switches), *mine])

    def restore(self) -> None:
        """Puts the generators back to this state."""
        for saved in self._saved:
            saved.generator.write(saved.state)

    def has_moved(self) -> bool:
        """Whether a generator is no longer in this state."""
        return any(saved.has_moved() for saved in self._saved)

    def narrow_to_moved(self) -> None:
        """Forgets the generators that are still in this state: nothing draws from them."""
        self._saved = [saved for saved in self._saved if saved.has_moved()]


def is_generator(value: object) -> bool:
    """Whether `value` is a random generator whose state can be read and put back; the system's entropy has none."""
    kind = type(value)  # and not its `__class__`, which may be code of the user's
    return not issubclass(kind, random.SystemRandom) and issubclass(
        kind, torch.Generator | np.random.Generator | np.random.RandomState | random.Random
    )


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators, those of every device included.

    `torch.manual_seed` is not used: for an accelerator that is not initialised, each call of it leaves another entry
    with a stack trace in a queue.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    device = accelerator_type()
    if device is not None:
        module = torch.get_device_module(device)
        (getattr(module, "manual_seed_all", None) or module.manual_seed)(seed)


def _global_generators() -> list[Switch]:
    generators = [
        Switch(random.getstate, random.setstate),
        Switch(np.random.get_state, np.random.set_state),
        Switch(torch.get_rng_state, torch.set_rng_state),
    ]
    device = accelerator_type()
    if device is not None:
        module = torch.get_device_module(device)
        current = module.current_device() if hasattr(module, "current_device") else 0
        indices = sorted(range(module.device_count()), key=lambda index: index != current)
        generators += [_device_generator(module, index) for index in indices]
    return generators


def _device_generator(module: Any, index: int) -> Switch:
    if not hasattr(module, "device_of"):  # mps has one generator and takes no index
        return Switch(module.get_rng_state, module.set_rng_state)
    return Switch(lambda: module.get_rng_state(index), lambda state: module.set_rng_state(state, index))


def _own_generator(generator: Any) -> Switch:
    if isinstance(generator, torch.Generator):
        return Switch(generator.get_state, _ignoring_result(generator.set_state))
    if isinstance(generator, np.random.Generator):
        return attribute_switch(generator.bit_generator, "state")
    if isinstance(generator, np.random.RandomState):
        return Switch(generator.get_state, generator.set_state)
    return Switch(generator.getstate, generator.setstate)


def _ignoring_result(function: Callable[[Any], Any]) -> Callable[[Any], None]:
    def call(value: Any) -> None:
        function(value)

    return call


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return all(_same(one[key], other[key]) for key in one)
    try:
        return bool(one == other)  # Python's generator: 625 numbers
    except ValueError:  # a tuple with an array in it, numpy's
        return all(map(_same, one, other))
