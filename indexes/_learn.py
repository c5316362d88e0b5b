"""What the methods that learn from queries share: the learn queries and their exact neighbours."""

from __future__ import annotations

import numpy as np

from ra_bench.head import Head


def learn_set(
    keys: np.ndarray, queries: np.ndarray | None, about: Head | None, learn_queries: int, neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """Learn queries (m, d) float32 and their `neighbors` exact nearest of `keys` (n, d), (m, N) int32.

    Without `queries`, every so-manieth key stands in for one, `learn_queries` of them. Neighbours that the
    harness has computed (Head.query_neighbors) are taken, others computed. Raises ValueError for queries that
    are not finite.
    """
    width = min(neighbors, len(keys))
    given = None
    if queries is not None and len(queries):
        learn = np.ascontiguousarray(queries, np.float32)
        if not np.isfinite(learn).all():
            raise ValueError("queries must be finite, got NaN or infinity")
        given = about.query_neighbors if about is not None else None
    else:
        learn = keys[:: max(1, len(keys) // max(1, learn_queries))].astype(np.float32)
    if given is not None and given.shape[0] == len(learn) and given.shape[1] >= width:
        return learn, np.ascontiguousarray(given[:, :width], np.int32)
    from ra_bench.truth import exact_topk

    return learn, exact_topk(learn, keys, width)[0]
