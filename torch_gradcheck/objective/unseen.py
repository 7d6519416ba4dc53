"""What a check at this θ, batch and mode cannot see: other modes, entries that are all equal, units that never fire."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from types import CodeType, FunctionType

import torch
from torch import nn

from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.modules import is_dropout, named_modules, named_parameters

ZERO_BELOW = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Threshold)
"""Modules that put out exactly 0 where a unit does not fire, and let no gradient through there."""

STATISTICS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
"""Modules that normalise by statistics of the batch in training and, if they track them, by running ones in eval."""

CHANNELS_FIRST = (
    *(*STATISTICS, nn.GroupNorm),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Modules whose units lie along dimension 1; behind others they lie along the last one."""


class Activity:
    """Which modules ran in one evaluation of J, and which of their units fired.

    A unit is an index of the dimension of channels or features; it fires where its output is not 0 anywhere on the
    batch, in any call of its module. Seen are the modules of `ZERO_BELOW`; functional forms of them are not.

    Args:
        model: whose calls are told of.

    Attributes:
        ran: the names of the modules that were called.
    """

    def __init__(self, model: nn.Module) -> None:
        self.ran: set[str] = set()
        self._modules = dict(named_modules(model))
        self._fired: dict[tuple[str, int], torch.Tensor] = {}
        self._before: nn.Module = model

    def saw(self, name: str, outputs: Sequence[torch.Tensor]) -> None:
        """A call of module `name` has ended, with these tensors in its output."""
        self.ran.add(name)
        module = self._modules[name]
        if isinstance(module, ZERO_BELOW) and getattr(module, "value", 0) == 0:
            for output in outputs:
                self._look(name, output.detach())
        elif not list(module.children()):
            self._before = module

    def silent(self, name: str) -> dict[int, list[int]]:
        """The units of module `name` that never fired, by the number of its units; only where there are such."""
        of_module = {units: fired for (module, units), fired in self._fired.items() if module == name}
        found = {units: (~fired).nonzero().flatten().tolist() for units, fired in of_module.items()}
        return {units: silent for units, silent in found.items() if silent}

    def _look(self, name: str, output: torch.Tensor) -> None:
        if output.dim() and output.numel():
            units = output.movedim(unit_dimension(output, self._before), 0)
            fires = (units != 0).reshape(len(units), -1).any(dim=1).cpu()
            key = (name, len(units))
            self._fired[key] = self._fired[key] | fires if key in self._fired else fires


def unit_dimension(output: torch.Tensor, before: nn.Module) -> int:
    """The dimension of an activation, at least 1-dimensional, along which its units lie; `before` made what it got."""
    if isinstance(before, CHANNELS_FIRST):
        return min(1, output.dim() - 1)
    return 1 if output.dim() > 3 and not isinstance(before, nn.Linear | nn.LayerNorm) else output.dim() - 1


def on_mode(model: nn.Module, activity: Activity) -> str:
    """The note on modules that ran in eval mode and do something else in training; "" without."""
    changed = [
        f"{name or 'the model'} ({what})"
        for name, module in named_modules(model)
        if name in activity.ran and not module.training and (what := in_training(module))
    ]
    return f"checked in eval mode, which leaves out what training mode changes in {listed(changed)}" if changed else ""


def in_training(module: nn.Module) -> str:
    """The words for a module that itself does something else in training mode; "" for one that does not.

    Modules of torch are known by their type and options, others by a forward that reads `.training`.
    """
    kind = type(module).__name__
    if isinstance(module, STATISTICS):
        return kind if module.track_running_stats else ""
    if isinstance(module, nn.RReLU):
        return kind if module.lower < module.upper else ""
    if isinstance(module, nn.RNNBase):
        return kind if module.dropout and module.num_layers > 1 else ""
    if isinstance(module, nn.MultiheadAttention):
        return kind if module.dropout else ""
    if is_dropout(module):
        return kind if module.p else ""
    return f"{kind} reads .training" if _reads_training(type(module)) else ""


def _reads_training(kind: type[nn.Module]) -> bool:
    """Whether the forward of a class that is not torch's, or a method of such a class that it calls, reads it."""
    waiting, seen = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        method = inspect.unwrap(next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), print))
        if name in seen or not isinstance(method, FunctionType) or (method.__module__ or "").startswith("torch."):
            continue
        seen.add(name)
        used = set(_names_in(method.__code__))
        if "training" in used:
            return True
        waiting += used
    return False


def _names_in(code: CodeType) -> Iterator[str]:
    """The names of attributes and globals in code, and in the functions that it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def on_equal_entries(model: nn.Module, unused: Collection[str], advice: str) -> str:
    """The note on parameters whose entries are all one number, or whose only entry is 0 or 1; "" without.

    Args:
        model: the lent model.
        unused: names of parameters that J does not depend on; they hide nothing.
        advice: what moves these parameters; "" where nothing can.
    """
    by_value: dict[complex, list[str]] = {}
    for name, parameter in named_parameters(model):
        value = common_value(parameter)
        if value is not None and name not in unused and (parameter.numel() > 1 or value in (0, 1)):
            by_value.setdefault(value, []).append(name)
    if not by_value:
        return ""
    groups = [f"{listed(by_value[value])} (all {value:g})" for value in sorted(by_value, key=lambda each: each != 1)]
    return f"parameters whose entries are all equal may hide a mistake{advice}: {'; '.join(groups[:3])}"


def common_value(parameter: torch.Tensor) -> complex | None:
    """The number that all entries of a parameter are; None where they differ, or there are none."""
    entries = parameter.detach().reshape(-1)
    if not len(entries) or not bool((entries == entries[0]).all()):
        return None
    value: complex = entries[0].item()
    return value


def on_silent_units(model: nn.Module, activity: Activity) -> str:
    """The note on units that do not fire anywhere on the batch; "" where all do."""
    found = [
        f"{len(silent)} of {units} in {name or 'the model'} ({type(module).__name__})"
        for name, module in named_modules(model)
        for units, silent in activity.silent(name).items()
    ]
    if not found:
        return ""
    return f"units that never fire on this batch (there a wrong backward gives 0, as a right one does): {listed(found)}"
