"""The module whose forward is running, and modules that torch.compile has wrapped."""

from __future__ import annotations

import sys

from torch import nn


def running_module() -> nn.Module | None:
    """The innermost module whose forward is running."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_call_impl":
            module = frame.f_locals.get("self")
            return module if isinstance(module, nn.Module) else None
        frame = frame.f_back  # type: ignore[assignment]
    return None


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile had its hands on a part of it."""
    compiled = (getattr(module, "_compiled_call_impl", None) for module in model.modules())
    return any(compiled) or any(hasattr(module, "_orig_mod") for module in model.modules())


def uncompiled(module: nn.Module) -> nn.Module:
    """The module that torch.compile has wrapped; any other as it is."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner
