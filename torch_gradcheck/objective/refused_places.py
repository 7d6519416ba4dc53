"""Where torch has refused something: the module that was running, the line of the user's, and what torch said there."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from torch_gradcheck.objective.given import Given
from torch_gradcheck.torch_internals.code_lines import raising_line
from torch_gradcheck.torch_internals.modules import ModuleCall, calls_in_traceback, named_modules

LONGEST = 60
"""Letters of a layer's own words, as "Linear(in_features=8, out_features=16, bias=True)", that a refusal repeats."""


class Refused(NamedTuple):
    """The place at which an exception was raised.

    Attributes:
        named: the module by its name, or what the caller gave where none was running, as `"'act' (Act)"`.
        call: the call of that module; None where none was running.
    """

    named: str
    call: ModuleCall | None


def place_of(error: Exception, model: nn.Module, given: Given) -> Refused:
    """Where an exception was raised."""
    calls = calls_in_traceback(error)
    names = {id(module): name for name, module in named_modules(model)}
    inner = calls[-1] if calls and id(calls[-1].module) in names else None
    place = given.named if inner is None else named_module(names[id(inner.module)], inner.module)
    return Refused(place, inner)


def named_module(name: str, module: nn.Module) -> str:
    """A module by its name in the model, and by its own words where these are short."""
    own = repr(module) if is_torchs(module) and not [*module.children()] else ""  # no words of the user's code
    told = own if 0 < len(own) <= LONGEST and "\n" not in own else type(module).__name__
    return f"{name!r} ({told})" if name else f"the model itself ({told})"


def is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers."""
    return type(module).__module__.startswith("torch.nn.")


def at_line(error: Exception, place: str) -> str:
    """The line of the user's that has called torch, unless the place has it."""
    line = raising_line(error)
    return "" if line is None or str(line) in place else f", at {line},"


def first_line(error: Exception) -> str:
    """What torch said, in one line: the first one, or the last one behind a trace of TorchScript's.

    Of an operation that a backend does not have, torch goes on to say how it was built; that is left out.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    behind = lines[-1].partition(": ")[2] if "TorchScript interpreter" in lines[0] else ""
    said = (behind or lines[0]).partition(" This could be because")[0]
    return said.partition("  (Could this error message be improved?")[0].rstrip(".:")
