"""Torch's and numpy's global switches, which a check sets and puts back."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from torch_gradcheck.torch_internals.autograd import (
    current_backward,
    current_function_backward,
    pop_saved_tensor_hooks_down_to,
    saved_tensor_hooks,
    set_backward,
    set_function_backward,
)
from torch_gradcheck.torch_internals.compiler import compiler_switch, set_compiler_switch
from torch_gradcheck.torch_internals.devices import accelerator_type
from torch_gradcheck.torch_internals.dispatch import (
    dispatch_modes,
    function_modes_in_force,
    pop_function_modes_down_to,
    pop_transforms_down_to,
    set_dispatch_modes,
    transforms_in_force,
)
from torch_gradcheck.torch_internals.modules import (
    ParametrizationCache,
    current_calls,
    parametrization_cache,
    set_calls,
    set_parametrization_cache,
)
from torch_gradcheck.torch_internals.scripted import optimises_scripts, set_optimises_scripts

WORTH_A_SECOND_THREAD = 100_000
"""The number of coordinates from which J is evaluated on several threads. In the operations of a smaller model they
mostly wait for each other, on a busy machine forty times as long as they work.
"""


class Switch(NamedTuple):
    """One global setting: a function that reads it, and one that writes a value that was read."""

    read: Callable[[], Any]
    write: Callable[[Any], None]


def attribute_switch(owner: Any, name: str) -> Switch:
    """The setting that is attribute `name` of `owner`."""
    return Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _set_warning_filters(value: Any) -> None:
    """Removes the filters that packages imported meanwhile (sympy) have added."""
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _set_grad_enabled(value: Any) -> None:
    torch.set_grad_enabled(value)


def _set_numpy_errors(value: Any) -> None:
    np.seterr(**value)


def _set_collecting(value: Any) -> None:
    (gc.enable if value else gc.disable)()


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


def _attention() -> tuple[Switch, ...]:
    """Which kernels attention may be computed by; the recording of J asks for the one made of operations."""
    cuda = torch.backends.cuda
    return (
        Switch(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
        Switch(cuda.math_sdp_enabled, cuda.enable_math_sdp),
        Switch(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
        Switch(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    )


def _switches() -> list[Switch]:
    return [
        Switch(torch.get_default_dtype, torch.set_default_dtype),
        Switch(torch.is_grad_enabled, _set_grad_enabled),
        Switch(torch.get_num_threads, torch.set_num_threads),
        Switch(np.geterr, _set_numpy_errors),
        Switch(lambda: list(warnings.filters), _set_warning_filters),
        Switch(dispatch_modes, set_dispatch_modes),
        Switch(function_modes_in_force, pop_function_modes_down_to),
        Switch(transforms_in_force, pop_transforms_down_to),
        Switch(torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Switch(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
        Switch(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        _deterministic(),
        *_attention(),
        *_autocast("cpu"),
        *(_autocast(accelerator) if (accelerator := accelerator_type()) else ()),
        attribute_switch(torch.backends.cudnn, "benchmark"),
        attribute_switch(torch.backends.cudnn, "deterministic"),
        attribute_switch(torch.backends.cudnn, "enabled"),
        attribute_switch(torch.backends.cudnn, "allow_tf32"),
        attribute_switch(torch.backends.cuda.matmul, "allow_tf32"),
        Switch(parametrization_cache, set_parametrization_cache),
        Switch(current_calls, set_calls),  # the search for a culprit replaces these
        Switch(current_function_backward, set_function_backward),  # and this
        Switch(saved_tensor_hooks, pop_saved_tensor_hooks_down_to),  # and adds to these
        Switch(current_backward, set_backward),  # and a recorded backward this
        Switch(compiler_switch, set_compiler_switch),  # the backward on trial replaces this
        Switch(optimises_scripts, set_optimises_scripts),
        Switch(gc.isenabled, _set_collecting),  # an entry of a function's contract turns this off
    ]


class SwitchState:
    """The caller's settings, read here; `settle` makes those that a check needs, `restore` puts every one back."""

    def __init__(self) -> None:
        self._saved = [(switch, switch.read()) for switch in _switches()]

    def settle(self, precision: torch.dtype | None, coordinates: int) -> None:
        """Turns off what would make J another function: autocast, fused inference paths, cached parametrizations.

        `precision` becomes the default dtype; None leaves the default as it is. Below `WORTH_A_SECOND_THREAD`
        `coordinates` torch gets one thread.
        """
        torch.set_grad_enabled(True)
        if precision is not None:
            torch.set_default_dtype(precision)
        if coordinates < WORTH_A_SECOND_THREAD:
            torch.set_num_threads(1)
        for device in filter(None, ("cpu", accelerator_type())):
            torch.set_autocast_enabled(device, False)
        torch.backends.mha.set_fastpath_enabled(False)
        set_parametrization_cache(ParametrizationCache(0, {}))
        set_optimises_scripts(False)  # what torch.jit learns of dtypes and shapes would stay with the caller's modules

    def restore(self) -> None:
        """Writes every setting that has changed since."""
        for switch, value in self._saved:
            if switch.read() is not value and switch.read() != value:
                switch.write(value)
