"""The traced engine against J itself, on models that use most of what torch offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from torch_gradcheck.arrays import Floats, Indices
from torch_gradcheck.differences.sampling import Samples
from torch_gradcheck.engines.traced.engine import TracedEngine, worth_tracing
from torch_gradcheck.engines.traced.untraceable import Untraceable


class Eager:
    """J itself: one coordinate moved in place, put back by assignment."""

    def __init__(self, objective: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        self.objective = objective
        self.parameters = parameters

    def sample(self, parameter: int, coordinates: Indices, steps: Floats) -> Samples:
        theta = self.parameters[parameter].detach()
        flat = (torch.view_as_real(theta) if theta.is_complex() else theta).view(-1)
        taken, values = [], []
        for i, t in zip(coordinates, steps, strict=True):
            old = flat[i].clone()
            flat[i] = (old.double() + t).to(flat.dtype)
            taken.append(float(flat[i].double() - old.double()))
            try:
                values.append(float(self.objective().detach()))
            finally:
                flat[i] = old
        return Samples(np.array(taken), np.array(values))


def seeded(closure: Callable[[], Tensor], *modules: nn.Module) -> Callable[[], Tensor]:
    """J as the pipeline hands it over: random state and buffers are the same at every evaluation."""
    buffers = [(b, b.clone()) for module in modules for b in module.buffers()]

    def objective() -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            for b, saved in buffers:
                b.copy_(saved)
        return closure()

    return objective


def classify(model: nn.Module, x: Tensor, classes: int = 3) -> tuple[nn.Module, Callable[[], Tensor]]:
    targets = torch.arange(len(x)) % classes
    return model, lambda: F.cross_entropy(model(x), targets)


def regress(model: nn.Module, *inputs: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    return model, lambda: model(*inputs).square().mean()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, groups=g) for g in (1, 2))
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
        self.stem = nn.Conv2d(2, 4, 3, stride=2, dilation=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + F.silu(norm(conv(x)))
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h[:, 2:4].mul_(self.scale)
        h[:, ::2] += h[:, 1::2]
        F.relu_(h)
        out = torch.zeros(len(x), 3)
        out[1:] = self.b(h)[1:]
        view = out.t()
        out.add_(0.1)
        view[0] = view[1] * 2
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.rnn = nn.GRU(5, 5, batch_first=True)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(x))[0]).flatten(0, 1)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.data * x.data  # hidden from autograd, as such functions often do

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 3))]
        self.registered = nn.ParameterList(self.weights)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(x @ self.weights[0]) @ self.weights[1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (2, 3)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2)).mean(1)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, dtype=torch.complex128))
        self.phase = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft(x).to(torch.complex128) @ self.weight.mT.conj()
        return (y * torch.polar(torch.ones(3), self.phase)).abs()


class Penalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.LayerNorm(5), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
        return slope.norm(dim=1) - 1


class PenalizedBatch(Penalized):
    """The backward of its batch normalization reads the statistics of the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 5), nn.Softplus(), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 1)
        )


class PenalizedTrackedBatch(Penalized):
    """It is given running statistics as well, which the forward has updated and the backward does not read."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.BatchNorm1d(5), nn.Linear(5, 1))


class Filled(nn.Module):
    """Fills masked entries with a value that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.value = nn.Linear(4, 5), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.masked_fill(y > 0.5, self.value)


class Normalizations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.b = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.c = nn.Sequential(nn.LayerNorm(6), nn.Dropout(0.3), nn.BatchNorm1d(6), nn.PReLU(6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(self.a(x))))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv3d(2, 3, 2, stride=2), nn.ConvTranspose3d(3, 2, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.sigmoid(self.down(x)))


class Signals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 3, stride=2, output_padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.max_pool1d(F.gelu(self.down(x)), 2)).cumsum(-1)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.linear(x)
        ranked, _ = a.sort(dim=1)
        spd = a.T @ a + torch.eye(4)
        return ranked.sum() + torch.linalg.cholesky(spd).logdet() + torch.where(a > 0, a, a.exp()).logsumexp(0).sum()


