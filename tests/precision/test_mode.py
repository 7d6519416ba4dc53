from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.precision.dtypes import epsilon, in_precision, is_lower
from torch_gradcheck.precision.mode import PrecisionMode

X = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7

LOWERED: dict[str, Callable[[], Tensor]] = {
    "float()": X.float,
    "half()": X.half,
    "to bfloat16": lambda: X.to(torch.bfloat16),
    "to a tensor's dtype": lambda: X.to(torch.zeros(1, dtype=torch.float32)),
    "type": lambda: X.type(torch.float32),
    "sum with dtype": lambda: X.sum(dtype=torch.float32),
    "softmax with dtype": lambda: torch.softmax(X, 0, dtype=torch.float32),
    "zeros": lambda: torch.zeros(2, dtype=torch.float32),
    "full": lambda: torch.full((2,), 0.1, dtype=torch.float16),
    "arange": lambda: torch.arange(3, dtype=torch.float32),
    "linspace": lambda: torch.linspace(0, 1, 3, dtype=torch.float32),
    "empty_like": lambda: torch.empty_like(X, dtype=torch.float32),
    "new_zeros": lambda: X.new_zeros(2, dtype=torch.float32),
    "randn": lambda: torch.randn(2, dtype=torch.float32),
    "a float32 tensor from outside": lambda: OUTSIDE * 2,
    "a list of them": lambda: torch.cat([OUTSIDE, OUTSIDE]),
    "stack": lambda: torch.stack((OUTSIDE, OUTSIDE)),
    "float8": lambda: X.to(torch.float8_e4m3fn),
}
OUTSIDE = torch.tensor([0.1, 0.2])


@pytest.mark.parametrize("make", LOWERED.values(), ids=LOWERED)
def test_what_would_be_lower_is_float64(make: Callable[[], Tensor]) -> None:
    mode = PrecisionMode(torch.float64)
    with mode:
        made = make()
    assert made.dtype == torch.float64
    assert mode.overridden


KEPT: dict[str, tuple[Callable[[], Tensor], torch.dtype]] = {
    "double()": (X.double, torch.float64),
    "long()": (X.long, torch.int64),
    "bool()": (X.bool, torch.bool),
    "int8": (lambda: torch.zeros(2, dtype=torch.int8), torch.int8),
    "comparison": (lambda: X > 1, torch.bool),
    "complex128": (lambda: X.to(torch.complex128), torch.complex128),
}


@pytest.mark.parametrize(("make", "dtype"), KEPT.values(), ids=KEPT)
def test_what_is_not_lower_stays(make: Callable[[], Tensor], dtype: torch.dtype) -> None:
    mode = PrecisionMode(torch.float64)
    with mode:
        assert make().dtype == dtype
    assert mode.overridden == {}


def test_values_are_those_of_float64_to_the_bit() -> None:
    with PrecisionMode(torch.float64):
        through = (X.float() * 3).half().exp()
    assert torch.equal(through, (X * 3).exp())


def test_complex64_becomes_complex128() -> None:
    with PrecisionMode(torch.float64):
        assert X.to(torch.complex64).dtype == torch.complex128
        assert torch.view_as_complex(torch.zeros(2, 2)).dtype == torch.complex128
        assert torch.fft.fft(torch.zeros(4)).dtype == torch.complex128


def test_float32_raises_half_and_leaves_float64() -> None:
    with PrecisionMode(torch.float32):
        assert torch.zeros(2, dtype=torch.float16).dtype == torch.float32
        assert X.bfloat16().dtype == torch.float32
        assert (X * 2).dtype == torch.float64


def test_outside_of_the_block_nothing_is_overridden() -> None:
    with PrecisionMode(torch.float64):
        pass
    assert X.float().dtype == torch.float32


def test_a_write_in_place_reaches_the_tensor_itself() -> None:
    target = torch.zeros(2)
    with PrecisionMode(torch.float64):
        target.add_(torch.ones(2, dtype=torch.float64))
        target.mul_(5)
        torch.add(target, target, out=target)
    assert target.tolist() == [10.0, 10.0]
    assert target.dtype == torch.float32


def test_view_of_bits_is_no_cast() -> None:
    bits = torch.tensor([1.0], dtype=torch.float64)
    with PrecisionMode(torch.float64):
        assert bits.view(torch.int64).item() == 0x3FF0000000000000
        assert bits.view(torch.float32).tolist() == [0.0, 1.875]


def test_gradients_pass_through_casts_unrounded() -> None:
    x = X.clone().requires_grad_()
    with PrecisionMode(torch.float64):
        (x.half().float() ** 2 / 3).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * X / 3, rtol=1e-15, atol=0)


def test_a_cast_in_a_backward_of_the_users_is_overridden() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, g: Tensor) -> Tensor:
            return (g.half() / 3).to(g.dtype)

    x = X.clone().requires_grad_()
    mode = PrecisionMode(torch.float64)
    with mode:
        [gradient] = torch.autograd.grad(Rounded.apply(x).sum(), x)
    assert torch.equal(gradient, torch.full_like(X, 1 / 3))
    assert mode.overridden


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().to(x.dtype)


def test_the_modules_that_cast_are_recorded() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": Casting()})["inner"], nn.Tanh()).double()
    with forward_hooks(model) as watch:
        mode = PrecisionMode(torch.float64, watch.current_module)
        with mode:
            model(X).half()
    assert set().union(*mode.overridden.values()) == {"1", ""}


@pytest.mark.parametrize(
    ("dtype", "precision", "lower", "raised"),
    [
        (torch.float32, torch.float64, True, torch.float64),
        (torch.float64, torch.float64, False, torch.float64),
        (torch.float64, torch.float32, False, torch.float32),
        (torch.bfloat16, torch.float32, True, torch.float32),
        (torch.complex64, torch.float64, True, torch.complex128),
        (torch.complex64, torch.float32, False, torch.complex64),
        (torch.int64, torch.float64, False, torch.int64),
        (torch.bool, torch.float32, False, torch.bool),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_orders_of_precision(dtype: torch.dtype, precision: torch.dtype, lower: bool, raised: torch.dtype) -> None:
    assert is_lower(dtype, precision) is lower
    assert in_precision(dtype, precision) == raised


def test_epsilon_of_complex_numbers_is_that_of_their_parts() -> None:
    assert epsilon(torch.complex128) == epsilon(torch.float64) == 2.0**-52
