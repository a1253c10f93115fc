"""One weight as stored: its numbers and their file type; knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# numpy has no bfloat16, so BF16 numbers are kept as the upper 16 bits of the float32 they stand for.
STORAGE: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

# Exponent bits that are all set in NaN and Inf, per 16-bit type.
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Weight:
    """Numbers in the type they are stored in.

    data: any shape, float32 for F32, float16 for F16, uint16 (the raw bits) for BF16
    type: "F32", "F16" or "BF16"
    """

    data: NDArray[Any]
    type: str = "F32"

    def __post_init__(self) -> None:
        if self.type not in STORAGE or self.data.dtype != STORAGE[self.type]:
            raise ValueError(f"a {self.type} weight cannot hold {self.data.dtype} numbers")

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows before columns, as in PyTorch."""
        return self.data.shape

    @property
    def float32(self) -> NDArray[np.float32]:
        """The numbers as float32; exact for every type."""
        if self.type == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)

    @property
    def is_finite(self) -> bool:
        """Whether it holds neither NaN nor infinity."""
        if self.type == "F32":
            return bool(np.isfinite(self.data).all())
        exponent = _EXPONENT[self.type]
        return not bool(((self.data.view(np.uint16) & exponent) == exponent).any())

    @staticmethod
    def from_float32(values: NDArray[Any], type: str = "F32") -> Weight:
        """Rounds to nearest, ties to even, where the type is narrower than float32."""
        values = np.ascontiguousarray(values, dtype=np.float32)
        if type == "F32":
            return Weight(values)
        if type == "F16":
            with np.errstate(over="ignore"):
                return Weight(values.astype(np.float16), "F16")
        bits = values.view(np.uint32)
        # Rounding must not carry a NaN's payload into Inf, so NaN keeps its upper bits and gets the quiet bit.
        rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
        return Weight(rounded.astype(np.uint16), "BF16")

    def scaled(self, factor: float) -> Weight:
        """The weight times factor: in its own type when that loses nothing, else in float32."""
        exact = self.float32.astype(np.float64) * factor
        narrow = Weight.from_float32(exact.astype(np.float32), self.type)
        if self.type == "F32" or np.array_equal(narrow.float32.astype(np.float64), exact):
            return narrow
        return Weight.from_float32(exact.astype(np.float32))
