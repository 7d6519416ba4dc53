"""The accelerator beside the CPU, if there is one."""

from __future__ import annotations

import torch


def accelerator_type() -> str | None:
    """The device type beside the CPU that this process may use ("cuda", "mps", "xpu"), None without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None else accelerator.type
