from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.objective.batch import BatchCopy
from torch_gradcheck.objective.loss import ClosureLoss, MeanLoss, ModuleLoss

Pair = namedtuple("Pair", "inputs targets")
X, Y = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])


class Recorder(nn.Module):
    """Gives back what it was called with."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs


def call_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], tuple[Any, ...]]:
    """Positional and keyword arguments of the model, and what the loss got besides the output."""
    received: list[Any] = []

    def loss_fn(output: Any, *targets: Any) -> Tensor:
        received.extend([*output, targets])
        return torch.zeros(())

    ModuleLoss(Recorder(), loss_fn, batch).at(torch.float64)()
    args, kwargs, targets = received
    return args, kwargs, targets


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        (X, (1, [], 0)),
        ((X, Y), (1, [], 1)),
        ([X, Y, Y], (1, [], 2)),
        ((X,), (1, [], 0)),
        (Pair(X, Y), (1, [], 1)),
        (((X, Y), Y), (2, [], 1)),
        (([X, Y], Y), (2, [], 1)),
        (({"a": X, "b": Y}, Y), (0, ["a", "b"], 1)),
        ({"a": X, "b": Y}, (0, ["a", "b"], 0)),
        (UserDict(a=X), (0, ["a"], 0)),
        ((((X, Y), X), Y), (2, [], 1)),
    ],
    ids=["tensor", "pair", "two targets", "input only", "named", "inputs", "list of inputs", "keywords",
         "mapping", "user dict", "nested inputs"],
)  # fmt: skip
def test_the_table_of_calls(batch: Any, shape: tuple[int, list[str], int]) -> None:
    args, kwargs, targets = call_of(batch)
    assert (len(args), list(kwargs), len(targets)) == shape


def test_a_packed_sequence_is_one_input() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    args, _, targets = call_of((packed, Y))
    assert len(args) == 1
    assert isinstance(args[0], torch.nn.utils.rnn.PackedSequence)
    assert args[0].data.dtype == torch.float64
    assert len(targets) == 1


@pytest.mark.parametrize("batch", [(), []], ids=["tuple", "list"])
def test_an_empty_batch(batch: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"batch is empty; give \(inputs, \*targets\)"):
        ModuleLoss(Recorder(), torch.sum, batch).at(torch.float64)


def test_floating_tensors_are_copied_in_the_precision() -> None:
    batch = {"x": X, "i": torch.tensor([1]), "c": torch.ones(1, dtype=torch.complex64), "n": 3, "s": "text"}
    copy = BatchCopy(batch, torch.float64).fresh()
    assert [copy[key].dtype for key in "xic"] == [torch.float64, torch.int64, torch.complex128]
    assert (copy["n"], copy["s"]) == (3, "text")
    assert copy["x"].data_ptr() != X.data_ptr()
    assert copy["i"].data_ptr() != batch["i"].data_ptr()


def test_one_tensor_in_two_places_is_one_copy() -> None:
    first, second = BatchCopy((X, [X]), torch.float64).fresh()
    assert first is second[0]


def test_what_an_evaluation_writes_is_undone_for_the_next() -> None:
    copy = BatchCopy([X, {"y": Y}], torch.float64)
    batch = copy.fresh()
    batch[0].mul_(0)
    batch[1]["y"].add_(1)
    batch.append("more")
    del batch[1]["y"]
    again = copy.fresh()
    assert again[0].tolist() == X.tolist()
    assert again[1]["y"].tolist() == Y.tolist()
    assert len(again) == 2
    assert X.tolist() == [1, 2]


def test_inputs_that_require_a_gradient_still_do_and_collect_none() -> None:
    x = torch.ones(2, requires_grad=True)
    copy = BatchCopy(x, torch.float64)
    batch = copy.fresh()
    assert batch.requires_grad
    assert batch.is_leaf
    batch.sum().backward()
    assert copy.fresh().grad is None
    assert x.grad is None


def test_a_batch_whose_memory_was_freed_has_it_again() -> None:
    """Reversible layers free what they are given."""
    x = torch.arange(6.0).reshape(2, 3).T
    copy = BatchCopy((x, x[1:]), torch.float64)
    for tensor in copy.fresh():
        tensor.untyped_storage().resize_(0)
    whole, part = copy.fresh()
    assert torch.equal(whole, x.double())
    assert torch.equal(part, x[1:].double())
    assert whole.stride() == (1, 3)


def test_a_tensor_on_the_meta_device() -> None:
    with pytest.raises(InvalidRequestError, match="batch holds a tensor on the meta device"):
        BatchCopy((X, torch.empty(2, device="meta")), torch.float64)


@pytest.mark.parametrize(
    ("divisor", "weights", "expected"),
    [
        pytest.param(2, (), 3.0, id="a mean"),
        pytest.param(4, (1, 3), 4.0, id="a weighted mean"),
        pytest.param(8, (1, 3), 2.0, id="another divisor"),
    ],
)
def test_the_mean_of_losses(divisor: float, weights: tuple[float, ...], expected: float) -> None:
    losses = [ClosureLoss(lambda: 1.0), ClosureLoss(lambda: 5.0)]
    assert MeanLoss(losses, divisor, weights=weights).at(None)() == expected


@pytest.mark.parametrize(("divisor", "weights", "expected"), [(1, (), 3.0), (7.0, (7.0,), 3.0), (3, (), 1.0)])
def test_the_mean_of_one_loss(divisor: float, weights: tuple[float, ...], expected: float) -> None:
    assert MeanLoss([ClosureLoss(lambda: 3.0)], divisor, weights=weights).at(None)() == expected


@pytest.mark.parametrize(
    ("batch", "inputs", "args", "kwargs", "targets"),
    [
        pytest.param((X, Y), (Y,), (Y,), {}, (Y,), id="a tuple"),
        pytest.param((X, Y, Y), {"x": Y}, (), {"x": Y}, (Y, Y), id="keywords"),
        pytest.param({"x": X}, {"x": Y}, (), {"x": Y}, (), id="a mapping"),
        pytest.param(X, (Y,), (Y,), {}, (), id="a tensor"),
    ],
)
def test_other_inputs_in_place_of_the_batches_own(
    batch: Any, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any], targets: tuple[Any, ...]
) -> None:
    found = call_of(ModuleLoss(Recorder(), lambda: None, batch).with_inputs(inputs).batch)
    assert str(found) == str(call_of(((args or kwargs), *targets)))
    assert (len(found[0]), set(found[1]), len(found[2])) == (len(args), set(kwargs), len(targets))
