"""Functions whose double backward is wrong although their backward is right, and their right twins; right models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Forward = Callable[[Any, Tensor], Tensor]
Backward = Callable[[Any, Tensor], Any]

UPSTREAM = ("0.weight", "0.bias")
"""The parameters of `around` that come before the Function: what it loses of x moves them alone."""

ALL = ("0.weight", "0.bias", "1.1.weight", "1.1.bias", "3.weight", "3.bias")
"""All of them: what is lost of the gradient that it is given moves those behind it, too."""


class Applied(nn.Module):
    """A Function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function.apply(x)  # type: ignore[no-any-return]


def unary(forward: Forward, backward: Backward) -> Any:
    """The Function of one tensor with this forward and backward, which are given the context first."""

    class Unary(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return forward(ctx, x)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
            return backward(ctx, grad)

    return Unary


def keeping(function: Callable[[Tensor], Tensor], *kept: Callable[[Tensor], Tensor]) -> Forward:
    """A forward that saves functions of x for its backward."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(*[each(x) for each in kept])
        return function(x)

    return forward


def itself(x: Tensor) -> Tensor:
    return x


def cube(x: Tensor) -> Tensor:
    return x**3


def tanh_and_output(ctx: Any, x: Tensor) -> Tensor:
    y = x.tanh()
    ctx.save_for_backward(y)
    return y


def normalised(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    ctx.norm = float(x.norm())
    return x / x.norm()


def with_factor(ctx: Any, x: Tensor) -> Tensor:
    ctx.save_for_backward(x)
    ctx.factor = x.sigmoid()
    return x * x.sigmoid()


def of_swish(grad: Tensor, x: Tensor, sigmoid: Tensor) -> Tensor:
    return grad * sigmoid * (1 + x * (1 - sigmoid))


def of_softmax(grad: Tensor, y: Tensor) -> Tensor:
    return y * (grad - (grad * y).sum(-1, keepdim=True))


def without_graph(ctx: Any, grad: Tensor) -> Tensor:
    with torch.no_grad():
        return grad * 3 * ctx.saved_tensors[0] ** 2


def in_numpy(ctx: Any, grad: Tensor) -> Tensor:
    x, g = ctx.saved_tensors[0].detach().numpy(), grad.detach().numpy()
    return torch.from_numpy(g * 3 * x**2)


def inner(of_x: Callable[[Tensor, Tensor, Tensor], Tensor | None]) -> Backward:
    """A backward that is a Function itself, g·cos(x), with this gradient for x."""

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
            ctx.save_for_backward(grad, x)
            return grad * x.cos()

        @staticmethod
        def backward(ctx: Any, again: Tensor) -> Any:  # type: ignore[override]
            grad, x = ctx.saved_tensors
            return again * x.cos(), of_x(again, grad, x)

    return lambda ctx, grad: Inner.apply(grad, ctx.saved_tensors[0])


@dataclass(frozen=True)
class Mistake:
    """A Function with a wrong double backward.

    Attributes:
        function: the Function.
        rows: the parameters of `around` that it makes wrong.
        words: what the report says of it.
    """

    function: Any
    rows: tuple[str, ...]
    words: str


def intermediate(name: str) -> str:
    return f"it takes {name} for a constant, an intermediate of its forward without a graph"


MISTAKES: Mapping[str, Mistake] = {
    "a derivative is saved": Mistake(
        unary(keeping(torch.tanh, lambda x: 1 - x.tanh() ** 2), lambda ctx, g: g * ctx.saved_tensors[0]),
        UPSTREAM,
        intermediate("ctx.saved_tensors[0]"),
    ),
    "an intermediate is saved beside the input": Mistake(
        unary(
            keeping(lambda x: x * x.sigmoid(), itself, torch.sigmoid), lambda ctx, g: of_swish(g, *ctx.saved_tensors)
        ),
        UPSTREAM,
        intermediate("ctx.saved_tensors[1]"),
    ),
    "an attribute of ctx": Mistake(
        unary(with_factor, lambda ctx, g: of_swish(g, ctx.saved_tensors[0], ctx.factor)),
        UPSTREAM,
        intermediate("ctx.factor"),
    ),
    "a number": Mistake(
        unary(
            normalised,
            lambda ctx, g: g / ctx.norm - ctx.saved_tensors[0] * (g * ctx.saved_tensors[0]).sum() / ctx.norm**3,
        ),
        UPSTREAM,
        intermediate("ctx.norm"),
    ),
    "a copy of the output": Mistake(
        unary(
            keeping(lambda x: x.softmax(-1), lambda x: x.softmax(-1)),
            lambda ctx, g: of_softmax(g, ctx.saved_tensors[0]),
        ),
        UPSTREAM,
        intermediate("ctx.saved_tensors[0]"),
    ),
    "a detached input": Mistake(
        unary(keeping(cube, itself), lambda ctx, g: g * 3 * ctx.saved_tensors[0].detach() ** 2),
        UPSTREAM,
        "gives a wrong gradient for x, in its backward",
    ),
    "data of an input": Mistake(
        unary(keeping(cube, itself), lambda ctx, g: g * 3 * ctx.saved_tensors[0].data ** 2),
        UPSTREAM,
        "gives a wrong gradient for x, in its backward",
    ),
    "a detached gradient": Mistake(
        unary(keeping(cube, itself), lambda ctx, g: g.detach() * 3 * ctx.saved_tensors[0] ** 2),
        ALL,
        "gives a wrong gradient for the gradient that it is given, in its backward",
    ),
    "no_grad": Mistake(unary(keeping(cube, itself), without_graph), ALL, "what it returns has no graph"),
    "numpy": Mistake(unary(keeping(cube, itself), in_numpy), ALL, "what it returns has no graph"),
    "a hundredth too much": Mistake(
        unary(keeping(torch.sin, itself), inner(lambda again, g, x: -1.01 * again * g * x.sin())),
        UPSTREAM,
        "autograd.Function Inner gives a wrong gradient for x, in its backward",
    ),
    "a wrong sign": Mistake(
        unary(keeping(torch.sin, itself), inner(lambda again, g, x: again * g * x.sin())),
        UPSTREAM,
        "autograd.Function Inner gives a wrong gradient for x, in its backward",
    ),
    "None for the input": Mistake(
        unary(keeping(torch.sin, itself), inner(lambda again, g, x: None)),
        UPSTREAM,
        "autograd.Function Inner gives a wrong gradient for x, in its backward",
    ),
    "another gradient with a graph": Mistake(
        unary(
            keeping(cube, itself),
            lambda ctx, g: (1.5 if torch.is_grad_enabled() else 1.0) * g * 3 * ctx.saved_tensors[0] ** 2,
        ),
        ALL,
        "the backward gives another first-order gradient with create_graph=True than without: it starts at "
        "autograd.Function Unary, in its backward",
    ),
}
"""What a double backward is wrong by. The backward of each is right."""

RIGHT_FUNCTIONS: Mapping[str, Any] = {
    "the output is saved": unary(tanh_and_output, lambda ctx, g: g * (1 - ctx.saved_tensors[0] ** 2)),
    "computed anew": unary(
        keeping(lambda x: x * x.sigmoid(), itself),
        lambda ctx, g: of_swish(g, ctx.saved_tensors[0], ctx.saved_tensors[0].sigmoid()),
    ),
    "a constant is saved": unary(
        keeping(lambda x: 2.5 * cube(x), itself, lambda x: torch.tensor(2.5, dtype=x.dtype)),
        lambda ctx, g: g * 3 * ctx.saved_tensors[1] * ctx.saved_tensors[0] ** 2,
    ),
    "a Function inside": unary(keeping(torch.sin, itself), inner(lambda again, g, x: -again * g * x.sin())),
    "in place without a graph": unary(
        keeping(cube, itself),
        lambda ctx, g: (
            g * 3 * ctx.saved_tensors[0] ** 2 if torch.is_grad_enabled() else (3 * g).mul_(ctx.saved_tensors[0] ** 2)
        ),
    ),
}
"""The right twins."""


def around(function: Any) -> nn.Module:
    """A network with a Function in it, as module 1.0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(Applied(function), nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3))


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, of: int = 3) -> Tensor:
    return torch.randint(0, of, shape, generator=torch.Generator().manual_seed(2))


