"""A table of every torch.nn module that has parameters, at several small shapes, each with a loss and a batch."""

from __future__ import annotations

import ast
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

from tests.zoo.losses import probe


@dataclass(frozen=True)
class Problem:
    """What `check_module` is called with."""

    model: nn.Module
    loss_fn: Callable[..., Any]
    batch: Any
    include: str | None = None


@dataclass(frozen=True)
class Case:
    """A correct model; `excused` maps "mode parameter" to the statuses it may have there instead."""

    id: str
    classes: tuple[type[nn.Module], ...]
    build: Callable[[], Problem]
    excused: Mapping[str, str] = field(default_factory=dict)


CASES: list[Case] = []


def add(
    name: str,
    module: Callable[[], nn.Module],
    batch: Callable[[], Any],
    *,
    classes: tuple[type[nn.Module], ...] = (),
    loss_fn: Callable[..., Tensor] = probe,
    excused: Mapping[str, str] | None = None,
    include: str | None = None,
) -> None:
    """Append a case; its classes are read off the instance unless given."""

    def build() -> Problem:
        torch.manual_seed(20)
        model = module()
        return Problem(model, loss_fn, batch(), include)

    owners = classes or (getattr(module, "target", None),)
    CASES.append(Case(name, tuple(c for c in owners if c is not None), build, excused or {}))


def noise(*shape: int) -> Callable[[], Tensor]:
    """A batch of standard normal numbers."""
    return lambda: torch.randn(*shape)


