"""Rotation of many keys at once, with the tables of cosines and sines that a model shares among its heads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ra_bench.head import Head, Rope

if TYPE_CHECKING:
    import torch


class Rotary:
    """The rotation of rows to `positions` (n,), and back."""

    def __init__(self, rope: Rope, positions: np.ndarray) -> None:
        import torch

        self.rope, self.positions = rope, positions
        half = rope.rotary_dims // 2
        if rope.layout == "half":
            self._first, self._second = slice(0, half), slice(half, rope.rotary_dims)
        else:
            self._first, self._second = slice(0, rope.rotary_dims, 2), slice(1, rope.rotary_dims, 2)
        unit = np.zeros((len(positions), rope.rotary_dims), np.float32)
        unit[:, self._first] = 1.0
        turned = rope.apply(
            unit, positions
        )  # the first of each pair holds its cosine now, the second its sine
        self._cos = torch.tensor(turned[:, self._first])
        self._sin = torch.tensor(turned[:, self._second])

    def apply(self, rows: torch.Tensor, places: slice | torch.Tensor) -> torch.Tensor:
        """Rotates `rows` (any, d) to the positions at `places`."""
        cos, sin = self._cos[places], self._sin[places]
        x, y = rows[:, self._first], rows[:, self._second]
        out = rows.clone()
        out[:, self._first], out[:, self._second] = x * cos - y * sin, y * cos + x * sin
        return out


@functools.lru_cache(maxsize=4)
def _shared(frequencies: bytes, dims: int, layout: str, factor: float, positions: bytes) -> Rotary:
    rope = Rope(np.frombuffer(frequencies, np.float32), dims, layout, "", factor)  # type: ignore[arg-type]
    return Rotary(rope, np.frombuffer(positions, np.int64))


def rotary(rope: Rope, positions: np.ndarray) -> Rotary:
    """The rotation to `positions` (n,): one object for all heads that ask for the same."""
    frequencies = np.asarray(rope.inverse_frequencies, np.float32).tobytes()
    places = np.asarray(positions, np.int64).tobytes()
    return _shared(frequencies, rope.rotary_dims, rope.layout, rope.attention_factor, places)


def to_arrays(rotation: Rotary | None) -> dict[str, np.ndarray]:
    """What `from_arrays` makes the rotation of again, as a file can hold it."""
    if rotation is None:
        return {}
    rope = rotation.rope
    return {
        "positions": np.asarray(rotation.positions),
        "frequencies": np.asarray(rope.inverse_frequencies),
        "interleaved": np.array(rope.layout == "interleaved"),
        "factor": np.array(rope.attention_factor),
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Rotary | None:
    """The rotation that `to_arrays` told, or None where there was none."""
    if "positions" not in arrays:
        return None
    frequencies, layout = arrays["frequencies"], "interleaved" if arrays["interleaved"] else "half"
    rope = Rope(frequencies, 2 * len(frequencies), layout, "", float(arrays["factor"]))  # type: ignore[arg-type]
    return rotary(rope, arrays["positions"])


def rotary_of(about: Head | None) -> Rotary | None:
    """The rotation that a head's keys have had, or None where it is unknown or there was none."""
    if about is None or about.rope is None or about.rope.stage != "post" or about.key_positions is None:
        return None
    return rotary(about.rope, about.key_positions)
