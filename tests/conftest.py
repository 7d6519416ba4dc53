"""What all tests run under: one thread an operation, hypothesis that heeds no clock, and which cases are slow.

Kernels of Triton run by its interpreter, without a GPU: that is decided once a process, when Triton is imported, and
torch's compiler imports it, too. Nothing else of what the tests compile is made by Triton.

On operations this small a second thread has nothing to do but to wait; on a machine whose other core is busy it waits
for ten times as long as the first one works.
"""

import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.processes.ranks import Ranks

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

OF_LARGE_REPORTS = [HealthCheck.too_slow, HealthCheck.data_too_large]
"""What hypothesis says of strategies that make whole reports."""

settings.register_profile("any machine", derandomize=True, deadline=None, suppress_health_check=OF_LARGE_REPORTS)
settings.load_profile("any machine")


SHAPES_OUTPUT = (
    *("CI", "BUILD_NUMBER", "PYTEST_ADDOPTS"),  # a summary that is not cut, other words
    *("COLUMNS", "LINES", "TERM", "COLORTERM", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE"),
    "TORCH_GRADCHECK_FULL_TRACE",
)
"""Environment variables by which pytest, rich and we write differently: a CI sets some, a developer others."""


@pytest.fixture(scope="session", autouse=True)
def plain_environment() -> Iterator[None]:
    """What is printed is the same wherever the tests run, also by the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SHAPES_OUTPUT:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes on loopback, started when the first test asks for them."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector rests: an interrupt that lands in hypothesis' callback on it would be swallowed there."""
    gc.disable()
    yield
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Takes what imports and collection leave, three quarters of a million objects, out of the collector's sight.

    They live as long as the process. Looked through at every full collection, they took half of the time of some tests.
    """
    gc.disable()
    try:
        result = yield
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()
    return result


SLOW_FOLDERS = {"benchmarks", "integrations"}
"""Their tests are slow as a whole: Lightning alone takes five seconds to import."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves slow folders unread where slow tests are deselected; None leaves the choice to pytest."""
    return True if collection_path.name in SLOW_FOLDERS and config.option.markexpr == "not slow" else None


@pytest.hookimpl(tryfirst=True)  # before pytest itself selects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks slow folders, and what `slow_but_for` leaves: of n cases, those k stay that are nearest to (j + ½)·n/k."""
    cases: dict[tuple[str, int], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.path.parent.name in SLOW_FOLDERS:
            item.add_marker("slow")
        if marker := item.get_closest_marker("slow_but_for"):
            cases[item.nodeid.partition("[")[0], *marker.args].append(item)
    for (_, kept), of_one_test in cases.items():
        quick = {int((j + 0.5) * len(of_one_test) / kept) for j in range(kept)}
        for number, item in enumerate(of_one_test):
            if number not in quick:
                item.add_marker("slow")
