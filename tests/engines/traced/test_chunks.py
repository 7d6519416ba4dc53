"""Chunks are sized by the memory their values take."""

from __future__ import annotations

from torch_gradcheck.engines.traced.chunks import HELD, LARGEST, SMALLEST, ChunkSize, Footprint


def test_the_first_chunk_supposes_that_all_is_perturbed_and_the_next_ones_know_better() -> None:
    size = ChunkSize(2**30, Footprint(peak_bytes=10_000, written_bytes=2**17 * 10, operations=10))
    assert size.size == SMALLEST  # 2²¹ / 2¹⁷
    size.measured(SMALLEST, 100 * SMALLEST)
    assert size.size == LARGEST
    size.measured(LARGEST, HELD * 8)
    assert size.size == LARGEST // 8
    size.out_of_memory(LARGEST // 8)
    assert size.size == LARGEST // 16
    size.measured(10, HELD * 10)
    assert size.size == SMALLEST
