"""What the scenarios measure with."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["median_ratio", "no_gc"]


@contextmanager
def no_gc() -> Iterator[None]:
    """Keep the garbage collector out of a measurement, as timeit does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def median_ratio(samples: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios of samples that were taken next to each other."""
    return statistics.median(sample / other for sample, other in zip(samples, base, strict=True))
