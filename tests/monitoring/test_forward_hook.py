from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_gradcheck.monitoring.forward_hook import ForwardHook
from torch_gradcheck.training_step.forward_state import autocast_now


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def test_calls_are_noted_while_it_is_attached() -> None:
    model, x = net(), torch.randn(4, 2)
    hook = ForwardHook(model)
    model(x)
    hook.attach()
    hook.attach()
    model(x)
    model(input=x)
    with torch.no_grad():
        model(x)
    assert [(call.args, dict(call.kwargs)) for call in hook.calls] == [((x,), {}), ((), {"input": x})]
    hook.detach()
    model(x)
    assert hook.calls == []
    assert not model._forward_pre_hooks


def test_what_a_forward_started_from_gives_the_same_again() -> None:
    model, x = net(), torch.randn(4, 2)
    hook = ForwardHook(model)
    hook.attach()
    first = model(x)
    (call,) = hook.calls
    mean = model.get_buffer("1.running_mean")
    assert not torch.equal(call.start.values[mean], mean), "as it was before the forward moved it"
    call.start.random.restore()
    assert torch.equal(model(x), first)


def test_autocast_is_noted() -> None:
    model = nn.Linear(2, 2)
    hook = ForwardHook(model)
    hook.attach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(1, 2))
    assert hook.calls[0].autocast["cpu"] == (True, torch.bfloat16)
    assert autocast_now()["cpu"][0] is False


def test_weights_that_are_written_to_have_moved() -> None:
    model = nn.Linear(2, 2)
    hook = ForwardHook(model)
    hook.attach()
    model(torch.ones(1, 2)).sum().backward()
    assert not hook.calls[0].weights_moved()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert hook.calls[0].weights_moved()


def test_a_checkpoint_that_calls_the_model_again_in_the_backward_is_one_call() -> None:
    model, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    hook = ForwardHook(model)
    hook.attach()
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert len(hook.calls) == 1


def test_a_forward_that_is_told_of_counts_instead_of_calls() -> None:
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    hook = ForwardHook(model)
    hook.attach()
    model(x)
    hook.note_now()
    model(x)
    hook.note_now()
    assert len(hook.calls) == 2
    assert all(call.args == () for call in hook.calls)
    hook.attach()
    model(x)
    assert len(hook.calls) == 1, "the next step counts calls again"


def test_a_compiler_does_not_see_the_hook() -> None:
    model = nn.Linear(2, 2)
    hook = ForwardHook(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    hook.attach()
    compiled(torch.ones(1, 2)).sum().backward()
    assert hook.calls == []


class Sharing(nn.Module):
    """Holds a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape, generator=self.generator)


def test_generators_of_the_model_are_noted() -> None:
    model, x = Sharing(), torch.zeros(3)
    hook = ForwardHook(model)
    hook.attach()
    first = model(x)
    hook.calls[0].start.random.restore()
    assert torch.equal(model(x), first)
