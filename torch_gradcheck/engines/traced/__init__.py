"""The traced engine: exact checks at machine speed, from one record of J."""

from torch_gradcheck.engines.traced.engine import MEMORY_LIMIT, TracedEngine, worth_tracing
from torch_gradcheck.engines.traced.untraceable import Untraceable

__all__ = ["MEMORY_LIMIT", "TracedEngine", "Untraceable", "worth_tracing"]