BATCH = noise(5, 4), classes(5)
"""What `around` is called with; its loss is the cross-entropy."""


@dataclass(frozen=True)
class Right:
    """A right model, and how it is checked.

    Attributes:
        build: makes the model.
        batch: what it is called with.
        loss_fn: the loss.
        options: of the check.
        statuses: name of a row → its status, where that is not `match`.
    """

    build: Callable[[], nn.Module]
    batch: Any
    loss_fn: Callable[..., Tensor] = F.cross_entropy
    options: Mapping[str, Any] = field(default_factory=dict)
    statuses: Mapping[str, str] = field(default_factory=dict)


class Recurrent(nn.Module):
    """A recurrent net whose last output is read."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.net, self.head = kind(3, 4, num_layers=2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x)[0][-1])  # type: ignore[no-any-return]


class Tokens(nn.Module):
    """An embedding, and a projection back that may be tied to it."""

    def __init__(self, *, is_tied: bool = False, **options: Any) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4, **options), nn.Linear(4, 7)
        if is_tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding(tokens))).flatten(0, 1)  # type: ignore[no-any-return]


class Complex(nn.Module):
    """A complex weight, read by its absolute values."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(3, 4, seed=3) + 1j * noise(3, 4, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs().square().tanh()


class Penalised(nn.Module):
    """A network beside the norm of its gradient for the input; of second order, a third derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = self.net(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.squeeze(1) + slope.norm(dim=1)


class Checkpointed(nn.Module):
    """A layer that is run again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.net, x, use_reentrant=False))  # type: ignore[no-any-return]