def ctc(model: nn.Module, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    targets, lengths = torch.tensor([[1, 2], [2, 1]]), torch.tensor([2, 2])
    sizes = torch.tensor([5, 5])
    return model, lambda: F.ctc_loss(model(x).log_softmax(-1), targets, sizes, lengths)


def decayed(model: nn.Module, x: Tensor) -> tuple[nn.Module, Callable[[], Tensor]]:
    return model, lambda: model(x).mean() + 0.1 * sum(p.square().sum() for p in model.parameters())


def encoder(train: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).train(train)


ZOO: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor]]]] = {
    "mlp": lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), torch.randn(6, 4)),
    "dropout": lambda: classify(nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3)), torch.randn(6, 4)),
    "residual train": lambda: classify(Residual().train(), torch.randn(3, 2, 9, 9)),
    "residual eval": lambda: classify(Residual().eval(), torch.randn(3, 2, 9, 9)),
    "in place": lambda: regress(Inplace(), torch.randn(5, 4)),
    "tied": lambda: (lambda m, x: (m, lambda: F.cross_entropy(m(x), x.flatten())))(
        Tied(), torch.arange(8).view(2, 4) % 7
    ),
    "lstm": lambda: (lambda m, x: (m, lambda: m(x)[0].square().sum()))(
        nn.LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.2), torch.randn(4, 2, 3)
    ),
    "rnn": lambda: (lambda m, x: (m, lambda: m(x)[0].square().sum()))(nn.RNN(3, 4), torch.randn(4, 2, 3)),
    "custom function": lambda: regress(Custom(), torch.randn(5, 4)),
    "attention": lambda: classify(Attention(), torch.randn(2, 5, 6)),
    "encoder train": lambda: regress(encoder(True), torch.randn(2, 4, 6)),
    "encoder eval": lambda: regress(encoder(False), torch.randn(2, 4, 6)),
    "complex": lambda: regress(Spectrum(), torch.randn(5, 4)),
    "gradient penalty": lambda: regress(Penalized(), torch.randn(5, 4)),
    "gradient penalty through batch norm": lambda: regress(PenalizedBatch(), torch.randn(5, 4)),
    "gradient penalty through batch norm that tracks": lambda: regress(PenalizedTrackedBatch(), torch.randn(5, 4)),
    "learned filling": lambda: regress(Filled(), torch.randn(5, 4)),
    "parametrizations": lambda: classify(Normalizations().train(), torch.randn(6, 4)),
    "volumes": lambda: regress(Volumes(), torch.randn(2, 2, 4, 5, 4)),
    "signals": lambda: regress(Signals(), torch.randn(2, 4, 9)),
    "odd": lambda: (lambda m, x: (m, lambda: m(x)))(Odd(), torch.randn(5, 4)),
    "ctc": lambda: ctc(nn.Linear(4, 3), torch.randn(5, 2, 4)),
    "weight decay": lambda: decayed(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(5, 4)),
}


@pytest.fixture(autouse=True)
def double() -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # J is small here
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)


def built(name: str) -> tuple[nn.Module, Callable[[], Tensor], list[Tensor]]:
    model, closure = ZOO[name]()
    return model, seeded(closure, model), list(model.parameters())


def some(theta: Tensor, count: int, size: float = 1e-5) -> tuple[Indices, Floats]:
    """A few coordinates, each with steps of both signs, in no order."""
    random = np.random.default_rng(0)
    numel = theta.numel() * (2 if theta.is_complex() else 1)
    return random.integers(numel, size=count), random.choice([size, -size, 1e4 * size], size=count)


def difference(engine: TracedEngine, parameter: int, reference: Eager, noise: float, **options: int) -> str | None:
    """Why the values of a parameter are not to be used, or None."""
    try:
        engine.sample_compared(parameter, np.zeros(1, dtype=np.int64), np.zeros(1), reference, noise, **options)
    except Untraceable as refusal:
        return str(refusal)
    return None


