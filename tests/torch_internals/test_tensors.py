"""What lies under a tensor object, and why a check needs it: lending by swap, versions, storages."""

from __future__ import annotations

import weakref

import pytest
import torch

from torch_gradcheck.torch_internals.missing import MissingInTorchError
from torch_gradcheck.torch_internals.tensors import (
    is_efficient_zero,
    is_wrapper,
    keeping_versions,
    storage_key,
    swap,
    version_of,
    weak_storage,
)


def test_swapped_tensors_stand_for_each_others_numbers() -> None:
    """The caller's parameter objects stand for float64 copies while the model is lent."""
    one, other = torch.nn.Parameter(torch.ones(2)), torch.zeros(3, dtype=torch.float64)
    address = one.data_ptr()
    swap(one, other)
    assert one.dtype is torch.float64
    assert one.tolist() == [0, 0, 0]
    assert other.data_ptr() == address
    swap(one, other)
    assert one.data_ptr() == address
    assert one.requires_grad


def test_a_swap_takes_gradient_version_and_graph_along_and_leaves_attributes() -> None:
    one, other = torch.ones(2, requires_grad=True), torch.zeros(2)
    one.sum().backward()
    one.mark = "mine"  # type: ignore[attr-defined]
    kept, version = one.grad, version_of(one)
    graph = one * 2
    swap(one, other)
    assert one.grad is None
    assert one.mark == "mine"  # type: ignore[attr-defined]
    swap(one, other)
    assert one.grad is kept
    assert version_of(one) == version
    graph.sum().backward()
    assert one.grad.tolist() == [3, 3]  # type: ignore[union-attr]


def test_a_tensor_with_a_weak_reference_or_in_a_graph_is_swapped_too() -> None:
    """`torch.utils.swap_tensors` refuses both; optimizers and caches of the caller's hold such references."""
    one, other = torch.ones(2, requires_grad=True), torch.zeros(2)
    reference, graph = weakref.ref(one), one * 2
    swap(one, other)
    assert reference() is one
    swap(one, other)
    assert graph.grad_fn is not None


def test_a_torch_without_the_swap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C, "_swap_tensor_impl")
    with pytest.raises(MissingInTorchError, match=r"has no torch\._C\._swap_tensor_impl, .* to lend a model copies"):
        swap(torch.ones(1), torch.ones(1))


def test_the_version_counts_writes_of_all_views_and_none_through_data() -> None:
    """What an evaluation wrote to is put back; θ, moved through `.data`, is not taken for written."""
    x = torch.zeros(4)
    before = version_of(x)
    x.view(2, 2)[0].add_(1)
    assert version_of(x) == before + 1
    x.data.add_(1)
    assert version_of(x) == before + 1


def test_tensors_of_one_storage_have_one_key() -> None:
    """The recording finds by it which value a piece of memory holds."""
    x, other = torch.zeros(4), torch.zeros(4)
    keys = {storage_key(x), storage_key(x[1:]), storage_key(x.detach()), storage_key(x.data.view(2, 2))}
    assert keys == {storage_key(x.untyped_storage())}
    assert storage_key(other) not in keys


def test_a_weak_reference_keeps_the_key_and_not_the_memory() -> None:
    """Memory that depends on θ is known by its key, which must not pass to memory that does not."""
    x = torch.zeros(1000)
    key, reference = storage_key(x), weak_storage(x)
    del x
    assert key not in {storage_key(torch.zeros(1000)) for _ in range(50)}
    assert reference.expired()  # type: ignore[attr-defined]


def test_a_tensor_made_of_tensors_is_a_wrapper() -> None:
    """A parameter without memory of its own cannot be perturbed, and is refused."""

    class Wrapper(torch.Tensor):
        def __tensor_flatten__(self) -> tuple[list[str], None]:
            return [], None

        @staticmethod
        def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: None, *_: object) -> torch.Tensor:
            return torch.zeros(0)

    assert is_wrapper(torch.zeros(2).as_subclass(Wrapper))
    assert not is_wrapper(torch.nn.Parameter(torch.zeros(2)))


def test_zeros_without_memory_are_known() -> None:
    assert is_efficient_zero(torch._efficientzerotensor(2))
    assert not is_efficient_zero(torch.zeros(2))


def test_versions_are_kept_for_a_backward_behind_what_was_put_back() -> None:
    leaf = torch.ones(2, requires_grad=True)
    squared, version = (leaf * leaf).sum(), version_of(leaf)
    with keeping_versions([leaf]), torch.no_grad():
        leaf.add_(1).sub_(1)
    assert version_of(leaf) == version
    squared.backward()
