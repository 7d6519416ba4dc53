"""Promise: what cannot be checked is refused in words that name what the caller gave, and what to do about it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.snapshot import Snapshot
from torch_gradcheck import (
    GradcheckError,
    GradientMonitor,
    InvalidRequestError,
    NonFiniteLossError,
    NonScalarLossError,
    blind_spots,
    check_closure,
    check_function,
    check_module,
)
from torch_gradcheck.borrowing import loan
from torch_gradcheck.errors import MisfitError

X, Y = torch.linspace(-1, 1, 35).reshape(5, 7), torch.tensor([0, 1, 2, 0, 1])
LOSS = nn.CrossEntropyLoss()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3))


def my_loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


class Product(nn.Module):
    """Multiplies by its own weight, in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Converts(nn.Module):
    """Calls a method that tensors have."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.float())  # type: ignore[no-any-return]


class Two(nn.Linear):
    """Returns a tuple."""

    def __init__(self) -> None:
        super().__init__(7, 3)

    def forward(self, input: Tensor) -> Any:  # noqa: A002  as torch names it
        return super().forward(input), input


class Named(Two):
    """Returns a mapping."""

    def forward(self, input: Tensor) -> Any:  # noqa: A002
        return {"scores": super().forward(input)[0]}


class Reads(nn.Module):
    """Takes an array."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 3)

    def forward(self, x: Any) -> Tensor:
        return self.last(torch.from_numpy(x).to(self.last.weight))  # type: ignore[no-any-return]


