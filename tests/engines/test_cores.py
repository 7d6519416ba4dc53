"""How many cores operations are spread over."""

import pytest
import torch

from torch_gradcheck.engines.traced.cores import PAUSE, WINDOW, Cores, on_cores


def chunk(cores: Cores, *, busy: float, on_all: float, on_one: float, parameter: int = 0, size: int = 64) -> int:
    """One chunk that takes so many windows and keeps so many cores busy where it is spread; how many it was given."""
    count = cores.next(parameter)
    seconds = WINDOW * (on_all if count > 1 else on_one)
    cores.measured(parameter, size, count, seconds, seconds * (busy if count > 1 else 1.0))
    return count


def chosen(cores: Cores, chunks: int, **costs: float) -> list[int]:
    return [chunk(cores, **costs) for _ in range(chunks)]


def test_all_cores_are_used_as_long_as_they_have_something_to_do() -> None:
    assert chosen(Cores(2), 50, busy=1.9, on_all=1, on_one=2) == [2] * 50


@pytest.mark.parametrize("share", [1, 0.3], ids=["long chunks", "short chunks"])
def test_where_other_processes_take_a_core_one_is_tried_and_kept_for_a_while(share: float) -> None:
    cores = Cores(2)
    costs = {"busy": 1.1, "on_all": 20 * share, "on_one": 1 * share}
    spread = chosen(cores, 1, **costs)
    assert spread + chosen(cores, 1 + PAUSE + 1, **costs) == [2, *[1] * (1 + PAUSE), 2]


def test_the_second_pause_is_twice_as_long() -> None:
    cores = Cores(2)
    chosen(cores, 2 + PAUSE, busy=1.1, on_all=20, on_one=1)
    assert chosen(cores, 2 + 2 * PAUSE + 1, busy=1.1, on_all=20, on_one=1) == [2, *[1] * (1 + 2 * PAUSE), 2]


def test_little_processor_time_does_not_matter_where_all_cores_are_faster_even_so() -> None:
    assert chosen(Cores(16), 20, busy=6.0, on_all=1, on_one=3) == [16, 8, *[16] * 18]


def test_as_many_cores_are_used_as_are_faster_than_half_as_many() -> None:
    best, cores, used = 4, Cores(64), []
    for _ in range(20):
        count = cores.next(0)
        seconds = WINDOW * (1 + abs(count - best))
        cores.measured(0, 64, count, seconds, seconds)
        used.append(count)
    assert used == [64, 32, 32, 16, 16, 8, 8, 4, 4, 2, *[4] * 10]


def test_a_machine_that_gets_busy_is_noticed() -> None:
    cores = Cores(2)
    assert chosen(cores, 10, busy=1.9, on_all=1, on_one=2) == [2] * 10
    assert chosen(cores, 3, busy=1.1, on_all=20, on_one=2) == [2, 1, 1]


def test_chunks_of_two_parameters_are_not_compared() -> None:
    cores = Cores(2)
    assert chunk(cores, busy=1.1, on_all=20, on_one=1, parameter=0) == 2
    assert chunk(cores, busy=1.9, on_all=1, on_one=2, parameter=1) == 2


def test_what_is_compared_is_the_time_of_one_perturbation() -> None:
    cores = Cores(2)
    assert chunk(cores, busy=1.1, on_all=4, on_one=0, size=400) == 2
    assert chunk(cores, busy=1.1, on_all=0, on_one=2, size=100) == 1
    assert chunk(cores, busy=1.9, on_all=4, on_one=0) == 2


def test_one_core_is_one_core() -> None:
    assert chosen(Cores(1), 5, busy=1.0, on_all=1, on_one=1) == [1] * 5


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()

    def interrupted() -> None:
        with on_cores(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.get_num_threads() == before
