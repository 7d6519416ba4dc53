"""Promise: values that reach J by a way that no recording sees hide no mistake, and nobody is accused for them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck import Report, check_module


def by_threads(x: Tensor) -> Tensor:
    with ThreadPoolExecutor(2) as pool:
        return torch.cat(list(pool.map(torch.exp, x.chunk(2))))


def by_pointer(x: Tensor) -> Tensor:
    source = x.detach().double().contiguous()
    numbers = (ctypes.c_double * source.numel()).from_address(source.data_ptr())
    return torch.tensor(list(numbers), dtype=torch.float64).reshape(source.shape).exp()


def by_capsule(x: Tensor) -> Tensor:
    return torch.from_dlpack(torch.utils.dlpack.to_dlpack(x.detach().clone())).exp()


HIDDEN = pytest.mark.parametrize("hidden", [by_threads, by_pointer, by_capsule], ids=["threads", "pointer", "capsule"])


class HiddenExp(torch.autograd.Function):
    """exp by a way that is not seen."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, hidden: Callable[[Tensor], Tensor]) -> Tensor:
        y = hidden(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return g * y, None


class Middle(nn.Module):
    """A scale of 40, of which the 30 in the middle go through exp."""

    def __init__(self, exp: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale, self.layer, self.exp = nn.Parameter(torch.randn(40)), nn.Linear(40, 3), exp

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.cat([self.scale[:5], self.exp(self.scale[5:35]), self.scale[35:]])
        scores: Tensor = self.layer(x * scale)
        return scores


def checked(exp: Callable[[Tensor], Tensor]) -> Report:
    torch.manual_seed(0)
    return check_module(Middle(exp), nn.MSELoss(), (torch.randn(4, 40), torch.randn(4, 3)), progress=False)


@pytest.mark.slow
@HIDDEN
def test_gradients_that_get_lost_there_are_found(hidden: Callable[[Tensor], Tensor]) -> None:
    report = checked(lambda x: hidden(x.detach()))
    assert [row.name for row in report.mismatches] == ["scale"]
    assert report["scale"].mismatched == 30
    assert any("by a way that the recording does not see" in note for note in report.notes)


@pytest.mark.slow_but_for(1)
@HIDDEN
def test_gradients_that_are_right_there_are_right(hidden: Callable[[Tensor], Tensor]) -> None:
    report = checked(lambda x: HiddenExp.apply(x, hidden))  # type: ignore[no-untyped-call]
    assert {str(row.status) for row in report} == {"match"}, str(report)


@pytest.mark.slow
def test_a_projected_check_ends_where_a_record_and_J_contradict_each_other() -> None:  # noqa: N802
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 8), nn.Flatten(), nn.Linear(32, 4))
    model[0].register_forward_hook(lambda module, given, y: by_threads(y.detach()) + 0 * y)
    batch = torch.tensor([[1, 5, 7, 9]]), torch.tensor([2])
    report = check_module(model, nn.CrossEntropyLoss(), batch, method="projected", progress=False)
    assert [row.name for row in report.mismatches] == ["0.weight"]
