"""Global state that a check sets or a model may move: random generators and torch's switches, read and put back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import _pop_mode

WORTH_A_SECOND_THREAD = 100_000
"""A model with fewer coordinates is evaluated on one thread: on operations this small threads mostly wait
for each other, on a busy machine forty times as long as they work.
"""


class Switch(NamedTuple):
    """One global setting: how it is read, and how a value read is put back."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def _attribute(owner: Any, name: str) -> Switch:
    return Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _set_warning_filters(value: Any) -> None:
    """Takes back what packages that were imported meanwhile (sympy) have added."""
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _modes_in_force() -> int:
    return torch._C._len_torch_dispatch_stack()


def _pop_modes_down_to(count: int) -> None:
    """Ends dispatch modes that an interrupt in the frames of a context manager left in force."""
    while torch._C._len_torch_dispatch_stack() > count:
        _pop_mode()


def _function_modes_in_force() -> int:
    return torch._C._len_torch_function_stack()


def _pop_function_modes_down_to(count: int) -> None:
    """Ends function modes, likewise."""
    while torch._C._len_torch_function_stack() > count:
        torch.overrides._pop_mode()


def _transforms_in_force() -> int:
    """How many transforms of torch.func (vmap, grad, ...) are being computed."""
    return len(torch._C._functorch.get_interpreter_stack() or ())


def _pop_transforms_down_to(count: int) -> None:
    """Ends transforms that an interrupt left in force, in which no tensor can require a gradient."""
    torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(count)


def _set_numpy_errors(value: Any) -> None:
    np.seterr(**value)


def _autocast(device: str) -> tuple[Switch, Switch]:
    return (
        Switch(
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        Switch(
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    )


def _deterministic() -> Switch:
    return Switch(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    )


def _switches() -> list[Switch]:
    from torch.nn.utils import parametrize

    return [
        Switch(torch.get_default_dtype, torch.set_default_dtype),
        Switch(torch.is_grad_enabled, torch._C._set_grad_enabled),
        Switch(torch.get_num_threads, torch.set_num_threads),
        Switch(np.geterr, _set_numpy_errors),
        Switch(lambda: list(warnings.filters), _set_warning_filters),
        Switch(_modes_in_force, _pop_modes_down_to),
        Switch(_function_modes_in_force, _pop_function_modes_down_to),
        Switch(_transforms_in_force, _pop_transforms_down_to),
        Switch(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Switch(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        Switch(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        _deterministic(),
        *_autocast("cpu"),
        *(_autocast(accelerator) if (accelerator := accelerator_type()) else ()),
        _attribute(torch.backends.cudnn, "benchmark"),
        _attribute(torch.backends.cudnn, "deterministic"),
        _attribute(torch.backends.cudnn, "enabled"),
        _attribute(torch.backends.cudnn, "allow_tf32"),
        _attribute(torch.backends.cuda.matmul, "allow_tf32"),
        _attribute(parametrize, "_cache_enabled"),
        _attribute(parametrize, "_cache"),
        _attribute(torch.nn.Module, "__call__"),  # `blame` records a run by way of these two
        Switch(
            lambda: vars(torch.autograd.Function)["apply"],
            lambda value: setattr(torch.autograd.Function, "apply", value),
        ),
    ]


def accelerator_type() -> str | None:
    """The device type beside the CPU that this process may use ("cuda", "mps", "xpu"), None without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None else accelerator.type


class SwitchState:
    """The caller's settings; `settle` makes those a check needs, `restore` puts every one back."""

    def __init__(self) -> None:
        self._saved = [(switch, switch.read()) for switch in _switches()]

    def settle(self, precision: torch.dtype | None, coordinates: int) -> None:
        """One J everywhere: no autocast, no fused inference paths, no cached parametrizations, `precision` by default.

        None leaves the default precision as it is. And one thread, where a second has nothing to do but to wait.
        """
        from torch.nn.utils import parametrize

        torch.set_grad_enabled(True)
        if precision is not None:
            torch.set_default_dtype(precision)
        if coordinates < WORTH_A_SECOND_THREAD:
            torch.set_num_threads(1)
        for device in filter(None, ("cpu", accelerator_type())):
            torch.set_autocast_enabled(device, False)
        torch.backends.mha.set_fastpath_enabled(False)
        parametrize._cache_enabled, parametrize._cache = 0, {}

    def restore(self) -> None:
        """Puts back every setting that is no longer what it was."""
        for switch, value in self._saved:
            if switch.read() is not value and switch.read() != value:
                switch.write(value)


class RandomState:
    """The state of random generators at one moment, to go back to."""

    def __init__(self, generators: Sequence[Switch]) -> None:
        self._saved = [(generator, generator.read()) for generator in generators]

    @classmethod
    def of_everything(cls, own: Sequence[Any] = ()) -> RandomState:
        """Every generator a model may draw from.

        Python's and numpy's global ones, torch's on the CPU and on every device of the accelerator, and the `own` ones
        that the caller's objects hold.
        """
        return cls([*_global_generators(), *map(_own_generator, own)])

    def restore(self) -> None:
        """Puts the generators back."""
        for generator, state in self._saved:
            generator.write(state)

    def has_moved(self) -> bool:
        """Whether a generator is no longer where it was."""
        return any(not _same(generator.read(), state) for generator, state in self._saved)

    def narrow_to_moved(self) -> None:
        """Forgets the generators that still are where they were: nothing draws from them."""
        self._saved = [(generator, state) for generator, state in self._saved if not _same(generator.read(), state)]


def is_generator(value: object) -> bool:
    """Whether `value` is a random generator whose state can be read and put back."""
    return isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random)


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's global generators, those of every device included.

    Not by `torch.manual_seed`: for an accelerator that is not in use it leaves a call behind, with a stack trace, and
    one more each time.
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
        generators += [_device_generator(module, index) for index in range(module.device_count())]
    return generators


def _device_generator(module: Any, index: int) -> Switch:
    if not hasattr(module, "device_of"):  # mps has one generator and takes no index
        return Switch(module.get_rng_state, module.set_rng_state)
    return Switch(lambda: module.get_rng_state(index), lambda state: module.set_rng_state(state, index))


def _own_generator(generator: Any) -> Switch:
    if isinstance(generator, torch.Generator):
        return Switch(generator.get_state, _ignoring_result(generator.set_state))
    if isinstance(generator, np.random.Generator):
        return _attribute(generator.bit_generator, "state")
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
