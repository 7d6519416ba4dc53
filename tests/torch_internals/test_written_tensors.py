"""Writes to tensors are seen with their line, and autograd's words on a value that was written to are understood."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_gradcheck.torch_internals.written_tensors import Overwritten, WriteWatch, overwritten_in


def adds(y: Tensor) -> None:
    y += 1


def into(y: Tensor) -> None:
    with torch.no_grad():
        torch.add(y, 1, out=y)


def item(y: Tensor) -> None:
    y[0] = 0


def foreach(y: Tensor) -> None:
    with torch.no_grad():
        torch._foreach_add_([y], 1)


@pytest.mark.parametrize("write", [adds, into, item, foreach])
def test_the_write_that_a_backward_cannot_do_without(write: Callable[[Tensor], None]) -> None:
    x = torch.ones(3, requires_grad=True)
    watch = WriteWatch(lambda: "here")
    with watch:
        y = x.exp()
        z = torch.zeros(3).add_(1)
        write(y)
        with pytest.raises(RuntimeError) as caught:
            torch.autograd.backward([(y * z).sum()])
    found = overwritten_in(caught.value)
    assert found == Overwritten((3,), "Exp", 0, 1)
    (seen,) = watch.of(found)
    assert (seen.shape, seen.place, seen.node) == ((3,), "here", "ExpBackward0")
    assert seen.line is not None
    assert seen.line.file == __file__


def test_other_words_are_not_understood() -> None:
    assert overwritten_in(RuntimeError("one of the variables")) is None
    assert overwritten_in(ValueError("x")) is None


@pytest.mark.parametrize("name", ["Exp", "ExpBackward0"], ids=["torch 2.13", "torch 2.6"])
def test_the_operation_has_one_name_in_every_torch(name: str) -> None:
    error = RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[torch.FloatTensor [2, 3]], which is output 0 of {name}, is at version 1; expected version 0 instead."
    )
    assert overwritten_in(error) == ((2, 3), "Exp", 0, 1)