@pytest.mark.slow_but_for(1)
@pytest.mark.parametrize("name", ZOO)
def test_values_are_those_of_J_to_roundoff(name: str) -> None:  # noqa: N802
    _, objective, parameters = built(name)
    engine, reference = TracedEngine(objective, parameters), Eager(objective, parameters)
    for i, theta in enumerate(parameters):
        coordinates, steps = some(theta, 12)
        found, expected = engine.sample(i, coordinates, steps), reference.sample(i, coordinates, steps)
        np.testing.assert_array_equal(found.steps, expected.steps)
        np.testing.assert_allclose(found.values, expected.values, rtol=2e-14, atol=2e-14)
        assert difference(engine, i, reference, 1e-13) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "residual train", "lstm", "encoder train"])
def test_chunk_size_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective, parameters = built(name)
    results = []
    for size in (1, 3, 64):
        monkeypatch.setattr("torch_gradcheck.engines.traced.chunks.ChunkSize.size", size)
        engine = TracedEngine(objective, parameters)
        results.append([engine.sample(i, *some(theta, 20)).values for i, theta in enumerate(parameters)])
    for values in results[1:]:
        for one, other in zip(results[0], values, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-14)


@pytest.mark.parametrize("name", ["in place", "residual train", "complex", "tied"])
def test_nothing_is_written(name: str) -> None:
    model, objective, parameters = built(name)
    before = [(p, p.data_ptr(), p.detach().clone(), p._version) for p in parameters]
    engine = TracedEngine(objective, parameters)
    buffers = [b.clone() for b in model.buffers()]
    for i, theta in enumerate(parameters):
        engine.sample(i, *some(theta, 20))
    assert all(torch.equal(one, other) for one, other in zip(buffers, model.buffers(), strict=True))
    for p, address, values, version in before:
        assert p.data_ptr() == address
        assert torch.equal(p, values)
        assert p._version == version
        assert p.grad is None


