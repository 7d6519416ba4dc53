"""The number of perturbations in a chunk."""

from __future__ import annotations

from torch_gradcheck.engines.traced.chunks import REUSED, SMALLEST, ChunkSize, Footprint


def test_the_first_chunk_fits_into_the_cache_and_later_ones_into_memory_that_is_reused() -> None:
    size = ChunkSize(2**30, Footprint(peak_bytes=10_000, written_bytes=2**17 * 10, operations=10))
    assert size.size == SMALLEST  # 2²¹ / 2¹⁷
    size.measured(size.size, 1.0, 100 * SMALLEST)
    assert size.size == 2 * SMALLEST
    size.measured(size.size, 1.0, size.size * REUSED // SMALLEST)
    assert size.size == SMALLEST
