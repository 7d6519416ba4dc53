"""Nothing assumes a CPU: the reference is computed where the candidate is, or on the CPU where float64 is missing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_gradcheck
from torch_gradcheck import Report, check_function, check_module
from torch_gradcheck.against_reference.runs import placing
from torch_gradcheck.against_reference.runs.computation import ModuleComputation
from torch_gradcheck.against_reference.runs.counterparts import counterparts_of
from torch_gradcheck.against_reference.runs.placing import ANYWHERE, place_of
from torch_gradcheck.objective.loss import ModuleLoss

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])]


class Scaled(torch.autograd.Function):
    """softmax(s·x), in float32; the backward may forget s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, wrong: bool) -> Tensor:
        y = (s.float() * x.float()).softmax(-1)
        ctx.save_for_backward(x, s, y)
        ctx.wrong = wrong
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, s, y = ctx.saved_tensors
        dy = grads[0].float()
        dz = y * (dy - (dy * y).sum(-1, keepdim=True))
        return (dz if ctx.wrong else dz * s.float()).to(x.dtype), (dz * x.float()).sum(0).to(s.dtype), None


def plain(x: Tensor, s: Tensor) -> Tensor:
    return (s * x).softmax(-1)


class Fused(nn.Module):
    def __init__(self, width: int, wrong: bool = False) -> None:
        super().__init__()
        self.linear, self.scale, self.wrong = nn.Linear(width, width), nn.Parameter(torch.full((width,), 2.0)), wrong

    def forward(self, x: Tensor) -> Tensor:
        return Scaled.apply(self.linear(x), self.scale, self.wrong)  # type: ignore[no-any-return, no-untyped-call]


class Plain(Fused):
    """Has a buffer that the candidate has not."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("one", torch.ones(width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return plain(self.linear(x), self.scale) * self.one  # type: ignore[operator]


def wrong_rows(report: Report) -> list[str]:
    return [row.name for row in report if row.status == "mismatch"]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_function_is_compared_on_the_device_of_its_inputs(device: str, dtype: torch.dtype, wrong: bool) -> None:
    seen: set[torch.device] = set()

    def reference(x: Tensor, s: Tensor) -> Tensor:
        seen.update([x.device, s.device])
        return plain(x, s)

    inputs = (drawn(5, 7).to(device, dtype), drawn(7).to(device, dtype))
    report = check_function(lambda x, s: Scaled.apply(x, s, wrong), inputs, reference=reference)  # type: ignore[no-untyped-call]
    assert wrong_rows(report) == (["x"] if wrong else []), str(report)
    assert {each.type for each in seen} == {device}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_reference_on_the_cpu_is_computed_where_the_candidate_is(device: str, wrong: bool) -> None:
    candidate, reference = Fused(6, wrong).to(device, torch.bfloat16), Plain(6)
    batch = (drawn(5, 6).to(device, torch.bfloat16), drawn(5, 6).to(device, torch.bfloat16))
    report = check_module(candidate, nn.functional.mse_loss, batch, reference=reference)
    assert wrong_rows(report) == (["linear.weight", "linear.bias"] if wrong else []), str(report)
    assert {each.device.type for each in (*reference.parameters(), *reference.buffers())} == {"cpu"}


def side(model: nn.Module, device: str) -> ModuleComputation:
    batch = (torch.ones(2, 3, device=device, requires_grad=True), torch.ones(2, 3, device=device))
    return ModuleComputation(ModuleLoss(model, nn.MSELoss(), batch))


def test_a_reference_is_moved_to_the_candidate_with_buffers_that_only_it_has() -> None:
    """The meta device stands for another one than the CPU."""
    candidate, reference = Fused(3).to("meta"), Plain(3)
    place = place_of(side(candidate, "meta"))
    pairs = counterparts_of(candidate, reference, {}, place)
    for values in (pairs.exact, pairs.rounded):
        assert set(values) == {*reference.parameters(), reference.one}
        assert {each.device.type for each in values.values()} == {"meta"}
    computation = side(reference, "meta")
    assert place.of(computation) is computation
    assert not place.notes
    assert pairs.start(pairs.exact).device is None


def test_a_candidate_on_several_devices_leaves_its_reference_where_it_is() -> None:
    candidate = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    assert place_of(side(candidate, "cpu")) is ANYWHERE
    assert not ANYWHERE.moved(list(candidate.parameters()))


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_where_the_device_has_no_float64_the_reference_is_computed_on_the_cpu(
    wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "has_float64", lambda device: False)
    batch = (drawn(5, 6).bfloat16(), drawn(5, 6).bfloat16())
    report = check_module(Fused(6, wrong).bfloat16(), nn.functional.mse_loss, batch, reference=Plain(6))
    assert wrong_rows(report) == (["linear.weight", "linear.bias"] if wrong else []), str(report)
    assert "cpu has no float64: the reference was computed on the cpu" in report.notes


@pytest.mark.parametrize("default", ["cpu", "meta"])
def test_the_default_device_says_nothing(default: str) -> None:
    """On the meta device there are no numbers: what the check draws must not land there."""
    inputs = (drawn(5, 7).bfloat16(), drawn(7).bfloat16())
    with torch.device(default):
        report = check_function(lambda x, s: Scaled.apply(x, s, True), inputs, reference=plain)  # type: ignore[no-untyped-call]
    assert wrong_rows(report) == ["x"]


ROOMS = ["against_reference", "precision", "borrowing"]

FACTORIES = {"zeros", "ones", "empty", "full", "rand", "randn", "randint", "arange", "linspace", "eye", "tensor"}


@pytest.mark.parametrize("room", ROOMS)
def test_whatever_makes_a_tensor_says_on_which_device(room: str) -> None:
    root = Path(torch_gradcheck.__file__).parent / room
    calls = [
        (path.name, node.lineno)
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES
        if ast.unparse(node.func.value) == "torch" and "device" not in {each.arg for each in node.keywords}
    ]
    assert not calls


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_products_in_lower_precision_are_as_the_caller_allows_them(precision: str) -> None:
    """TF32 on a GPU: the reference's runs in float32 round as the caller's products do, so that the bar knows of it."""
    seen: list[str] = []

    def reference(x: Tensor, s: Tensor) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return plain(x, s)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check_function(lambda x, s: Scaled.apply(x, s, False), (drawn(3, 4), drawn(4)), reference=reference)  # type: ignore[no-untyped-call]
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {precision}
