"""Why devices are asked about and errors read: random state of an accelerator, smaller chunks, advice on float32."""

from __future__ import annotations

import pytest
import torch

from torch_gradcheck.torch_internals import devices
from torch_gradcheck.torch_internals.devices import (
    accelerator_type,
    has_float64,
    in_float64,
    is_out_of_memory,
    lacks_float64_kernel,
)


def test_the_accelerator_is_that_of_torch_or_none() -> None:
    name = accelerator_type()
    assert (name is None) == (not torch.accelerator.is_available())
    assert name is None or torch.get_device_module(name).device_count() > 0


def test_memory_that_ran_out_is_told_from_other_errors() -> None:
    """The engine then takes smaller chunks. Nothing is allocated: 2⁶⁰ bytes are refused at once."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not is_out_of_memory(other.value)


def test_a_kernel_that_float64_lacks_is_told_from_other_errors() -> None:
    """The user is then advised to check in float32."""
    with pytest.raises(RuntimeError) as refused:
        torch.gcd(torch.ones(2).double(), torch.ones(2).double())
    assert lacks_float64_kernel(refused.value)
    with pytest.raises(RuntimeError) as other:
        torch.ones(2) @ torch.ones(3)
    assert not lacks_float64_kernel(other.value)


def test_float64_is_asked_of_the_device() -> None:
    """A reference is computed on the CPU where the device has none."""
    assert has_float64(torch.device("cpu"))
    assert has_float64(torch.device("meta"))
    assert not has_float64(torch.device("mps")) or torch.backends.mps.is_available()


def test_numbers_are_taken_to_the_cpu_where_the_device_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    given = torch.tensor([1.5, -2.0], dtype=torch.float8_e4m3fn)
    for has in (True, False):
        monkeypatch.setattr(devices, "has_float64", lambda device, has=has: has)
        assert in_float64(given).tolist() == [1.5, -2.0]
        assert in_float64(given.to(torch.complex64)).dtype is torch.complex128