def of(cls: type[nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A builder of `cls(*args, **kwargs)` that remembers its class."""

    def make() -> nn.Module:
        return cls(*args, **kwargs)

    make.target = cls  # type: ignore[attr-defined]
    return make


def with_statistics(cls: type[nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    """A normalisation whose affine parameters and running statistics are not the plain ones and zeros."""

    def make() -> nn.Module:
        module = cls(*args, **kwargs)
        with torch.no_grad():
            for tensor in module.parameters():
                tensor.uniform_(0.5, 1.5)
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_()
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 2.0)
        return module

    make.target = cls  # type: ignore[attr-defined]
    return make


def initialised(lazy: Callable[[], nn.Module], example: Callable[[], Tensor]) -> Callable[[], nn.Module]:
    """A lazy module after its first forward."""

    def make() -> nn.Module:
        module = lazy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module(example())
        return module

    make.target = lazy.target  # type: ignore[attr-defined]
    return make


def linear_layers() -> None:
    add("linear", of(nn.Linear, 4, 3), noise(5, 4))
    add("linear-no-bias", of(nn.Linear, 3, 1, bias=False), noise(2, 3))
    add("linear-four-dims", of(nn.Linear, 2, 3), noise(2, 3, 2, 2))
    add("linear-one-vector", of(nn.Linear, 3, 2), noise(3))
    add("bilinear", of(nn.Bilinear, 3, 2, 4), lambda: ((torch.randn(5, 3), torch.randn(5, 2)),))
    add("bilinear-no-bias", of(nn.Bilinear, 2, 2, 1, bias=False), lambda: ((torch.randn(3, 2), torch.randn(3, 2)),))
    add("lazy-linear", initialised(of(nn.LazyLinear, 3), noise(2, 4)), noise(5, 4))
    add("prelu", of(nn.PReLU), noise(4, 3))
    add("prelu-channels", of(nn.PReLU, 3), noise(6, 3, 2))


def convolutions() -> None:
    sizes = {1: (7,), 2: (5, 4), 3: (3, 4, 3)}
    plain = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    lazy = {1: nn.LazyConv1d, 2: nn.LazyConv2d, 3: nn.LazyConv3d}
    for dims, size in sizes.items():
        conv = plain[dims]
        add(f"conv{dims}d", of(conv, 2, 2, 2), noise(2, 2, *size))
        add(f"conv{dims}d-groups", of(conv, 4, 4, 2, groups=2), noise(1, 4, *size))
        add(f"conv{dims}d-stride-dilation", of(conv, 2, 1, 2, stride=2, dilation=2), noise(2, 2, *size))
        add(f"conv{dims}d-unbatched", of(conv, 1, 2, 2, bias=False), noise(1, *size))
        for padding in ("zeros", "reflect", "replicate", "circular"):
            make = of(conv, 1, 2, 2, padding=1, padding_mode=padding)
            add(f"conv{dims}d-{padding}", make, noise(2, 1, *size))
        add(f"lazy-conv{dims}d", initialised(of(lazy[dims], 2, 2), noise(1, 2, *size)), noise(2, 2, *size))
    add("conv2d-depthwise", of(nn.Conv2d, 3, 3, 2, groups=3), noise(2, 3, 4, 4))
    add("conv2d-same", of(nn.Conv2d, 2, 2, (1, 3), padding="same"), noise(2, 2, 3, 4))


def transposed_convolutions() -> None:
    sizes = {1: (4,), 2: (3, 2), 3: (2, 2, 3)}
    plain = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
    lazy = {1: nn.LazyConvTranspose1d, 2: nn.LazyConvTranspose2d, 3: nn.LazyConvTranspose3d}
    for dims, size in sizes.items():
        conv = plain[dims]
        add(f"conv-transpose{dims}d", of(conv, 2, 2, 2), noise(2, 2, *size))
        add(f"conv-transpose{dims}d-groups", of(conv, 4, 2, 2, groups=2, bias=False), noise(1, 4, *size))
        strided = of(conv, 2, 1, 2, stride=2, dilation=2, padding=1, output_padding=1)
        add(f"conv-transpose{dims}d-stride", strided, noise(2, 2, *size))
        make = initialised(of(lazy[dims], 2, 2), noise(1, 2, *size))
        add(f"lazy-conv-transpose{dims}d", make, noise(2, 2, *size))


def normalisations() -> None:
    sizes = {1: (3,), 2: (3, 2), 3: (2, 2, 2)}
    batch_norms = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    lazy_batch = {1: nn.LazyBatchNorm1d, 2: nn.LazyBatchNorm2d, 3: nn.LazyBatchNorm3d}
    instance_norms = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    lazy_instance = {1: nn.LazyInstanceNorm1d, 2: nn.LazyInstanceNorm2d, 3: nn.LazyInstanceNorm3d}
    for dims, size in sizes.items():
        x = noise(4, 3, *size)
        add(f"batch-norm{dims}d", with_statistics(batch_norms[dims], 3), x)
        untracked = with_statistics(batch_norms[dims], 3, track_running_stats=False)
        add(f"batch-norm{dims}d-untracked", untracked, x)
        add(f"batch-norm{dims}d-cumulative", with_statistics(batch_norms[dims], 3, momentum=None), x)
        add(f"lazy-batch-norm{dims}d", initialised(of(lazy_batch[dims]), x), x)
        add(f"instance-norm{dims}d", with_statistics(instance_norms[dims], 3, affine=True), x)
        tracked = with_statistics(instance_norms[dims], 3, affine=True, track_running_stats=True)
        add(f"instance-norm{dims}d-tracked", tracked, x)
        add(f"lazy-instance-norm{dims}d", initialised(of(lazy_instance[dims], affine=True), x), x)
    add("batch-norm1d-flat-batch", with_statistics(nn.BatchNorm1d, 3), noise(5, 3))
    add("sync-batch-norm", with_statistics(nn.SyncBatchNorm, 3), noise(4, 3, 2))
    add("group-norm", with_statistics(nn.GroupNorm, 2, 4), noise(3, 4, 2))
    add("group-norm-one-group", with_statistics(nn.GroupNorm, 1, 3), noise(2, 3))
    add("layer-norm", with_statistics(nn.LayerNorm, 4), noise(3, 4))
    add("layer-norm-two-dims", with_statistics(nn.LayerNorm, (2, 3)), noise(3, 2, 3))
    add("layer-norm-no-bias", with_statistics(nn.LayerNorm, 3, bias=False), noise(2, 3))
    add("rms-norm", with_statistics(nn.RMSNorm, 4), noise(3, 4))
    add("rms-norm-two-dims", with_statistics(nn.RMSNorm, (2, 2), eps=1e-3), noise(3, 2, 2))


def embeddings() -> None:
    tokens = lambda: torch.tensor([[1, 2, 2], [4, 1, 3]])  # noqa: E731 - a batch, shared by the rows below
    add("embedding", of(nn.Embedding, 5, 2), tokens)
    add("embedding-sparse", of(nn.Embedding, 5, 2, sparse=True), tokens)
    add("embedding-padding-unused", of(nn.Embedding, 5, 2, padding_idx=0), tokens)
    add("embedding-scale-by-frequency-distinct", of(nn.Embedding, 5, 2, scale_grad_by_freq=True), _distinct_tokens)
    add("embedding-max-norm-not-reached", of(nn.Embedding, 5, 2, max_norm=100.0), tokens)
    for mode in ("sum", "mean", "max"):
        add(f"embedding-bag-{mode}", of(nn.EmbeddingBag, 5, 2, mode=mode), tokens)
        ragged = lambda: ((torch.tensor([1, 2, 2, 4, 1]), torch.tensor([0, 2])),)  # noqa: E731
        add(f"embedding-bag-{mode}-offsets", of(nn.EmbeddingBag, 5, 2, mode=mode), ragged)
    add("embedding-bag-sparse", of(nn.EmbeddingBag, 5, 2, mode="sum", sparse=True), tokens)
    add("embedding-bag-padding-unused", of(nn.EmbeddingBag, 5, 2, padding_idx=0), tokens)
    add("embedding-bag-weights", of(nn.EmbeddingBag, 5, 2, mode="sum"), _weighted_bags)
    add("embedding-bag-last-offset", of(nn.EmbeddingBag, 5, 2, include_last_offset=True), _bags_with_end)


def _distinct_tokens() -> Tensor:
    return torch.tensor([1, 4, 3])


def _weighted_bags() -> Any:
    keywords = {"input": torch.tensor([[1, 2], [4, 1]]), "per_sample_weights": torch.rand(2, 2)}
    return (keywords,)


def _bags_with_end() -> Any:
    return ((torch.tensor([1, 2, 2, 4]), torch.tensor([0, 1, 4])),)


def recurrent_nets() -> None:
    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        name = cls.__name__.lower()
        add(name, of(cls, 2, 2), noise(3, 2, 2))
        add(f"{name}-two-layers", of(cls, 1, 2, num_layers=2, dropout=0.5), noise(2, 2, 1))
        add(f"{name}-bidirectional", of(cls, 1, 2, bidirectional=True, batch_first=True), noise(2, 3, 1))
        add(f"{name}-no-bias-unbatched", of(cls, 2, 2, bias=False), noise(3, 2))
        add(f"{name}-packed", of(cls, 2, 2), _packed)
    add("rnn-relu", of(nn.RNN, 2, 2, nonlinearity="relu"), noise(3, 2, 2))
    add("lstm-projection", of(nn.LSTM, 2, 3, proj_size=2), noise(2, 1, 2))
    add("rnn-cell", of(nn.RNNCell, 2, 3), noise(4, 2), excused={"eval weight_hh": "flat", "train weight_hh": "flat"})
    add("rnn-cell-relu", of(nn.RNNCell, 2, 3, nonlinearity="relu"), lambda: ((torch.rand(4, 2), torch.rand(4, 3)),))
    add("lstm-cell", of(nn.LSTMCell, 2, 2), lambda: ((torch.randn(3, 2), (torch.randn(3, 2), torch.randn(3, 2))),))
    add("gru-cell", of(nn.GRUCell, 2, 2), lambda: ((torch.randn(3, 2), torch.randn(3, 2)),))


def _packed() -> Any:
    """A packed sequence is a tuple itself, so it stands in a tuple of one input."""
    return ((pack_padded_sequence(torch.randn(3, 2, 2), torch.tensor([3, 2])),),)


def attention() -> None:
    add("attention", of(nn.MultiheadAttention, 4, 2), _query_key_value)
    add("attention-extra-key", of(nn.MultiheadAttention, 4, 1, add_bias_kv=True), _query_key_value)
    add("attention-other-sizes", of(nn.MultiheadAttention, 4, 2, kdim=3, vdim=2, batch_first=True), _other_sizes)
    add("attention-padding", of(nn.MultiheadAttention, 2, 1, batch_first=True), _padded_attention)
    layer = {"d_model": 3, "nhead": 1, "dim_feedforward": 2, "batch_first": True}
    add("encoder-layer", of(nn.TransformerEncoderLayer, **layer), noise(2, 3, 3))
    gelu_first = of(nn.TransformerEncoderLayer, **layer, norm_first=True, activation="gelu", bias=False)
    add("encoder-layer-norm-first-gelu", gelu_first, noise(2, 3, 3))
    add("encoder-padding", _encoder, _padded_encoder, classes=(nn.TransformerEncoder,), include="layers.1.*")
    memory = lambda: ((torch.randn(2, 2, 3), torch.randn(2, 3, 3)),)  # noqa: E731
    add("decoder-layer", of(nn.TransformerDecoderLayer, **layer), memory)
    decoder = lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), 1)  # noqa: E731
    add("decoder", decoder, memory, classes=(nn.TransformerDecoder,), include="*attn*")
    whole = of(nn.Transformer, 4, 2, 1, 1, 2, batch_first=True)
    add("transformer", whole, lambda: ((torch.randn(1, 2, 4), torch.randn(1, 3, 4)),), include="*norm*")


def _encoder() -> nn.Module:
    """Two heads, so that evaluation under no_grad would take torch's fused path, which zeroes padded positions."""
    layer = nn.TransformerEncoderLayer(4, 2, 2, batch_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(4))


def _query_key_value() -> Any:
    return ((torch.randn(3, 2, 4), torch.randn(2, 2, 4), torch.randn(2, 2, 4)),)


def _other_sizes() -> Any:
    return ((torch.randn(2, 3, 4), torch.randn(2, 2, 3), torch.randn(2, 2, 2)),)


def _padded_attention() -> Any:
    x = torch.randn(2, 3, 2)
    mask = torch.tensor([[False, False, True], [False, False, False]])
    return {"query": x, "key": x, "value": x, "key_padding_mask": mask}


def _padded_encoder() -> Any:
    mask = torch.tensor([[False, False, True], [False, False, False]])
    return {"src": torch.randn(2, 3, 4), "src_key_padding_mask": mask}


def losses_with_parameters() -> None:
    adaptive = of(nn.AdaptiveLogSoftmaxWithLoss, 4, 6, cutoffs=[2, 4], div_value=2.0)
    labels = torch.tensor([0, 5, 2, 3, 1])
    add("adaptive-log-softmax", adaptive, lambda: {"input_": torch.randn(5, 4), "target_": labels}, loss_fn=_its_loss)
    biased = of(nn.AdaptiveLogSoftmaxWithLoss, 3, 5, cutoffs=[2], div_value=1.5, head_bias=True)
    add("adaptive-log-softmax-bias", biased, lambda: ((torch.randn(5, 3), labels % 5),))
    if hasattr(nn, "LinearCrossEntropyLoss"):
        fused = of(nn.LinearCrossEntropyLoss, 3, 4, bias=True)
        add("linear-cross-entropy", fused, lambda: ((torch.randn(5, 3), labels % 4),), loss_fn=_as_it_is)
        smooth = of(nn.LinearCrossEntropyLoss, 2, 4, reduction="sum", label_smoothing=0.1)
        add("linear-cross-entropy-smooth", smooth, lambda: ((torch.randn(5, 2), labels % 4),), loss_fn=_as_it_is)


def _its_loss(output: Any) -> Tensor:
    loss: Tensor = output.loss
    return loss


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


def parametrized() -> None:
    add("weight-norm", lambda: parametrizations.weight_norm(nn.Linear(3, 2)), noise(4, 3))
    add("weight-norm-conv", lambda: parametrizations.weight_norm(nn.Conv1d(2, 2, 2), dim=1), noise(2, 2, 4))
    for kind in ("matrix_exp", "cayley"):
        add(f"orthogonal-{kind}", _orthogonal(kind, 3, 3), noise(4, 3))
    signs = {f"{mode} parametrizations.weight.original": "kink undecided" for mode in ("eval", "train")}
    # torch truncates the diagonal, ±1, to integers: J jumps there
    add("orthogonal-householder", _orthogonal("householder", 3, 3), noise(4, 3), excused=signs)
    add("orthogonal-tall", _orthogonal("householder", 2, 4), noise(4, 2), excused=signs)
    add("spectral-norm", lambda: parametrizations.spectral_norm(nn.Linear(3, 2)), noise(4, 3))
    add("old-weight-norm", _old_weight_norm, noise(4, 3))
    add("old-spectral-norm", _old_spectral_norm, noise(4, 3))
    add("pruned", _pruned, noise(4, 3))


def _orthogonal(kind: str, inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: parametrizations.orthogonal(nn.Linear(inputs, outputs), orthogonal_map=kind)


def _old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Linear(3, 2))


def _old_spectral_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.spectral_norm(nn.Linear(3, 2))


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    layer = nn.Linear(3, 2)
    prune.custom_from_mask(layer, "weight", torch.tensor([[1, 0, 1], [0, 1, 1]]))
    return layer


class ListUser(nn.Module):
    """Parameters in a ParameterList, one of them 0-dim and one empty."""

    def __init__(self) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = [(3, 2), (), (0, 2), (2,)]
        self.items = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        weight, scale, empty, bias = self.items
        return torch.tanh(x @ weight) * scale + bias + empty.sum()


class DictUser(nn.Module):
    """Parameters in a ParameterDict inside a ModuleDict inside a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.ParameterDict({"weight": nn.Parameter(torch.randn(3, 2)), "bias": nn.Parameter(torch.randn(2))})
        self.groups = nn.ModuleList([nn.ModuleDict({"first": inner})])

    def forward(self, x: Tensor) -> Tensor:
        first = self.groups[0]["first"]
        return torch.sigmoid(x @ first["weight"] + first["bias"])


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(4, 2)
        self.mix = nn.Linear(2, 2)
        self.head = nn.Linear(2, 4, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.tokens(x))))


class Phase(nn.Module):
    """A complex weight and bias, with a real output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.randn(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.weight.dtype) @ self.weight + self.bias
        return y.abs() ** 2 + y.real * 0.5


EMPTY = {"eval items.2": "flat unused match", "train items.2": "flat unused match"}
"""A parameter with no entries: nothing to prove, so neither match nor wrong."""


def containers() -> None:
    stack = lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))  # noqa: E731
    add("sequential", stack, noise(4, 3), classes=(nn.Sequential,))
    add("parameter-list", ListUser, noise(4, 3), classes=(nn.ParameterList,), excused=EMPTY)
    owners = (nn.ParameterDict, nn.ModuleDict, nn.ModuleList)
    add("parameter-dict", DictUser, noise(4, 3), classes=owners)
    add("data-parallel", lambda: nn.DataParallel(nn.Linear(3, 2)), noise(4, 3), classes=(nn.DataParallel,))
    add("tied", Tied, lambda: torch.tensor([0, 3, 1]))
    add("complex", Phase, noise(3, 2))


