"""Modules of torch.jit in a check: how they are run, and the error where their code is fixed to another precision."""

from __future__ import annotations

import torch
from torch import nn

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.modules import named_modules
from torch_gradcheck.torch_internals.scripted import is_scripted

WORDS_ON_DTYPES = ("dtype", "scalar type", "Double", "Float", "precision")
"""What torch says of operands whose precisions differ has one of these words in it."""


def scripted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that torch.jit has compiled, by name, without those inside of another one."""
    found: dict[str, nn.Module] = {}
    for name, module in named_modules(model):
        inside = any(name.startswith(f"{outer}.") or not outer for outer in found)
        if is_scripted(module) and not inside:
            found[name] = module
    return found


def on_scripted(model: nn.Module) -> str:
    """The note on modules that torch.jit has compiled; "" without."""
    names = [name or "the model" for name in scripted_modules(model)]
    if not names:
        return ""
    return (
        f"compiled by torch.jit: {listed(names)}; run operation by operation, as the code says, and not optimised; "
        "hooks do not reach inside, so that no culprit, and nothing that training mode changes, is told there"
    )


def fixed_to_a_precision(model: nn.Module, dtype: torch.dtype, error: Exception) -> InvalidRequestError | None:
    """The error for code of torch.jit that cannot run in the precision of the check; None where it is another one."""
    said = [line for line in str(error).splitlines() if line.strip()]
    of_script = "TorchScript interpreter" in str(error)
    if dtype is not torch.float64 or not of_script or not any(word in said[-1] for word in WORDS_ON_DTYPES):
        return None
    names = [repr(name) if name else "the model" for name in scripted_modules(model)]
    return InvalidRequestError(
        f"dtype=torch.float64: code that torch.jit has compiled ({listed(names) or 'a function'}) is fixed to the "
        f"precision it was compiled in ({said[-1].strip()}). Check the module it was made from, or with "
        "dtype=torch.float32, with wider error bars."
    )
