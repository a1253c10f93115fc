"""Shares of yes and no, with the interval that the number of cases leaves open. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """hits of n cases; scores between 0 and 1 count as parts of a hit, for which the interval is too wide rather than too narrow."""

    hits: float
    n: int

    @classmethod
    def of(cls, hits: Iterable[float]) -> Share:
        """The share of `hits` that are true, or the mean of scores."""
        seen = list(hits)
        return cls(sum(seen), len(seen))

    @property
    def value(self) -> float:
        """0 to 1; 0 without a case."""
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval by Wilson's score: it is right for few cases too, and near 0 and 1. Everything without a case."""
        if not self.n:
            return 0.0, 1.0
        p, n, z = self.value, self.n, Z_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)
