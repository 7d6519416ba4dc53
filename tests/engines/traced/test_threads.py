"""The number of threads that operations are spread over."""

from collections.abc import Callable, Iterator

import pytest
import torch

from torch_gradcheck.engines.traced.threads import INTERVAL, PAUSE, OnThreads, ThreadCount


class Machine:
    """Clocks of a machine with some cores, of which a process gets a part.

    Args:
        had: how many cores the process has to itself.
    """

    def __init__(self, had: float) -> None:
        self.had = had
        self.clock = self.processor_clock = 0.0

    def run(self, count: ThreadCount, seconds: float, operations: int = 10) -> list[int]:
        """A chunk; over how many threads each of its operations was spread."""
        used = []
        with count.chunk():
            for _ in range(operations):
                used.append(torch.get_num_threads())
                self.clock += seconds / operations
                self.processor_clock += seconds / operations * min(self.had, count.used)
                count.adapt()
        count.ended()
        return used


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Machine]:
    def built(had: float) -> Machine:
        machine = Machine(had)
        monkeypatch.setattr("torch_gradcheck.engines.traced.threads.perf_counter", lambda: machine.clock)
        monkeypatch.setattr("torch_gradcheck.engines.traced.threads.process_time", lambda: machine.processor_clock)
        return machine

    return built


Built = Callable[[float], Machine]
SHORT, LONG = INTERVAL / 20, 100 * INTERVAL


def test_all_cores_are_used_as_long_as_they_are_had(machine: Built) -> None:
    count, quiet = ThreadCount(2), machine(1.9)
    for _ in range(50):
        assert quiet.run(count, SHORT) == [2] * 10
    assert quiet.run(count, LONG) == [2] * 10


def test_a_long_chunk_goes_on_with_one_core_after_the_first_look(machine: Built) -> None:
    assert machine(1.1).run(ThreadCount(2), LONG) == [2, *[1] * 9]


def test_short_chunks_are_looked_at_together(machine: Built) -> None:
    count, busy = ThreadCount(2), machine(1.1)
    used = [busy.run(count, SHORT)[-1] for _ in range(25)]
    assert used[:19] == [2] * 19
    assert used[-4:] == [1] * 4


def test_all_cores_are_tried_again_after_a_pause_and_after_longer_ones(machine: Built) -> None:
    count, busy = ThreadCount(2), machine(1.1)
    tried = [k for k in range(4 * PAUSE) if busy.run(count, LONG)[0] == 2]
    assert tried == [0, PAUSE + 1, 3 * PAUSE + 2]


def test_a_machine_that_gets_busy_is_noticed_and_one_that_gets_quiet_too(machine: Built) -> None:
    count, changing = ThreadCount(2), machine(1.9)
    assert changing.run(count, LONG) == [2] * 10
    changing.had = 1.1
    assert changing.run(count, LONG)[-1] == 1
    changing.had = 1.9
    assert [changing.run(count, LONG)[-1] for _ in range(PAUSE + 1)] == [*[1] * PAUSE, 2]


def test_as_many_are_used_as_have_something_to_do(machine: Built) -> None:
    assert machine(5.0).run(ThreadCount(64), LONG) == [64, 32, 16, 8, *[4] * 6]


def test_time_between_chunks_does_not_count(machine: Built) -> None:
    count, quiet = ThreadCount(2), machine(1.9)
    for _ in range(50):
        assert quiet.run(count, SHORT) == [2] * 10
        quiet.clock += LONG


def test_one_core_is_one_core(machine: Built) -> None:
    assert machine(1.0).run(ThreadCount(1), LONG) == [1] * 10


@pytest.mark.parametrize("spread", [OnThreads(2), ThreadCount(2).chunk()], ids=["cores", "chunk"])
def test_the_number_of_threads_is_put_back(spread: object) -> None:
    def interrupted() -> None:
        with spread:  # type: ignore[attr-defined]
            assert torch.get_num_threads() == 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
