"""What all tests run under: one thread an operation, and hypothesis that is deterministic and heeds no clock.

On operations this small a second thread has nothing to do but to wait; on a machine whose other core is busy it waits
for ten times as long as the first one works.
"""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

settings.register_profile("any machine", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """The garbage collector rests: an interrupt that lands in hypothesis' callback on it would be swallowed there."""
    gc.disable()
    yield
    gc.enable()