for _family in (
    linear_layers,
    convolutions,
    transposed_convolutions,
    normalisations,
    embeddings,
    recurrent_nets,
    attention,
    losses_with_parameters,
    parametrized,
    containers,
):
    _family()


ABSTRACT = {
    "RNNBase": "the base of RNN, LSTM and GRU; it has no forward of its own",
    "RNNCellBase": "the base of the cells; it has no forward of its own",
}


@functools.cache
def parametric_classes() -> list[type[nn.Module]]:
    """The classes of torch.nn whose source, bases included, makes a parameter or a module that has one."""
    makers = {"Parameter", "UninitializedParameter", "register_parameter", "_get_clones"}
    classes = [c for _, c in inspect.getmembers(nn, inspect.isclass) if issubclass(c, nn.Module) and c is not nn.Module]
    found: set[type[nn.Module]] = set()
    while True:
        more = {c for c in classes if c not in found and _called_names(c) & makers}
        if not more:
            return sorted(found, key=lambda c: c.__name__)
        found |= more
        makers |= {c.__name__ for c in more}


@functools.cache
def _called_names(cls: type[nn.Module]) -> frozenset[str]:
    """Names called in the source of a class and its bases below nn.Module."""
    names: set[str] = set()
    for base in cls.__mro__:
        if issubclass(base, nn.Module) and base is not nn.Module:
            for node in ast.walk(ast.parse(inspect.getsource(base))):
                if isinstance(node, ast.Call):
                    names.add(getattr(node.func, "attr", getattr(node.func, "id", "")))
    return frozenset(names)
