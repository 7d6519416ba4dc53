"""The verdicts of `gradcheck` and of torch's slow mode, over functions that are right and wrong by 1 %."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.gradcheck import gradcheck as torch_gradcheck
from torch.nn import functional

from torch_gradcheck import gradcheck

D, C = torch.float64, torch.complex128


class Scaled(Function):
    """Its input, with a gradient that is `factor` times the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def matrix() -> Tensor:
    return torch.tensor([[3.0, 1.0], [0.5, 2.0]], dtype=D)


FUNCTIONS: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], torch.dtype]] = {
    "exp": (torch.exp, [(2,)], D),
    "sin": (torch.sin, [(2,)], D),
    "tanh": (torch.tanh, [(2,)], D),
    "gelu": (functional.gelu, [(2,)], D),
    "cube": (lambda x: x**3, [()], D),
    "steep": (lambda x: (30 * x).sin(), [(2,)], D),
    "small": (lambda x: 1e-6 * x, [(2,)], D),
    "large": (lambda x: 1e6 * x, [(2,)], D),
    "empty": (lambda x: 2 * x, [(0, 2)], D),
    "relu": (torch.relu, [(3,)], D),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), [(3,)], D),
    "mul": (torch.mul, [(2, 1), (2,)], D),
    "div": (lambda x, y: x / (2 + y**2), [(2,), (2,)], D),
    "matmul": (torch.matmul, [(1, 2), (2, 2)], D),
    "bilinear": (lambda x, w, y: x @ w @ y, [(2,), (2, 2), (2,)], D),
    "sum": (torch.sum, [(2, 2)], D),
    "prod": (torch.prod, [(3,)], D),
    "norm": (torch.linalg.norm, [(3,)], D),
    "logsumexp": (lambda x: x.logsumexp(0), [(2, 2)], D),
    "softmax": (lambda x: x.softmax(-1), [(1, 3)], D),
    "log_softmax": (lambda x: x.log_softmax(-1), [(1, 3)], D),
    "cumsum": (lambda x: x.cumsum(0), [(3,)], D),
    "sort": (lambda x: x.sort(0), [(3,)], D),
    "max": (lambda x: x.max(0), [(2, 2)], D),
    "gather": (lambda x: x[[0, 0, 1]], [(2,)], D),
    "expand": (lambda x: x.expand(2, 2), [(2,)], D),
    "roll": (lambda x: x.roll(1, 0).T, [(2, 2)], D),
    "conv": (functional.conv1d, [(1, 1, 3), (1, 1, 2)], D),
    "layer_norm": (lambda x: functional.layer_norm(x, (3,)), [(1, 3)], D),
    "batch_norm": (lambda x: functional.batch_norm(x, None, None, training=True), [(3, 1)], D),
    "det": (lambda x: torch.det(x + matrix()), [(2, 2)], D),
    "inverse": (lambda x: torch.linalg.inv(0.1 * x + matrix()), [(2, 2)], D),
    "solve": (lambda x, y: torch.linalg.solve(0.1 * x + matrix(), y), [(2, 2), (2, 1)], D),
    "cholesky": (lambda x: torch.linalg.cholesky(x @ x.T + matrix() @ matrix().T), [(2, 2)], D),
    "eigvalsh": (lambda x: torch.linalg.eigvalsh(x + x.T), [(2, 2)], D),
    "svdvals": (torch.linalg.svdvals, [(2, 1)], D),
    "several outputs": (lambda x: (x.sin(), x.cos(), x.argmax()), [(2,)], D),
    "unused": (lambda x, y: 2 * x, [(1,), (1,)], D),
    "complex exp": (torch.exp, [(2,)], C),
    "complex mul": (lambda x, y: x * y.conj(), [(1,), (1,)], C),
    "complex abs": (torch.abs, [(2,)], C),
    "to complex": (lambda x: torch.complex(x, x * x), [(2,)], D),
}


@pytest.mark.slow_but_for(12)
@pytest.mark.parametrize("factor", [1.0, 1.01], ids=["right", "wrong"])
@pytest.mark.parametrize(("function", "shapes", "dtype"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_the_verdicts_are_those_of_torchs_slow_mode(
    function: Callable[..., Any], shapes: list[tuple[int, ...]], dtype: torch.dtype, factor: float
) -> None:
    generator = torch.Generator().manual_seed(len(shapes))
    inputs = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]

    def with_mistake(first: Tensor, *others: Tensor) -> Any:
        return function(Scaled.apply(first, factor), *others)  # type: ignore[no-untyped-call]

    expected = torch_gradcheck(with_mistake, inputs, raise_exception=False)
    assert gradcheck(with_mistake, inputs, raise_exception=False) is expected