class InPlace(nn.Module):
    """Operations that write to what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).mul(2).add_(1).sin_()
        h = h * h
        h[:, 0] *= 2
        return self.head(h)  # type: ignore[no-any-return]


class Decompositions(nn.Module):
    """Determinant, inverse, Cholesky factor and eigenvalues of one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(4, 4, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        a = self.weight @ self.weight.T + 4 * torch.eye(4, dtype=self.weight.dtype)
        terms = torch.linalg.inv(a).sum() + torch.linalg.cholesky(a).sum() + torch.linalg.eigvalsh(a).square().sum()
        return torch.logdet(a) + terms * x.mean()


class Attention(nn.Module):
    """An encoder layer of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


def mlp(*between: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 6), *between, nn.Linear(6, 3))


IMAGES = noise(2, 2, 6, 6), classes(2)

RIGHT: Mapping[str, Right] = {
    "mlp": Right(mlp(nn.Tanh()), BATCH),
    "relu": Right(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), BATCH
    ),
    "leaky relu, elu, hardswish": Right(mlp(nn.LeakyReLU(), nn.Linear(6, 6), nn.ELU(), nn.Hardswish()), BATCH),
    "layer and group norm": Right(mlp(nn.GroupNorm(2, 6), nn.GELU(), nn.LayerNorm(6)), BATCH),
    "batch norm in eval mode": Right(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU(), nn.Flatten(), nn.Linear(48, 3)), IMAGES
    ),
    "batch norm in train mode": Right(
        mlp(nn.BatchNorm1d(6), nn.SiLU()), BATCH, options={"mode": "train"}, statuses={"0.bias": "flat"}
    ),
    "dropout in train mode": Right(mlp(nn.Tanh(), nn.Dropout(0.5)), BATCH, options={"mode": "train"}),
    "convolutions and max pooling": Right(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)),
        ),
        IMAGES,
    ),
    "transposed and resized": Right(
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Mish(), nn.Upsample(scale_factor=2), nn.Conv2d(2, 1, 3)),
        noise(1, 2, 3, 3),
        lambda y: y.square().mean(),
    ),
    "lstm": Right(lambda: Recurrent(nn.LSTM), (noise(3, 2, 3), noise(2, 2)), F.mse_loss),
    "gru": Right(lambda: Recurrent(nn.GRU), (noise(3, 2, 3), noise(2, 2)), F.mse_loss),
    "embedding": Right(lambda: Tokens(padding_idx=0), (classes(2, 3, of=7), classes(6, of=7))),
    "sparse embedding": Right(lambda: Tokens(sparse=True), (classes(2, 3, of=7), classes(6, of=7))),
    "tied weights": Right(lambda: Tokens(is_tied=True), (classes(2, 3, of=7), classes(6, of=7))),
    "attention": Right(Attention, (noise(2, 3, 8), classes(2))),
    "complex": Right(Complex, (noise(2, 3), noise(2, 4)), F.mse_loss),
    "third derivatives": Right(Penalised, (noise(4, 3), noise(4)), F.mse_loss),
    "a checkpoint": Right(Checkpointed, (noise(4, 3), noise(4, 2)), F.mse_loss),
    "in place": Right(InPlace, (noise(4, 3), noise(4, 2)), F.mse_loss),
    "decompositions": Right(Decompositions, noise(2, 2), lambda y: y),
    "orthogonal": Right(lambda: parametrizations.orthogonal(nn.Linear(3, 3)), (noise(4, 3), noise(4, 3)), F.mse_loss),
    "spectral norm": Right(
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)), BATCH
    ),
    "squares of a linear map": Right(lambda: nn.Linear(4, 3), (BATCH[0], noise(5, 3)), F.mse_loss),
    "huber": Right(mlp(nn.Tanh()), (BATCH[0], noise(5, 3)), lambda y, t: F.huber_loss(y, t, delta=0.3)),
    "a large loss": Right(mlp(nn.Tanh()), (BATCH[0], noise(5, 3)), lambda y, t: 1e6 * F.mse_loss(y, t) + 1e8),
    "in float32": Right(mlp(nn.Tanh()), BATCH, options={"dtype": torch.float32}),
    "away from θ": Right(mlp(nn.LayerNorm(6), nn.Tanh()), BATCH, options={"perturb": 0.1}),
    "held": Right(mlp(nn.Tanh()), BATCH, lambda y, t: F.cross_entropy(y * y.detach(), t), {"hold_detached": True}),
    "along directions": Right(mlp(nn.Tanh()), BATCH, options={"method": "projected"}),
    "one parameter": Right(mlp(nn.Tanh()), BATCH, options={"include": "0.weight"}),
}
"""Right models of all kinds."""
