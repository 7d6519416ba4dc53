"""Mistakes in recurrence, attention, tied weights and complex numbers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.zoo.losses import squared_error
from tests.zoo.planted.row import FRONT, WEIGHT, Backward, HandWritten, Planted, Problem, formula, plant, sandwich


def lstm_step(x: Tensor, weight: Tensor) -> Tensor:
    """One LSTM step from a fixed state; gates i, f, g, o are 4 groups of 2."""
    i, f, g, o = (x @ weight.T).chunk(4, 1)
    state = torch.linspace(0.5, 1.5, 2, dtype=x.dtype)
    cell = torch.sigmoid(f) * state + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell)


def lstm_without_gate(gate: int) -> Backward:
    """Autograd's own gradient of the gates, with one gate's left out."""

    def backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        gates = (x @ weight.T).detach().requires_grad_()
        with torch.enable_grad():
            out = lstm_step(gates, torch.eye(8, dtype=x.dtype))
        (of_gates,) = torch.autograd.grad(out, gates, grad)
        of_gates[:, 2 * gate : 2 * gate + 2] = 0
        return of_gates @ weight, of_gates.T @ x

    return backward


class Recurrent(nn.Module):
    """A plain RNN over the features; wrong: the state is detached between steps."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.cell = nn.RNNCell(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 2)
        for column in x.split(1, 1):
            state = self.cell(column, state.detach() if self.wrong else state)
        return state


class Attention(nn.Module):
    """Causal self-attention over three positions; wrong: a backward with a named mistake."""

    def __init__(self, mistake: str, wrong: bool) -> None:
        super().__init__()
        self.mistake = mistake if wrong else ""
        self.query, self.key, self.value = (nn.Linear(2, 2, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (3, 2))
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        if not self.mistake:
            return self._attend(q, k, v)
        return HandWritten.apply(self._attend, getattr(self, f"_{self.mistake}"), q, k, v)

    def _weights(self, q: Tensor, k: Tensor, masked: bool = True) -> Tensor:
        scores = q @ k.mT / 2**0.5
        if masked:
            later = torch.ones(3, 3, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -1e9)
        return torch.softmax(scores, -1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._weights(q, k) @ v

    def _score_gradient(self, g: Tensor, a: Tensor, v: Tensor) -> Tensor:
        ga = g @ v.mT
        return a * (ga - (ga * a).sum(-1, keepdim=True))

    def _unscaled(self, g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        a = self._weights(q, k)
        gs = self._score_gradient(g, a, v)
        return gs @ k, gs.mT @ q, a.mT @ g

    def _unmasked(self, g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        a = self._weights(q, k, masked=False)
        gs = self._score_gradient(g, a, v) / 2**0.5
        return gs @ k, gs.mT @ q, a.mT @ g

    def _key_untransposed(self, g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        a = self._weights(q, k)
        gs = self._score_gradient(g, a, v) / 2**0.5
        return gs @ k, gs @ q, a.mT @ g

    def _value_gradient_lost(self, g: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        a = self._weights(q, k)
        gs = self._score_gradient(g, a, v) / 2**0.5
        return gs @ k, gs.mT @ q, None


def sequence_bugs() -> Iterator[Planted]:
    for gate, name in enumerate(("input", "forget", "candidate", "output")):
        layer = formula(lstm_step, lstm_without_gate(gate), weight=(8, 3))
        kinds = {**dict.fromkeys(FRONT, "unknown"), "layer.weight": "partial"}
        yield plant(f"lstm-{name}-gate-missing", sandwich(layer, 3, 2), FRONT + WEIGHT, kinds)
    cell = ("layer.cell.weight_ih", "layer.cell.weight_hh", "layer.cell.bias_ih", "layer.cell.bias_hh")
    steps = {**dict.fromkeys(cell, "detached"), **dict.fromkeys(FRONT, "partial")}  # right for the last step
    yield plant("rnn-state-detached", sandwich(Recurrent, 3, 2), FRONT + cell, steps)
    query, key, value = (f"layer.{part}.weight" for part in ("query", "key", "value"))
    scaled = {**dict.fromkeys(FRONT, "propagated"), query: "scaled", key: "scaled"}
    for mistake, wrong, kinds in (
        ("unscaled", (*FRONT, query, key), scaled),
        ("unmasked", (*FRONT, query, key, value), {**dict.fromkeys((*FRONT, key, value), "unknown"), query: "block"}),
        ("key_untransposed", (*FRONT, key), "unknown"),
        ("value_gradient_lost", (*FRONT, value), {**dict.fromkeys(FRONT, "propagated"), value: "missing"}),
    ):
        layer = lambda w, m=mistake: Attention(m, w)  # noqa: E731
        yield plant(f"attention-{mistake.replace('_', '-')}", sandwich(layer, 6, 6), wrong, kinds)


class TiedHead(nn.Module):
    """Tokens embedded and scored by the same weight; wrong: one of the two uses is detached."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.tokens = nn.Embedding(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        weight = self.tokens.weight
        return torch.tanh(self.tokens(tokens)) @ (weight.detach() if self.wrong else weight).T


def tied_problem(wrong: bool) -> Problem:
    torch.manual_seed(7)
    model = TiedHead(wrong)
    return Problem(model, squared_error, (torch.tensor([1, 3, 0, 1]), torch.randn(4, 4)))


class Rotated(nn.Module):
    """x · w for a complex w, then |·|²; wrong: a backward without the conjugate."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        phase = torch.complex(torch.cos(x), torch.sin(x))
        if not self.wrong:
            return (phase * self.weight).real
        y = HandWritten.apply(torch.mul, lambda g, a, w: (g * w.conj(), (g * a).sum(0)), phase, self.weight)
        return y.real


def other_bugs() -> Iterator[Planted]:
    yield plant("tied-weight-one-use-detached", tied_problem, ("tokens.weight",), "detached", culprit="")
    yield plant("complex-without-conjugate", sandwich(Rotated), WEIGHT, "partial")
