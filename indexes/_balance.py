"""The coordinates in which keys are encoded: those that make queries and keys alike.

A code's error is spread evenly over rotated coordinates, in proportion to the keys' length; a query weighs
it by its own length. Of all linear maps T of keys (and T^-T of queries, which leaves q·k as it is) the
product of both lengths is least where the transformed keys and queries have the same second moment. The same
map, followed by the least of its dimensions left out, is the balanced truncation of control theory (Moore,
"Principal component analysis in linear systems", IEEE TAC 1981), with queries in the place of outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLE_ROWS = 16384
WIDTH = 16  # what kernels take at a time
RIDGE = 1e-5  # of the mean variance: directions that hold nothing


@dataclass(frozen=True)
class Balance:
    """Rows of `to_key`, `to_query` (kept, d) float32, and `offset` (1, kept): the mean key's coordinates."""

    to_key: np.ndarray
    to_query: np.ndarray
    offset: np.ndarray

    def apply(self, keys: np.ndarray) -> np.ndarray:
        """`keys` (n, d) in these coordinates (n, kept, rounded up to 16 with zeros), float16."""
        kept = len(self.to_key)
        out = np.zeros((len(keys), -(-kept // WIDTH) * WIDTH), np.float16)
        most = np.finfo(np.float16).max
        for first in range(0, len(keys), SAMPLE_ROWS):  # blocks: all keys in float32 are never held
            block = slice(first, first + SAMPLE_ROWS)
            turned = keys[block].astype(np.float32) @ self.to_key.T - self.offset
            out[block, :kept] = np.clip(turned, -most, most)
        return out


def balance(keys: np.ndarray, queries: np.ndarray, kept: int, seed: int) -> Balance:
    """The map for `keys` (n, d) and `queries` (m, d), of which `kept` dimensions stay, randomly rotated."""
    rows = _sample(keys)
    mean = rows.mean(0)
    of_queries, of_keys = _root(_sample(queries)), _root(rows - mean)
    left, sizes, right = np.linalg.svd(of_queries @ of_keys)
    scale = sizes[:kept] ** -0.5
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((kept, kept)))[0]
    to_key = rotation.T @ (of_queries @ left[:, :kept] * scale).T
    to_query = rotation.T @ (of_keys @ right.T[:, :kept] * scale).T
    offset = (to_key @ mean)[None, :]
    return Balance(*(np.ascontiguousarray(part, np.float32) for part in (to_key, to_query, offset)))


def _sample(rows: np.ndarray) -> np.ndarray:
    """At most `SAMPLE_ROWS` of them, evenly spaced, in float64."""
    return rows[:: -(-len(rows) // SAMPLE_ROWS) or 1].astype(np.float64)


def _root(rows: np.ndarray) -> np.ndarray:
    """The symmetric root (d, d) of the rows' second moment, none of its directions empty."""
    d = rows.shape[1]
    moment = rows.T @ rows / max(1, len(rows))
    sizes, directions = np.linalg.eigh(moment)
    floor = RIDGE * np.trace(moment) / d or 1.0
    return (directions * np.sqrt(np.maximum(sizes, floor))) @ directions.T
