"""The accelerator beside the CPU, if there is one; what a device lacks: float64, memory, a kernel."""

from __future__ import annotations

import re

import torch

_NO_FLOAT64_KERNEL = re.compile(
    r"not implemented for '\w*Double'|matrix, got Double|(does not|n't) support \S*(double|float64)", re.I
)

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""Of the CPU on Linux, of the CPU on Windows, of an accelerator."""


def accelerator_type() -> str | None:
    """The device type beside the CPU that this process may use ("cuda", "mps", "xpu"), None without one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None else accelerator.type


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: those of Apple and some of Intel do not."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones((), dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor in float64 or complex128: on its device or, where that has neither, on the CPU."""
    there = tensor if has_float64(tensor.device) else tensor.to("cpu")
    return there.to(torch.complex128 if tensor.is_complex() else torch.float64)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on an accelerator."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


def lacks_float64_kernel(error: BaseException) -> bool:
    """Whether an exception says that an operation has no kernel for float64."""
    return _NO_FLOAT64_KERNEL.search(str(error)) is not None
