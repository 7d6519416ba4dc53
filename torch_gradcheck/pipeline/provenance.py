"""Where a report comes from: the model, versions, the machine and the date, and the call that makes it again."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_gradcheck.objective.nested import tensors_in
from torch_gradcheck.objective.signatures import callable_name
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import Provenance
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import TOLERANCES, Request
from torch_gradcheck.torch_internals.modules import plain_names, uncompiled
from torch_gradcheck.version import __version__


def with_provenance(
    report: Report, call: str, checked: Callable[..., Any], request: Request, inputs: Any = ()
) -> Report:
    """The report, and where it comes from.

    Args:
        report: of a check that has just ended.
        call: how the check is called without options, such as `check_module(model, loss_fn, batch)`.
        checked: the model or the function.
        request: the options.
        inputs: the tensors that a function was given.
    """
    request = _by_plain_names(request, checked)
    options = [f", {option}" for option in _options(request, has_mode=not call.startswith("check_function"))]
    made = _provenance(checked, inputs, f"{call[:-1]}{''.join(options)})")
    return replace(report, provenance=_of_all(request.team.exchanged(made)))


def _of_all(of_each: Sequence[Provenance]) -> Provenance:
    """That of the first rank, with the devices of all: every rank has the same report."""
    devices = sorted({device for each in of_each for device in each.devices})
    return replace(of_each[0], devices=tuple(devices))


def made_by(report: Report, command: Sequence[str]) -> Report:
    """The report of a check that a command has made, which makes it again."""
    made = report.provenance or Provenance()
    return replace(report, provenance=replace(made, again=shlex.join(command)))


def _provenance(checked: Callable[..., Any], inputs: Any, again: str) -> Provenance:
    """What this moment, this machine and this model say of a report.

    Args:
        checked: the model or the function.
        inputs: the tensors that a function was given.
        again: what makes the check again.
    """
    return Provenance(
        model=_class_or_name(checked),
        again=again,
        torch_gradcheck=__version__,
        torch=str(torch.__version__),
        numpy=np.__version__,
        python=platform.python_version(),
        devices=_devices(checked, inputs),
        platform=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        date=datetime.now(UTC).date().isoformat(),
    )


def _by_plain_names(request: Request, checked: Callable[..., Any]) -> Request:
    """The options with patterns as they would be of a model that is not compiled, whose names the report has."""
    if not isinstance(checked, nn.Module):
        return request
    plain = plain_names(checked)
    return replace(request, include=tuple(map(plain, request.include)), exclude=tuple(map(plain, request.exclude)))


def _options(request: Request, has_mode: bool) -> list[str]:
    """The options that are not as they are by default, as arguments of a call."""
    defaults = {
        "method": "auto",
        "eps": None,
        "tolerance": TOLERANCES[request.dtype],
        "include": (),
        "exclude": (),
        "mode": "eval" if has_mode else request.mode,
        "seed": 0,
        "order": 1,
        "perturb": 0.0,
        "hold_detached": False,
    }
    values = {name: getattr(request, name) for name in defaults}
    own = [f"{name}={_literal(value)}" for name, value in values.items() if value != defaults[name]]
    precision = [] if request.dtype == torch.float64 else [f"dtype=torch.{name_of(request.dtype)}"]
    return [*_on_trial(request), *own, *precision]


def _on_trial(request: Request) -> list[str]:
    """The options that are objects of the caller's, by the names that a reader gives them."""
    is_left_in_grad = isinstance(request.gradients, str)
    given = {
        'gradients="grad"': is_left_in_grad,
        "gradients=gradients": isinstance(request.gradients, Mapping),
        "reference=reference": request.has_reference,
        "group=group": request.team.size > 1 and not is_left_in_grad,
    }
    return [option for option, is_given in given.items() if is_given]


def _literal(value: object) -> str:
    """A value as one writes it in Python; one pattern alone, and not as a list."""
    if isinstance(value, tuple):
        return _literal(value[0]) if len(value) == 1 else f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _class_or_name(checked: Callable[..., Any]) -> str:
    """The class of a model with the module it is in, unless that is the script; the name of a function."""
    if not isinstance(checked, nn.Module):
        return callable_name(checked)
    kind = type(uncompiled(checked))
    return kind.__qualname__ if kind.__module__ == "__main__" else f"{kind.__module__}.{kind.__qualname__}"


def _devices(checked: Callable[..., Any], inputs: Any) -> tuple[str, ...]:
    """Where the parameters, the buffers and the inputs of a function are."""
    tensors = [tensor for _, tensor in tensors_in(inputs)]
    if isinstance(checked, nn.Module):
        tensors += [*checked.parameters(), *checked.buffers()]
    return tuple(sorted({_device_in_words(tensor.device) for tensor in tensors}))


def _device_in_words(device: torch.device) -> str:
    """A device, and the name of an accelerator."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None or device.type != accelerator.type:
        return str(device)
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if name is None else f"{device} ({name(device)})"


@cache
def _processor() -> str:
    """The CPU by its name where Linux tells it, else its architecture."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
