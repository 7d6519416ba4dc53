from __future__ import annotations

import gc
import signal
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_gradcheck.borrowing.loan import Borrowed, Loan, Start, lend
from torch_gradcheck.borrowing.random_state import RandomState
from torch_gradcheck.errors import InvalidRequestError


def loan(
    model: nn.Module, *functions: Any, mode: Any = "eval", dtype: torch.dtype | None = torch.float64
) -> Loan[Borrowed]:
    return lend(model, functions, mode, dtype, seed=0)


class Keeper(nn.Module):
    """Keeps things in every kind of attribute, and changes them all in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("steps", torch.zeros(()))
        self.history: list[int] = [1]
        self.table: dict[str, int] = {"a": 1, "b": 2}
        self.names = {"x"}
        self.last: deque[int] = deque([1, 2], maxlen=2)
        self.ordered = OrderedDict(z=1, a=2)
        self.cache: Tensor | None = None
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.count += 1
        self.history.append(self.count)
        self.table.pop("a", None)
        self.table["c"] = self.count
        self.names.add("y")
        self.last.append(9)
        self.ordered.move_to_end("z")
        self.cache = x * self.weight
        self.new = 1
        return self.cache.sum()


def test_parameters_stay_the_same_objects_in_float64() -> None:
    model = nn.Linear(2, 2).half()
    parameters = list(model.parameters())
    before = [(p.data_ptr(), p.detach().clone()) for p in parameters]
    with loan(model):
        assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
        for parameter, (address, values) in zip(parameters, before, strict=True):
            assert parameter.dtype == torch.float64
            assert parameter.data_ptr() != address
            assert torch.equal(parameter.detach(), values.double())
            parameter.data.fill_(7)
    for parameter, (address, values) in zip(parameters, before, strict=True):
        assert parameter.data_ptr() == address
        assert torch.equal(parameter.detach(), values)
        assert parameter.dtype == torch.float16


def test_optimizers_and_captured_lists_see_the_swap() -> None:
    model = nn.Linear(2, 2)
    optimizer, captured = torch.optim.SGD(model.parameters()), list(model.parameters())
    with loan(model):
        assert all(p.dtype == torch.float64 for p in optimizer.param_groups[0]["params"])
        assert all(p.dtype == torch.float64 for p in captured)


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with loan(model):
        model[0].weight.data.fill_(3)
        assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
        assert model[1].weight.sum() == 12


def test_versions_gradients_and_graphs_come_back() -> None:
    model = nn.Linear(2, 1)
    loss = model(torch.ones(1, 2)).square().sum()
    model.weight.grad = grad = torch.ones(1, 2)
    version = model.weight._version
    with loan(model):
        assert model.weight.grad is None
        model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
        assert model.weight.grad is not None
    assert model.weight.grad is grad
    assert model.weight._version == version
    loss.backward()
    assert not torch.equal(model.weight.grad, torch.ones(1, 2))


def test_attributes_and_their_containers_come_back() -> None:
    model = Keeper()
    containers = {name: getattr(model, name) for name in ("history", "table", "names", "last", "ordered")}
    attributes = list(vars(model))
    with loan(model):
        model(torch.ones(2))
        model(torch.ones(2))
    assert list(vars(model)) == attributes
    assert model.count == 0
    assert model.cache is None
    assert model.steps.item() == 0
    assert all(getattr(model, name) is container for name, container in containers.items())
    assert model.history == [1]
    assert model.table == {"a": 1, "b": 2}
    assert list(model.table) == ["a", "b"]
    assert model.names == {"x"}
    assert list(model.last) == [1, 2]
    assert list(model.ordered) == ["z", "a"]


def test_registered_names_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    first = model[0]
    with loan(model):
        model.add_module("more", nn.ReLU())
        model[0].register_buffer("extra", torch.ones(1))
        del model[0].bias
        model[0] = nn.Linear(3, 3)
    assert list(dict(model.named_modules())) == ["", "0", "1"]
    assert model[0] is first
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
    assert list(model.buffers()) == []


def test_hooks_registered_meanwhile_vanish_and_the_callers_stay() -> None:
    model, calls = nn.Linear(2, 2), []
    theirs = model.register_forward_hook(lambda *_: calls.append("forward"))
    model.weight.register_hook(lambda g: calls.append("tensor"))
    with loan(model):
        model.register_forward_hook(lambda *_: calls.append("meanwhile"))
        model.register_full_backward_hook(lambda *_: calls.append("meanwhile"))
        model.weight.register_hook(lambda g: calls.append("meanwhile"))
        model.bias.register_hook(lambda g: calls.append("meanwhile"))
    model(torch.ones(1, 2)).sum().backward()
    assert calls == ["forward", "tensor"]
    theirs.remove()
    model(torch.ones(1, 2))
    assert calls == ["forward", "tensor"]


def test_tensor_hooks_of_the_callers_work_on_the_stand_ins() -> None:
    model = nn.Linear(2, 1, bias=False)
    handle = model.weight.register_hook(lambda g: 3 * g)
    with loan(model):
        [g] = torch.autograd.grad(model(torch.ones(1, 2, dtype=torch.float64)).sum(), model.weight)
        assert g.tolist() == [[3, 3]]
    handle.remove()
    [g] = torch.autograd.grad(model(torch.ones(1, 2)).sum(), model.weight)
    assert g.tolist() == [[1, 1]]


def test_hooks_on_the_accumulating_node_sleep_and_survive() -> None:
    model, fired = nn.Linear(2, 1, bias=False), []
    node = model.weight.view_as(model.weight).grad_fn.next_functions[0][0]
    node.register_hook(lambda *_: fired.append("node"))
    model.weight.register_post_accumulate_grad_hook(lambda p: fired.append("post"))
    with loan(model):
        model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    assert fired == []
    model(torch.ones(1, 2)).sum().backward()
    assert sorted(fired) == ["node", "post"]


@pytest.mark.parametrize(
    ("mode", "inside"), [("eval", [False] * 3), ("train", [True] * 3), ("keep", [True, False, True])]
)
def test_the_flag_of_each_module(mode: str, inside: list[bool]) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    with loan(model, mode=mode):
        assert [module.training for module in model.modules()] == inside
    assert [module.training for module in model.modules()] == [True, False, True]


def test_buffers_and_plain_tensor_attributes_are_lent_too() -> None:
    model = nn.BatchNorm1d(2)
    model.plain, model.listed, model.integers = torch.ones(2), [torch.ones(2)], torch.arange(3)
    with loan(model):
        assert model.running_mean.dtype == model.plain.dtype == model.listed[0].dtype == torch.float64
        assert model.num_batches_tracked.dtype == model.integers.dtype == torch.int64
        model.plain.zero_()
        model.integers.zero_()
    assert model.plain.tolist() == [1, 1]
    assert model.plain.dtype == torch.float32
    assert model.integers.tolist() == [0, 1, 2]


def test_what_a_closure_captures_is_lent_too() -> None:
    model, other, weight = nn.Linear(1, 1), nn.Linear(1, 1), torch.ones(2)
    closure = lambda: (other, weight)  # noqa: E731
    with loan(model, closure):
        assert other.weight.dtype == weight.dtype == torch.float64
    assert other.weight.dtype == weight.dtype == torch.float32


def test_around_each_evaluation_everything_goes_back_to_its_first_state() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    x, outputs = torch.randn(4, 2, dtype=torch.float64), []
    with loan(model, mode="train") as borrowed:
        for _ in range(3):
            borrowed.before_evaluation()
            outputs.append(model(x).tolist())
            assert model[0].num_batches_tracked == 1
            borrowed.after_evaluation()
            assert model[0].num_batches_tracked == 0
            assert model[0].running_mean.tolist() == [0, 0]
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_forward_that_gives_a_parameter_other_memory_leaves_it_its_own() -> None:
    model = nn.Linear(2, 1)
    with loan(model) as borrowed:
        borrowed.learn_from_evaluation()
        own = model.weight.data
        own[0, 0] += 0.5  # as a perturbation does while J is evaluated
        moved = own.clone()
        model.weight.data = model.weight.data.clone()  # as module.to(dtype) does
        borrowed.after_evaluation()
        assert model.weight.data_ptr() == own.data_ptr()
        assert torch.equal(model.weight, moved)


def test_random_state_and_switches_come_back() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.no_grad(), loan(nn.Dropout()):
        torch.rand(10)
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(torch.rand(3), expected)


class RefusedError(Exception):
    pass


def test_after_an_exception() -> None:
    model = Keeper()
    with pytest.raises(RefusedError), loan(model):  # noqa: PT012
        model(torch.ones(2))
        raise RefusedError
    assert model.weight.dtype == torch.float32
    assert model.history == [1]


def test_an_error_while_taking_gives_back_what_was_taken() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].running_mean = torch.empty(2, device="meta")
    address = model[0].weight.data_ptr()
    with (
        pytest.raises(InvalidRequestError, match=r"buffer '1\.running_mean' is on the meta device"),
        loan(model),
    ):
        pass
    assert model[0].weight.data_ptr() == address
    assert model[0].weight.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


# Interrupts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """SIGINT in the middle of a step of taking or giving back."""
    original = getattr(torch._C, name)

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(torch._C, name, interrupted)


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        [(p.data_ptr(), p.dtype, p.tolist()) for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_default_dtype(),
        signal.getsignal(signal.SIGINT),
    )


@pytest.mark.usefixtures("ctrl_c_raises")
def test_an_interrupt_while_taking_is_held_until_all_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, entered = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), []
    before = state(model)
    with monkeypatch.context() as patched:
        interrupting(patched, "_swap_tensor_impl")
        with pytest.raises(KeyboardInterrupt), loan(model):
            entered.append(True)
    assert state(model) == before
    assert entered == []


@pytest.mark.usefixtures("ctrl_c_raises")
def test_an_interrupt_while_giving_back_is_held_until_all_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reached = nn.Sequential(nn.Linear(2, 2), nn.Dropout()), []
    before = state(model)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), loan(model):  # noqa: PT012
        reached.append(True)
        interrupting(patched, "_swap_tensor_impl")
    assert state(model) == before
    assert reached == [True]


@pytest.mark.usefixtures("ctrl_c_raises")
def test_an_interrupt_inside_raises_at_once() -> None:
    model, after = nn.Linear(2, 2), []
    before = state(model)
    with pytest.raises(KeyboardInterrupt), loan(model):  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        after.append(True)
    assert after == []
    assert state(model) == before


def test_none_leaves_every_tensor_in_its_own_precision() -> None:
    model = nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).double())
    default = torch.get_default_dtype()
    with loan(model, dtype=None):
        assert [parameter.dtype for parameter in model.parameters()] == [torch.float16] * 2 + [torch.float64] * 2
        assert torch.get_default_dtype() is default


def test_a_start_gives_random_state_and_buffers_their_first_values() -> None:
    model = nn.BatchNorm1d(2)
    generators = torch.Generator().manual_seed(5).get_state()
    torch.set_rng_state(generators)
    start = Start(RandomState.of_everything(), {model.get_buffer("running_mean"): torch.tensor([3.0, 4.0])})
    expected = torch.rand(3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with lend(model, [], "train", torch.float64, seed=0, start=start) as borrowed:
        for _ in range(2):
            borrowed.before_evaluation()
            assert model.get_buffer("running_mean").tolist() == [3.0, 4.0]
            assert torch.equal(torch.rand(3, dtype=torch.float32), expected)
            model(torch.ones(4, 2, dtype=torch.float64))
            borrowed.after_evaluation()
    assert model.get_buffer("running_mean").tolist() == [0.0, 0.0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, None], ids=["float64", "own dtypes"])
def test_a_start_gives_values_to_what_shares_memory(dtype: torch.dtype | None) -> None:
    model = nn.Linear(2, 1, bias=False)
    model.register_buffer("view", model.weight.data.view(2))
    values = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    with lend(model, [], "eval", dtype, seed=0, start=Start(values={model.weight: values})):
        assert model.weight.dtype is (dtype or torch.bfloat16)
        assert model.get_buffer("view").tolist() == [3.0, 4.0]
        model.weight.data.zero_()
        assert model.get_buffer("view").tolist() == [0.0, 0.0]


@pytest.mark.slow
def test_compiled_parts_run_eagerly_and_are_compiled_as_before_afterwards() -> None:
    calls = []

    def backend(graph: Any, _: Any) -> Any:
        calls.append(graph)
        return graph

    inner = nn.Linear(2, 2)
    model = nn.Sequential(torch.compile(inner, backend=backend), nn.Tanh())
    x = torch.ones(1, 2)
    model(x)
    with loan(model):
        model(x.double())
    assert len(calls) == 1
    model(x)
    assert len(calls) == 1, "the compiled code of before the loan still fits"


@pytest.mark.parametrize("own", [torch.float32, torch.float64], ids=str)
def test_a_loan_knows_the_default_dtype_of_the_caller(own: torch.dtype) -> None:
    torch.set_default_dtype(own)
    try:
        with loan(Keeper()) as borrowed:
            assert (borrowed.default_dtype, torch.get_default_dtype()) == (own, torch.float64)
        assert torch.get_default_dtype() is own
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("collects", [True, False], ids=["on", "off"])
def test_the_garbage_collector_is_a_switch(collects: bool) -> None:
    (gc.enable if collects else gc.disable)()
    try:
        with loan(Keeper()):
            (gc.disable if collects else gc.enable)()
        assert gc.isenabled() == collects
    finally:
        gc.enable()