class Unfinished(nn.Module):
    """Has no forward."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 3)


class Misspelt(Unfinished):
    """Has one by another name."""

    def foward(self, x: Tensor) -> Tensor:
        return self.last(x)  # type: ignore[no-any-return]


class Silent(Unfinished):
    """Forgets to return what it computes."""

    def forward(self, x: Tensor) -> None:
        self.last(x)


class Unprepared(nn.Module):
    """Has not called the constructor of modules."""

    def __init__(self) -> None:
        pass


class Nothing(NamedTuple):
    """A tuple with names, for nothing."""


async def later(output: Tensor, labels: Tensor) -> Tensor:
    return my_loss(output, labels)


def yields(output: Tensor, labels: Tensor) -> Iterator[Tensor]:
    yield my_loss(output, labels)


Case = tuple[Callable[[], object], type[GradcheckError], tuple[str, ...]]


def of_batch(batch: Any, *words: str, model: Any = None, loss_fn: Any = LOSS, kind: Any = InvalidRequestError) -> Case:
    return lambda: check_module(net() if model is None else model, loss_fn, batch), kind, words


def of_loss(loss_fn: Any, *words: str, kind: type[GradcheckError] = NonScalarLossError) -> Case:
    return lambda: check_module(net(), loss_fn, (X, Y)), kind, words


def of_layer(layer: nn.Module, x: Tensor, *words: str, loss_fn: Any = torch.sum) -> Case:
    return lambda: check_module(nn.Sequential(layer), loss_fn, x), MisfitError, (f"'0' ({type(layer).__name__}", *words)


def of_model(model: Any, *words: str) -> Case:
    return lambda: check_module(model, LOSS, (X, Y)), InvalidRequestError, ("model", *words)


def first(outputs: tuple[Tensor, ...]) -> Tensor:
    return outputs[0].sum()


DATA = TensorDataset(X, Y)

REFUSED: dict[str, Case] = {
    # what is no batch
    "loader": of_batch(DataLoader(DATA), "batch is a DataLoader", "next(iter(loader))"),
    "loader of workers": of_batch(DataLoader(DATA, num_workers=2), "batch is a DataLoader"),
    "loader in a tuple": of_batch((DataLoader(DATA), Y), "batch[0] is a DataLoader"),
    "dataset": of_batch(DATA, "batch is a TensorDataset", "next(iter(DataLoader(dataset)))"),
    "iterator of a loader": of_batch(iter(DataLoader(DATA)), "batch is a", "only once", "next(...)"),
    "list iterator": of_batch(iter([(X, Y)]), "batch is a list_iterator", "next(...)"),
    "generator": of_batch(((X, Y) for _ in range(2)), "batch is a generator"),
    "zip": of_batch(zip([X], [Y], strict=True), "batch is a zip"),
    "enumerate in a list": of_batch([X, enumerate([Y])], "batch[1] is an enumerate"),
    "generator among inputs": of_batch(((X, {"more": iter([X])}), Y), "batch[0][1]['more'] is a list_iterator"),
    "loader in a mapping": of_batch({"input": DataLoader(DATA)}, "batch['input'] is a DataLoader"),
    "none": of_batch(None, "batch is None", "check_closure", "(inputs, *targets)"),
    "empty tuple": of_batch((), "batch is empty", "(inputs, *targets)"),
    "empty list": of_batch([], "batch is empty"),
    "empty named tuple": of_batch(Nothing(), "batch is empty"),
    "model as batch": of_batch(net(), "batch is a Sequential", "check_module(model, loss_fn, batch)"),
    "function as batch": of_batch(my_loss, "batch is my_loss at", "check_module(model, loss_fn, batch)"),
    "class as batch": of_batch(nn.Linear, "batch is a type"),
    "meta": of_batch((X.to("meta"), Y), "batch[0] is on the meta device", "on the device of the model"),
    "optimizer as batch": of_batch(torch.optim.SGD([X], 0.1), "batch is a SGD"),
    "string": of_batch("text", "batch is a str", "tokenizer", kind=MisfitError),
    "string in a tuple": of_batch(("text", Y), "batch[0] is a str", kind=MisfitError),
    "string, an attribute": of_batch("text", "batch is a str", model=Converts(), loss_fn=torch.sum),
    "array": of_batch(X.numpy(), "batch is a numpy array of shape (5, 7)", "torch.from_numpy(batch)", kind=MisfitError),
    "array in a tuple": of_batch((X.numpy(), Y), "batch[0] is a numpy array", "torch.from_numpy(batch[0])"),
    "array of targets": of_batch((X, Y.numpy()), "batch[1] is a numpy array of shape (5,)", "from_numpy(batch[1])"),
    "array, an attribute": of_batch(X.numpy(), "batch is a numpy array", model=Converts(), loss_fn=torch.sum),
    "lists of numbers": of_batch((X.tolist(), Y), "batch does not fit model", "torch.tensor(inputs)"),
    "inputs alone": of_batch(X, "batch does not fit loss_fn", "brings no targets", "(inputs, targets)"),
    "list of one": of_batch([X], "batch does not fit loss_fn", "brings no targets"),
    "too many targets": of_batch((X, Y, Y, Y), "batch does not fit loss_fn", "4 positional", "CrossEntropyLoss"),
    "other keywords": of_batch(({"x": X}, Y), "batch does not fit model", "['x']", "(input)"),
    "no samples": of_batch((X[:0], Y[:0]), "batch[0] of shape (0, 7)", "no sample", kind=NonFiniteLossError),
    # what does not fit a layer
    "features": of_batch((X[:, :6], Y), "'0' (Linear(", "(5, 6)", "(8, 7)", "(..., 7)", "batch[0] of shape (5, 6)"),
    "integers": of_batch((X.long(), Y), "'0' (Linear(", "int64", "floating point", ".float()"),
    "own code": (
        lambda: check_module(nn.Sequential(Product()), torch.sum, X),
        MisfitError,
        ("'0' (Product), at", "test_refusals.py", "calls torch.Tensor.matmul", "(5, 7) and (4, 3)"),
    ),
    "convolution": of_layer(nn.Conv2d(3, 4, 3), torch.ones(2, 1, 8, 8), "(2, 1, 8, 8)", "(4, 3, 3, 3)", "(N, 3, ...)"),
    "convolution of 2": of_layer(nn.Conv2d(3, 4, 3), torch.ones(2, 3), "(2, 3)", "2 dimensions behind"),
    "small images": of_layer(nn.Conv2d(3, 4, 3), torch.ones(2, 3, 2, 2), "(2, 3, 2, 2)", "Kernel size"),
    "batch norm": of_layer(nn.BatchNorm1d(4), torch.ones(2, 3), "(2, 3)", "(N, 4)"),
    "batch norm of images": of_layer(nn.BatchNorm2d(4), torch.ones(2, 4), "(2, 4)", "(N, 4, ...)"),
    "layer norm": of_layer(nn.LayerNorm(4), torch.ones(2, 3), "(2, 3)", "(..., 4)"),
    "group norm": of_layer(nn.GroupNorm(2, 4), torch.ones(2, 3, 5), "(2, 3, 5)", "(N, 4, ...)"),
    "LSTM": of_layer(nn.LSTM(4, 3), torch.ones(5, 2, 3), "(5, 2, 3)", "(length, batch, 4)", loss_fn=first),
    "no forward": of_batch(
        (X, Y), "the model itself (Unfinished) was called and has no forward", "def forward(self", model=Unfinished()
    ),
    "misspelt forward": of_batch(
        (X, Y), "'0' (Misspelt)", "no forward; is its foward meant?", model=nn.Sequential(Misspelt())
    ),
    "no return": of_batch(
        (X, Y), "the model returned None: is the `return`", model=Silent(), loss_fn=nn.MSELoss(), kind=MisfitError
    ),
    "no return inside": of_batch(
        (X, Y),
        "'1' (Linear(",
        "was given None",
        "is a `return` missing",
        model=nn.Sequential(Silent(), nn.Linear(3, 3)),
    ),
    "unflatten": of_batch((X, Y), "'0' (Unflatten(", "(5, 7)", model=nn.Sequential(nn.Unflatten(1, (2, 3)), net())),
    "attention": (
        lambda: check_module(nn.MultiheadAttention(4, 2, batch_first=True), first, ((torch.ones(5, 2, 3),) * 3,)),
        MisfitError,
        ("the model itself (MultiheadAttention", "(batch, length, 4)", "(5, 2, 3)"),
    ),
    "large indices": of_layer(nn.Embedding(10, 3), torch.tensor([1, 12]), "from 1 to 12", "10 rows", "from 0 to 9"),
    "negative indices": of_layer(nn.Embedding(10, 3), torch.tensor([-1, 2]), "from -1 to 2"),
    "floating indices": of_layer(nn.Embedding(10, 3), torch.ones(2), "float64", "integer indices", ".long()"),
    "a list of modules": (
        lambda: check_module(nn.ModuleList([nn.Linear(7, 3)]), torch.sum, X),
        MisfitError,
        ("the model itself (ModuleList) was called and has no forward", "nn.Sequential"),
    ),
    # what does not fit a loss
    "large labels": of_batch((X, Y + 3), "loss_fn (CrossEntropyLoss)", "3 classes", "from 3 to 5", kind=MisfitError),
    "labels in own code": of_batch((X, Y + 3), "loss_fn (my_loss at", "test_refusals.py", "from 3", loss_fn=my_loss),
    "floating labels": of_batch((X, Y.float()), "loss_fn", "3 classes", "floating point", ".long()", kind=MisfitError),
    "one-hot labels": of_batch((X, F.one_hot(Y, 3)), "loss_fn", "(5, 3) int64", "probabilities", kind=MisfitError),
    "fewer labels": of_batch((X, Y[:3]), "loss_fn", "(5, 3)", "(3,) int64", "batch[1] of shape (3,)", kind=MisfitError),
    "targets of MSE": of_batch((X, torch.ones(5, 2)), "loss_fn (MSELoss)", "(5, 3)", "(5, 2)", loss_fn=nn.MSELoss()),
    "targets of BCE": of_batch((X, Y), "(BCEWithLogitsLoss)", "the same shape", loss_fn=nn.BCEWithLogitsLoss()),
    "tuple of the model": of_batch(
        (X, Y), "the model returned a tuple ([0] is", "(CrossEntropyLoss)", "loss(out[0]", model=Two()
    ),
    "mapping of the model": of_batch(
        (X, Y), "the model returned a dict (['scores'] is", "loss(out['scores']", model=Named(), loss_fn=my_loss
    ),
    "tuple and MSE": of_batch((X, Y), "the model returned a tuple", "(MSELoss)", model=Two(), loss_fn=nn.MSELoss()),
    "tuple and a builtin": of_batch(X, "the model returned a tuple", "(sum)", model=Two(), loss_fn=torch.sum),
    # what a loss function returns
    "loss and logits": of_loss(lambda y, _: (y.sum(), y), "loss_fn (lambda at", "a tuple (", "the loss alone", "[0]"),
    "logits and loss": of_loss(lambda y, _: [y, y.sum()], "a list (", "return the loss alone", "item [1]"),
    "mapping": of_loss(lambda y, _: {"my_loss": y.sum()}, "a dict", "['my_loss']", "return the loss alone"),
    "mapping without": of_loss(lambda y, _: {"a": y.sum()}, "a dict with the keys ['a']"),
    "output object": of_loss(
        lambda y, _: SimpleNamespace(loss=y.sum()), "SimpleNamespace", "`lambda out, ...: out.loss`"
    ),
    "nothing": of_loss(lambda y, _: None, "None", "is its `return` missing?"),
    "entries": of_loss(
        nn.CrossEntropyLoss(reduction="none"), "(CrossEntropyLoss)", "(5,)", ".mean()", "reduction='none'"
    ),
    "item": of_loss(lambda y, _: y.sum().item(), "a float, not a tensor", "without .item()"),
    "numpy scalar": of_loss(lambda y, _: y.detach().numpy().sum(), "a numpy float64, not a tensor", ".numpy()"),
    "numpy array": of_loss(lambda y, _: y.detach().numpy(), "a numpy array of shape (5, 3), not a tensor"),
    "complex": of_loss(lambda y, _: y.sum() * 1j, "complex", ".real"),
    "integer": of_loss(lambda y, _: y.argmax(), "int64", "argmax"),
    "comparison": of_loss(lambda y, _: (y > 0).all(), "bool", "no gradient"),
    "function": of_loss(lambda y, _: y.sum, "a builtin_function_or_method, not a tensor", "call it"),
    "string from a loss": of_loss(lambda y, _: "loss", "a str, not a tensor"),
    "generator from a loss": of_loss(lambda *given: iter(yields(*given)), "a generator, not a tensor", "`yield`"),
    "sparse": of_loss(lambda y, _: y.to_sparse(), "no ordinary tensor", "sparse"),
    # functions that are none
    "generator function": of_loss(yields, "loss_fn", "`yield`", kind=InvalidRequestError),
    "coroutine": of_loss(later, "loss_fn", "`async`", kind=InvalidRequestError),
    "class of a loss": of_loss(nn.MSELoss, "class MSELoss", "MSELoss(...)", kind=InvalidRequestError),
    "optimizer": of_loss(torch.optim.SGD([X], 0.1), "loss_fn", "optimizer", kind=InvalidRequestError),
    "value of a loss": of_loss(torch.tensor(1.0), "loss_fn", "a value", "the function", kind=InvalidRequestError),
    "word": of_loss("mse", "loss_fn", "callable", "'mse'", kind=InvalidRequestError),
    "swapped": of_batch(LOSS, "loss_fn", "Is that the batch?", "(model, loss_fn, batch)", loss_fn=(X, Y)),
    # models that are none
    "function as model": of_model(torch.sum, "check_function"),
    "class as model": of_model(nn.Linear, "class Linear", "Linear(...)"),
    "state_dict": of_model(net().state_dict(), "state_dict", "load_state_dict"),
    "optimizer as model": of_model(torch.optim.SGD([X], 0.1), "optimizer"),
    "module without its constructor": of_model(Unprepared(), "super().__init__()", "Unprepared"),
    "path": of_model("model.pt", "'model.pt'"),
    # other entries
    "closure": (lambda: check_closure(net(), lambda: None), NonScalarLossError, ("closure (lambda at", "`return`")),
    "closure with a model": (
        lambda: check_closure(model := net(), lambda: model(X[:, :6]).sum()),
        MisfitError,
        ("'0' (Linear(", "(5, 6)", "(..., 7)"),
    ),
    "closure that waits": (lambda: check_closure(net(), later), InvalidRequestError, ("closure", "`async`")),
    "function of torch": (
        lambda: check_function(torch.matmul, (torch.ones(2, 3), torch.ones(2, 3))),
        MisfitError,
        ("function (matmul) was given", "(2, 3) and (2, 3)"),
    ),
    "function of one's own": (
        lambda: check_function(lambda a, b: a + b, {"a": torch.ones(2), "b": torch.ones(3)}),
        MisfitError,
        ("function (lambda at", "calls torch.Tensor.add", "a of shape (2,)", "b of shape (3,)"),
    ),
    "no backward for sparse tensors": (
        lambda: check_function(lambda x: x.sin().to_dense(), (torch.eye(3).to_sparse(),)),
        MisfitError,
        ("the backward of an operation has no kernel", "'aten::cos'", "'SparseCPU' backend)", "x.to_dense()"),
    ),
    "blind spots": (
        lambda: blind_spots(net(), LOSS, DataLoader(DATA)),
        InvalidRequestError,
        ("batch is a DataLoader",),
    ),
    "monitor": (
        lambda: GradientMonitor(net(), LOSS).step(DataLoader(DATA)),
        InvalidRequestError,
        ("batch is a DataLoader",),
    ),
    "candidate": (
        lambda: check_module(net(), LOSS, (X[:, :6], Y), reference=net()),
        MisfitError,
        ("'0' (Linear(", "(5, 6)", "(..., 7)"),
    ),
    "half": (
        lambda: check_module(net().half(), LOSS, (X, Y), reference=net()),
        MisfitError,
        ("'0' (Linear(", "torch.float16", "torch.float32"),
    ),
    "second order": (
        lambda: check_module(net(), LOSS, (X[:, :6], Y), order=2),
        MisfitError,
        ("'0' (Linear(", "(5, 6)"),
    ),
    "held": (
        lambda: check_module(net(), LOSS, (X[:, :6], Y), hold_detached=True),
        MisfitError,
        ("'0' (Linear(", "(5, 6)"),
    ),
}


@pytest.mark.parametrize(("check", "kind", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_the_refusal_names_what_was_given(
    check: Callable[[], object], kind: type[GradcheckError], words: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        check()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@pytest.mark.parametrize(("of_model", "named"), [(True, "a tensor of the model"), (False, "a tensor of the batch")])
def test_a_device_without_float64_is_told_of(monkeypatch: pytest.MonkeyPatch, of_model: bool, named: str) -> None:
    asked: list[torch.device] = []

    def lacks(device: torch.device) -> bool:
        asked.append(device)
        return not of_model and len(asked) <= 4  # the parameters come first

    monkeypatch.setattr(loan, "has_float64", lacks)
    with pytest.raises(InvalidRequestError, match=rf"{named} is on cpu, which has no float64.*dtype=torch.float32"):
        check_module(net(), LOSS, (X, Y))
    assert check_module(net(), LOSS, (X, Y), dtype=torch.float32).method


def test_an_iterator_loses_nothing() -> None:
    given = iter([(X, Y), (X, Y)])
    with pytest.raises(InvalidRequestError):
        check_module(net(), LOSS, given)
    assert len(list(given)) == 2


def test_an_array_that_the_model_takes_goes_through() -> None:
    assert check_module(Reads(), LOSS, (X.numpy(), Y)).passed


@pytest.mark.parametrize(
    "batch",
    [(X[:, :6], Y), (X, Y + 3), (X.numpy(), Y), DataLoader(DATA)],
    ids=["features", "labels", "array", "loader"],
)
def test_a_refusal_leaves_all_as_it_was(batch: Any) -> None:
    model = net().train()
    before = Snapshot(model=model, batch=batch if isinstance(batch, tuple) else ())
    with pytest.raises(InvalidRequestError):
        check_module(model, LOSS, batch)
    assert before.changes() == []


class Unshown(nn.Linear):
    def extra_repr(self) -> str:
        raise AssertionError("the words of a module are the user's code")


def test_a_module_that_cannot_be_printed_is_named_by_its_class() -> None:
    with pytest.raises(InvalidRequestError, match=r"'1' \(Unshown\).* shapes .*3, 4"):
        check_module(nn.Sequential(nn.Identity(), Unshown(4, 3)), torch.sum, torch.ones(2, 5))


def test_what_torch_said_is_the_cause_and_can_be_caught_as_before() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied") as caught:
        check_module(net(), LOSS, (X[:, :6], Y))
    assert isinstance(caught.value, InvalidRequestError)
    assert type(caught.value.__cause__) is RuntimeError
    assert caught.value.__cause__.__traceback__ is None  # none of its frames is the user's
    with pytest.raises(IndexError, match="out of bounds"):
        check_module(net(), LOSS, (X, Y + 3))


def test_what_torch_said_is_shown_at_the_users_lines() -> None:
    with pytest.raises(MisfitError) as caught:
        check_module(nn.Sequential(Product()), torch.sum, X)
    assert caught.value.__cause__ is not None
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert [(frame.filename, frame.name) for frame in frames] == [(__file__, "forward")]


# The user's own exceptions ----------------------------------------------------------------------------------------


def raising(error: Exception) -> Callable[..., Tensor]:
    def refuse(*_: Any) -> Tensor:
        raise error

    return refuse


def of_another(*_: Any) -> Tensor:
    try:
        return X @ X
    except RuntimeError as error:
        raise RuntimeError("my own words") from error


def without_a_key(*_: Any) -> Tensor:
    return {"a": X}["b"]


def off_a_list(*_: Any) -> Tensor:
    losses = [X]
    return losses[len(losses)]


def of_python(*_: Any) -> Tensor:
    numbers = {1: X}
    for key in numbers:
        numbers[key + 1] = X
    return X


def singular(output: Tensor, _: Any) -> Tensor:
    return torch.linalg.cholesky(-torch.eye(3).to(output) + 0 * output[0]).sum()


def out_of_its_support(output: Tensor, _: Any) -> Tensor:
    return torch.distributions.Normal(output, -output.exp(), validate_args=True).log_prob(output).sum()


PASSING: dict[str, tuple[Callable[..., Any], type[Exception], str]] = {
    "words of torch's": (raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")), RuntimeError, "^mat1"),
    "index": (raising(IndexError("index out of range in self")), IndexError, "^index out"),
    "memory": (raising(torch.OutOfMemoryError("CUDA out of memory")), torch.OutOfMemoryError, "^CUDA out"),
    "device": (raising(RuntimeError("CUDA error: device-side assert")), RuntimeError, "^CUDA error"),
    "another": (of_another, RuntimeError, "^my own words$"),
    "key": (without_a_key, KeyError, "b"),
    "list": (off_a_list, IndexError, "^list index out of range$"),
    "python": (of_python, RuntimeError, "^dictionary changed"),
    "singular": (singular, torch.linalg.LinAlgError, "cholesky"),
    "distribution": (out_of_its_support, ValueError, "^Expected parameter scale"),
}


@pytest.mark.parametrize(("loss_fn", "kind", "words"), PASSING.values(), ids=PASSING)
def test_what_torch_does_not_refuse_comes_through(loss_fn: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        check_module(net(), loss_fn, (X, Y))
    assert not isinstance(caught.value, GradcheckError)


def test_an_error_that_comes_once_comes_through() -> None:
    """What torch refuses must be refused again before it is told of: else nobody knows who has raised."""
    calls: list[int] = []

    def once(output: Tensor, _: Any) -> Tensor:
        calls.append(1)
        return output @ output if len(calls) == 1 else output.sum()

    class Hidden:
        __slots__ = ()

        def __call__(self, *given: Any) -> Tensor:
            return once(*given)

    with pytest.raises(RuntimeError) as caught:
        check_module(net(), Hidden(), (X, Y))
    assert not isinstance(caught.value, GradcheckError)


@dataclass(frozen=True)
class FrozenError(Exception):
    """An error that nobody may write to, as `contextlib.contextmanager` does."""


@pytest.mark.parametrize("number", [1, 2, 3, 25])
def test_a_frozen_error_comes_through_whenever_it_comes(number: int) -> None:
    error, calls = FrozenError(), [0]

    def counted(output: Tensor, _: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == number:
            raise error
        return output.square().sum()

    with pytest.raises(FrozenError) as caught:
        check_module(nn.Linear(7, 3), counted, (X, Y))
    assert caught.value is error


def test_numbers_that_are_no_numbers_of_numpy_are_named() -> None:
    with pytest.raises(NonScalarLossError, match=r"a numpy float32, not a tensor"):
        check_module(net(), lambda *_: np.float32(1), (X, Y))