class Reads(nn.Module):
    """Looks at its output in Python, in a way of the caller's choice."""

    def __init__(self, look: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y * float(self.look(y) is not None)


@pytest.mark.parametrize(
    ("look", "named"),
    [
        pytest.param(lambda y: torch.complex(y, y).sum().item(), "_local_scalar_dense", id="complex item"),
        pytest.param(lambda y: y.detach().numpy(), "numpy", id="numpy"),
        pytest.param(lambda y: np.asarray(y.data), "__array__|numpy", id="asarray"),
        pytest.param(lambda y: y.tolist(), "tolist", id="tolist"),
        pytest.param(lambda y: y.unique(), "_unique2.*has a shape that depends on values", id="unique"),
    ],
)
def test_real_numbers_read_in_python_end_the_trace(look: Callable[[Tensor], Any], named: str) -> None:
    model, x = Reads(look), torch.ones(4, 3)
    with pytest.raises(Untraceable, match=named) as raised:
        TracedEngine(lambda: model(x).sum(), list(model.parameters()))
    assert raised.value.module is model
    assert "(in Reads)" in str(raised.value)


def test_values_no_parameter_moves_may_be_read() -> None:
    model, x = nn.Linear(3, 2), torch.arange(6.0).view(2, 3)
    scale = torch.tensor([2.0])

    def objective() -> Tensor:
        weight = x.max().item() + scale.tolist()[0] + float((x > 2).sum())
        return model(x[x.sum(1) > 1]).mean() * weight

    engine, reference = TracedEngine(objective, [model.weight]), Eager(objective, [model.weight])
    assert difference(engine, 0, reference, 1e-13) is None


def test_random_draws_that_depend_on_a_parameter_fall_back_for_it_alone() -> None:
    first, second, x = nn.Linear(3, 2), nn.Linear(2, 1), torch.ones(4, 3)
    objective = seeded(lambda: second(torch.bernoulli(first(x).sigmoid())).mean())
    parameters = [*first.parameters(), *second.parameters()]
    engine, reference = TracedEngine(objective, parameters), Eager(objective, parameters)
    assert difference(engine, 2, reference, 1e-14) is None
    assert "bernoulli" in str(difference(engine, 0, reference, 1e-14))
    with pytest.raises(Untraceable, match="random numbers by a law that depends on the parameter"):
        engine.sample(0, np.array([0]), np.array([1e-5]))


def test_state_in_python_is_noticed() -> None:
    model, x = nn.Linear(3, 2), torch.ones(4, 3)
    calls = []

    def objective() -> Tensor:
        calls.append(1)
        return model(x).sum() * (2.0 if len(calls) > 1 else 1.0)

    engine = TracedEngine(objective, [model.weight])
    assert "gives J =" in str(difference(engine, 0, Eager(objective, [model.weight]), 1e-12))


class InDouble(TorchDispatchMode):
    """Float32 casts become float64 ones."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def test_dispatch_modes_of_the_caller_are_part_of_J() -> None:  # noqa: N802
    model, x = nn.Linear(3, 2), torch.randn(4, 3)

    def objective() -> Tensor:
        return model(x).to(torch.float32).square().sum()

    with InDouble():
        engine = TracedEngine(objective, [model.weight])
        reference = Eager(objective, [model.weight])
        assert objective().dtype is torch.float64
        assert difference(engine, 0, reference, 1e-14) is None
    assert difference(engine, 0, reference, 1e-14) is not None


def test_float32_steps_are_those_its_precision_allows() -> None:
    model, x = nn.Linear(3, 2).float(), torch.ones(4, 3, dtype=torch.float32)
    engine = TracedEngine(lambda: model(x).square().sum(), [model.weight])
    samples = engine.sample(0, np.arange(6), np.full(6, 1e-3))
    weight = model.weight.detach().reshape(-1)
    expected = (weight.double() + 1e-3).float().double() - weight.double()
    np.testing.assert_array_equal(samples.steps, expected.numpy())
    reference = Eager(lambda: model(x).square().sum(), [model.weight])
    assert difference(engine, 0, reference, 1e-5) is None


def test_parameters_that_share_memory_move_together() -> None:
    whole = nn.Parameter(torch.randn(4, 3))
    half = nn.Parameter(whole.detach()[:2])
    x = torch.randn(5, 3)

    def objective() -> Tensor:
        return (x @ whole.T).tanh().sum() + (x @ half.data.T).square().sum()

    engine, reference = TracedEngine(objective, [whole]), Eager(objective, [whole])
    assert difference(engine, 0, reference, 1e-13, probes=12) is None


def test_a_parameter_that_J_does_not_read_leaves_it_as_it_is() -> None:  # noqa: N802
    model, unused = nn.Linear(3, 2), nn.Parameter(torch.ones(3))
    engine = TracedEngine(lambda: model(torch.ones(4, 3)).sum(), [unused, model.weight])
    values = engine.sample(0, np.arange(3), np.ones(3)).values
    np.testing.assert_array_equal(values, model(torch.ones(4, 3)).sum().item())


def test_running_out_of_memory_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    _, objective, parameters = built("mlp")
    engine = TracedEngine(objective, parameters)
    expected = engine.sample(0, *some(parameters[0], 100)).values

    def limited(program: Any, parameter: int, moved: Any, between: Any) -> Any:
        if moved.count > 5:
            raise RuntimeError("not enough memory: you tried to allocate too much")
        return evaluated(program, parameter, moved, between)

    from torch_gradcheck.engines.traced.evaluation import evaluated

    monkeypatch.setattr("torch_gradcheck.engines.traced.engine.evaluated", limited)
    np.testing.assert_allclose(engine.sample(0, *some(parameters[0], 100)).values, expected, rtol=1e-14)


def test_threads_do_not_matter_and_are_put_back() -> None:
    _, objective, parameters = built("lstm")
    expected = TracedEngine(objective, parameters).sample(0, *some(parameters[0], 700))
    torch.set_num_threads(2)
    engine = TracedEngine(objective, parameters)
    np.testing.assert_allclose(engine.sample(0, *some(parameters[0], 700)).values, expected.values, rtol=1e-14)
    assert torch.get_num_threads() == 2


def test_threads_are_put_back_after_an_exception() -> None:
    first, x = nn.Linear(30, 20), torch.ones(4, 30)
    objective = seeded(lambda: torch.bernoulli(first(x).sigmoid()).mean())
    torch.set_num_threads(2)
    engine = TracedEngine(objective, list(first.parameters()))
    with pytest.raises(Untraceable, match="bernoulli"):
        engine.sample(0, np.arange(600), np.full(600, 1e-5))
    assert torch.get_num_threads() == 2


def test_an_exception_while_recording_is_untraceable() -> None:
    def objective() -> Tensor:
        raise ZeroDivisionError("by a mode")

    with pytest.raises(Untraceable, match="J raises ZeroDivisionError while it is recorded: by a mode"):
        TracedEngine(objective, [nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize(
    ("training", "name"),
    [(True, "_BATCH_NORM_IN_TRAINING"), (False, "_BATCH_NORM_IN_EVALUATION")],
    ids=["train", "eval"],
)
def test_batch_normalization_needs_a_form_without_side_effects(
    training: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, x, mean, variance = nn.Parameter(torch.randn(4, 3)), torch.randn(5, 4), torch.zeros(3), torch.ones(3)

    def objective() -> Tensor:
        batch_norm = torch.ops.aten._native_batch_norm_legit.default
        y, *_ = batch_norm(x @ weight, None, None, mean, variance, training, 0.1, 1e-5)
        return y.square().sum()

    engine, reference = TracedEngine(objective, [weight]), Eager(objective, [weight])
    assert difference(engine, 0, reference, 1e-13) is None
    monkeypatch.setattr(f"torch_gradcheck.engines.traced.recording.recorder.{name}", None)
    with pytest.raises(Untraceable, match=r"batch_norm.* has no form without side effects in this version of torch"):
        TracedEngine(objective, [weight])


def test_only_cpu_parameters_are_recorded() -> None:
    with pytest.raises(Untraceable, match="a parameter is on meta"):
        TracedEngine(lambda: torch.ones(()), [nn.Parameter(torch.ones(2, device="meta"))])


def test_tracing_is_not_worth_it_for_a_handful_of_coordinates() -> None:
    assert not worth_tracing(evaluations=2 * 40, parameters=2)
    assert worth_tracing(evaluations=2 * 200, parameters=4)


def transformers_loss(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 11, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {
        "llama": lambda: transformers.LlamaConfig(hidden_size=8, intermediate_size=12, **small),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8),
        "bert": lambda: transformers.BertConfig(hidden_size=8, intermediate_size=12, **small),
    }[name]()
    kind = transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    model = kind.from_config(config).double().train()
    ids = torch.arange(10).view(2, 5)
    return model, lambda: model(input_ids=ids, labels=ids).loss


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_transformers(name: str) -> None:
    model, closure = transformers_loss(name)
    objective, parameters = seeded(closure, model), list(model.parameters())
    with InDouble():
        engine, reference = TracedEngine(objective, parameters), Eager(objective, parameters)
        for i in range(len(parameters)):
            assert difference(engine, i, reference, 1e-13) is None


@pytest.mark.slow_but_for(2)
@pytest.mark.parametrize("name", ZOO)
def test_memory_that_is_reused_belongs_to_nobody_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_gradcheck.engines.traced.rules.pointwise._WORTH_LOOKING_AT", 1)
    _, objective, parameters = built(name)
    engine, reference = TracedEngine(objective, parameters), Eager(objective, parameters)
    for i, theta in enumerate(parameters):
        coordinates, steps = some(theta, 12)
        found, expected = engine.sample(i, coordinates, steps), reference.sample(i, coordinates, steps)
        np.testing.assert_allclose(found.values, expected.values, rtol=2e-14, atol=2e-14)


def test_the_record_gives_the_value_of_J_at_what_the_parameters_hold() -> None:  # noqa: N802
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 2)).double()
    x, mask = torch.randn(3, 4, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    parameters = list(model.parameters())

    def objective() -> Tensor:
        return (model(x) * mask.log()).square().mean()

    engine = TracedEngine(objective, parameters)
    assert engine.value() == pytest.approx(float(objective().detach()), rel=1e-14)
    with torch.no_grad():
        for parameter in parameters:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    assert engine.value() == pytest.approx(float(objective().detach()), rel=1e-14)
