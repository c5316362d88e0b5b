"""What is known of one KV head beside its vectors: `Head`, and its rotary embedding `Rope`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Layout = Literal["half", "interleaved"]


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding (Su et al. 2021, arXiv 2104.09864): enough to apply and to undo it.

    `inverse_frequencies` (rotary_dims / 2,) are radians a position, after scaling. `layout` tells which
    dimensions make a pair: "half" pairs i with i + rotary_dims / 2 (Llama), "interleaved" pairs 2i with
    2i + 1 (GPT-J). Dimensions from `rotary_dims` on are not rotated. `attention_factor` multiplies the
    rotated vector (YaRN). `stage` tells whether the stored vectors are "post" or "pre" rotation.
    """

    inverse_frequencies: np.ndarray
    rotary_dims: int
    layout: Layout = "half"
    scaling: str = "default"
    attention_factor: float = 1.0
    stage: Literal["post", "pre"] = "post"

    def apply(self, vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rotates `vectors` (n, d) to `positions` (n,); float32 out."""
        return self._turn(vectors, positions, forward=True)

    def undo(self, vectors: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The vectors (n, d) as they were before the rotation to `positions` (n,); float32 out."""
        return self._turn(vectors, positions, forward=False)

    def _turn(self, vectors: np.ndarray, positions: np.ndarray, forward: bool) -> np.ndarray:
        # Models multiply in float32: at 128K tokens their angles are off by up to 0.004, so ours must be.
        angles = np.asarray(positions, np.float32)[:, None] * np.asarray(self.inverse_frequencies, np.float32)
        angles = angles.astype(np.float64)
        scale = self.attention_factor if forward else 1.0 / self.attention_factor
        cos = (np.cos(angles) * scale).astype(np.float32)  # (n, rotary_dims / 2)
        sin = (np.sin(angles if forward else -angles) * scale).astype(np.float32)
        out = np.array(vectors, dtype=np.float32)
        half = self.rotary_dims // 2
        if self.layout == "half":
            first, second = slice(0, half), slice(half, self.rotary_dims)
        else:
            first, second = slice(0, self.rotary_dims, 2), slice(1, self.rotary_dims, 2)
        x, y = out[:, first].copy(), out[:, second].copy()
        out[:, first] = x * cos - y * sin
        out[:, second] = y * cos + x * sin
        return out


@dataclass(frozen=True)
class Head:
    """One KV head of one document, as an index may know it. Never holds test queries or truth.

    `key_positions` (n,) are token positions of the keys that are indexed; `query_positions` and
    `query_heads` (m,) describe the learn queries, `query_neighbors` (m, K) int32 are their exact nearest
    indexed keys by inner product, best first, where the harness has computed them (K as the index asked).
    `key_neighbors` (n, K + 1) int32 are those of the keys themselves, by `truth.nearest_keys`.
    """

    model: str = ""
    document: str = ""
    layer: int = 0
    kv_head: int = 0
    group: int = 1
    softmax_scale: float = 1.0
    layer_kind: str = "full_attention"
    rope: Rope | None = None
    key_positions: np.ndarray | None = field(default=None, repr=False)
    query_positions: np.ndarray | None = field(default=None, repr=False)
    query_heads: np.ndarray | None = field(default=None, repr=False)
    query_neighbors: np.ndarray | None = field(default=None, repr=False)
    key_neighbors: np.ndarray | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The head's place in its data set, such as `doc000/layer12/head0`."""
        return f"{self.document or 'doc'}/layer{self.layer}/head{self.kv_head}"
