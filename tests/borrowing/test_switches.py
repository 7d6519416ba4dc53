from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrize

from torch_gradcheck.borrowing.random_state import RandomState, is_generator, seed_everything
from torch_gradcheck.borrowing.switches import SwitchState


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    switches, generators = SwitchState(), RandomState.of_everything()
    yield
    switches.restore()
    generators.restore()


SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "default dtype": (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float16)),
    "grad mode": (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
    "anomaly mode": (torch.is_anomaly_enabled, lambda: torch.set_anomaly_enabled(True)),
    "autocast": (lambda: torch.is_autocast_enabled("cpu"), lambda: torch.set_autocast_enabled("cpu", True)),
    "autocast dtype": (
        lambda: torch.get_autocast_dtype("cpu"),
        lambda: torch.set_autocast_dtype("cpu", torch.float16),
    ),
    "autocast cache": (torch.is_autocast_cache_enabled, lambda: torch.set_autocast_cache_enabled(False)),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    ),
    "attention's fast path": (
        torch.backends.mha.get_fastpath_enabled,
        lambda: torch.backends.mha.set_fastpath_enabled(False),
    ),
    "attention's kernels": (
        torch.backends.cuda.flash_sdp_enabled,
        lambda: torch.backends.cuda.enable_flash_sdp(False),
    ),
    "parametrize cache": (lambda: parametrize._cache_enabled, lambda: setattr(parametrize, "_cache_enabled", 3)),
    "cudnn benchmark": (
        lambda: torch.backends.cudnn.benchmark,
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
    ),
}


@pytest.mark.parametrize(("read", "change"), SWITCHES.values(), ids=SWITCHES)
def test_a_switch_comes_back(read: Callable[[], Any], change: Callable[[], Any]) -> None:
    before, state = read(), SwitchState()
    change()
    assert read() != before
    state.restore()
    assert read() == before


@pytest.mark.parametrize(("read", "change"), SWITCHES.values(), ids=SWITCHES)
def test_a_switch_of_the_callers_comes_back_after_settling(read: Callable[[], Any], change: Callable[[], Any]) -> None:
    change()
    theirs, state = read(), SwitchState()
    state.settle(torch.float64, coordinates=10)
    state.restore()
    assert read() == theirs


def test_settled_is_one_regime_whatever_the_callers() -> None:
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    SwitchState().settle(torch.float64, coordinates=10)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float64
    assert not torch.backends.mha.get_fastpath_enabled()


def test_the_number_of_threads_comes_back() -> None:
    before, state = torch.get_num_threads(), SwitchState()
    state.settle(torch.float64, coordinates=10)
    state.restore()
    assert torch.get_num_threads() == before


GENERATORS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "torch": (None, lambda _: torch.rand(3).tolist()),
    "numpy": (None, lambda _: np.random.rand(3).tolist()),
    "python": (None, lambda _: random.random()),
    "torch generator": (torch.Generator(), lambda g: torch.rand(3, generator=g).tolist()),
    "numpy generator": (np.random.default_rng(3), lambda g: g.normal(size=3).tolist()),
    "numpy RandomState": (np.random.RandomState(3), lambda g: g.normal(size=3).tolist()),
    "python Random": (random.Random(3), lambda g: g.gauss(0, 1)),
}
every_generator = pytest.mark.parametrize(("generator", "draw"), GENERATORS.values(), ids=GENERATORS)


def state_of(generator: Any) -> RandomState:
    return RandomState.of_everything([] if generator is None else [generator])


@every_generator
def test_a_generator_goes_back(generator: Any, draw: Callable[[Any], Any]) -> None:
    state = state_of(generator)
    first = draw(generator)
    assert draw(generator) != first
    state.restore()
    assert draw(generator) == first


@every_generator
def test_narrowed_to_those_that_moved(generator: Any, draw: Callable[[Any], Any]) -> None:
    state = state_of(generator)
    first = draw(generator)
    state.narrow_to_moved()
    for _ in range(2):
        state.restore()
        assert draw(generator) == first


def test_what_did_not_move_is_left_alone_after_narrowing() -> None:
    state = RandomState.of_everything()
    torch.rand(1)
    state.narrow_to_moved()
    drawn = random.random()
    state.restore()
    assert random.random() != drawn


def test_a_seed_seeds_everything() -> None:
    draws = []
    for _ in range(2):
        seed_everything(2**63 - 1)
        draws.append((torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()))
    assert draws[0] == draws[1]
    seed_everything(0)
    assert torch.rand(2).tolist() != draws[0][0]


@pytest.mark.parametrize("value", [3, "seed", None, random, np.random, torch.rand, random.SystemRandom()])
def test_other_things_are_no_generators(value: object) -> None:
    assert not is_generator(value)
