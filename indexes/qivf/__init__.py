"""Inverted lists routed by a model of what prefill queries find; a token's queries scan 4-bit codes together.

A method of this project: nobody's paper. Its parts are known: inverted lists (Jégou et al. 2011), a linear
router learned from queries (Vecchiato et al., "A learning-to-rank formulation of clustering-based
approximate nearest neighbor search", SIGIR 2024, arXiv 2404.11731), scalar codes of randomly rotated
residuals (RaBitQ, Gao and Long, SIGMOD 2024, arXiv 2405.12497, and its extension to more bits,
arXiv 2409.09913), exact re-ranking.
What is put together here for attention:
- A list's share of a query's true neighbours is predicted by the router, and lists are scanned, best first
  for their length, until the predicted share reaches `share`: easy queries stop early, hard ones read on.
- The G queries of a token read each list's codes once, from the cache, and are scored in registers together.
- A key's code is 4 bits a dimension with a step of its own, in coordinates in which residuals and queries
  have the same second moment (`ra_bench.indexes._balance`); 2k candidates are scored exactly.
- Inserted keys, of whose like neither clusters nor router know, go to lists of their own, which every search
  reads: 16,384 of them cost a token a scan of 0.8 MB.
- Without learn queries, a sample of the keys stands in for them.

Cost: build O(m n) for the exact neighbours of m learn queries, where the harness has not computed them, and
O(n nlist d); search O(nlist d + share of n scanned / G + inserted / G + k d) a query; insert O(d²) a key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ra_bench.indexes._balance import SAMPLE_ROWS, balance
from ra_bench.indexes._faiss import library, use_threads
from ra_bench.indexes._learn import learn_set
from ra_bench.indexes.qivf.router import fit_router

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, LaterWorks, Partial, Work, gathered_work, layer_rows

DEFAULT_K = 100
KMEANS_ROUNDS = 10
KMEANS_POINTS = 64  # a list that take part in the clustering
PARTS = ("codes", "steps", "ids", "counts", "centroids")  # of the lists, one .npy file each
ROUTER_PARTS = ("weights", "bias", "key_map", "query_map")
# Efforts, cheap to dear: (share, rerank). What the codes leave out would cap recall at .99 and more.
EFFORTS = (
    (0.4, 2.0), (0.6, 2.0), (0.75, 2.0), (0.85, 2.0), (0.9, 2.0), (0.94, 2.0), (0.97, 2.0),
    (0.985, 2.5), (0.993, 3.0), (0.997, 4.0), (0.999, 5.0), (1.0, 8.0),
)  # fmt: skip


@dataclass
class QIvf(Index):
    """Query-routed inverted lists.

    `nlist` lists (0: 3 sqrt(n)); the router takes `steps` steps over `learn_queries` with their
    `learn_neighbors` nearest keys each.
    """

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "ra-bench"
    query_aware: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("faiss", "ra_bench.indexes.qivf._qivf")

    nlist: int = 0
    learn_queries: int = 16384
    learn_neighbors: int = 100
    steps: int = 200

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Clusters the keys, fits the router to the learn queries, and encodes the keys list by list."""
        from ra_bench.indexes.qivf import _qivf

        super().build(keys, values, queries, about)
        n, d = self.keys.shape
        rows = self.keys.astype(np.float32)
        nlist = max(1, min(n, self.nlist or int(3 * math.sqrt(n))))
        assigned, centroids = self._cluster(rows, nlist)
        learn, neighbors = learn_set(self.keys, queries, about, self.learn_queries, self.learn_neighbors)
        some = slice(None, None, -(-n // SAMPLE_ROWS))  # of the rest no residuals are needed
        maps = balance(rows[some] - centroids[assigned[some]], learn, d, self.seed)
        router = fit_router(learn, neighbors, assigned, centroids, self.steps, self.seed, self.threads)
        self._router = {
            "weights": router.weights,
            "bias": router.bias[None, :],
            "key_map": np.ascontiguousarray(maps.to_key.T),
            "query_map": np.ascontiguousarray(maps.to_query.T),
        }
        self._lists = _qivf.build(
            self.keys, assigned[:, None], centroids, **self._router, threads=self.threads
        )

    def _cluster(self, rows: np.ndarray, nlist: int) -> tuple[np.ndarray, np.ndarray]:
        """The list of each row (n,) int32, and the lists' mean rows (nlist, d) float32."""
        faiss = library()
        use_threads(self.threads)
        settings = {
            "niter": KMEANS_ROUNDS,
            "min_points_per_centroid": 1,
            "max_points_per_centroid": KMEANS_POINTS,
        }
        kmeans = faiss.Kmeans(rows.shape[1], nlist, seed=self.seed + 1, **settings)
        kmeans.train(rows)
        assigned = kmeans.index.search(rows, 1)[1][:, 0].astype(np.int32)
        return assigned, np.ascontiguousarray(kmeans.centroids, np.float32)

    def search(
        self, queries: np.ndarray, k: int | None, *, share: float = 0.95, rerank: float = 2.0
    ) -> Found:
        """Scans lists until, by the router's word, they hold `share` of the neighbours (1: all lists).

        Of what the codes say, the best `rerank` * k keys are scored exactly.
        """
        from ra_bench.indexes.qivf import _qivf

        k, share, candidates = _checked_effort(k, share, rerank)
        ids, touched, exact, read = _qivf.search(
            self._lists,
            self.keys,
            np.asarray(queries, np.float32),
            group=self.group,
            k=k,
            share=share,
            candidates=candidates,
            threads=self.threads,
        )
        return Found(ids, Work(keys_read=touched, exact=exact, bytes_read=read))

    @classmethod
    def attend_layer(
        cls,
        indexes: Sequence[Index],
        queries: np.ndarray,
        k: int | None,
        out: Partial,
        threads: int = 1,
        **effort: Any,
    ) -> Sequence[Work]:
        """Search and attention of all heads in one native call; a thread takes a head's queries together."""
        from ra_bench.indexes.qivf import _qivf

        heads = [index for index in indexes if type(index) is QIvf]
        if len(heads) < len(indexes):
            return super().attend_layer(indexes, queries, k, out, threads, **effort)
        efforts = [_checked_effort(k, **{**head.fixed_effort, **effort}) for head in heads]
        values = [head.values_to_attend for head in heads]
        touched, exact, read, attended = _qivf.attend_layer(
            [head._lists for head in heads],
            [head.keys for head in heads],
            values,
            layer_rows(queries, len(heads)),
            k=efforts[0][0],
            shares=[share for _, share, _ in efforts],
            candidates=[candidates for _, _, candidates in efforts],
            output=out.output,
            lse=out.lse,
            threads=threads,
        )

        def work(h: int) -> Work:
            searched = Work(keys_read=touched[h], exact=exact[h], bytes_read=read[h])
            return gathered_work(searched, attended[h], heads[h].keys, values[h])

        return LaterWorks(len(heads), work)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """Shares from little to nearly all, the larger with more candidates, and all."""
        return [{"share": share, "rerank": rerank} for share, rerank in EFFORTS]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Encodes the new keys into lists that every search reads."""
        if not len(keys):
            return
        self.keep_inserted(keys, values)
        self._lists.insert(self.keys)

    @property
    def nbytes(self) -> Bytes:
        """Codes, steps, ids, centroids and router."""
        return Bytes(self._lists.nbytes)

    def save_state(self, folder: Path) -> None:
        """One .npy file a part."""
        for name, array in zip(PARTS, self._lists.flattened(), strict=True):
            np.save(folder / f"{name}.npy", array)
        for name, array in self._router.items():
            np.save(folder / f"{name}.npy", array)

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Checks every id before a search may meet it; `mmap` leaves the lists in their files."""
        from ra_bench.indexes.qivf import _qivf

        parts = [np.load(folder / f"{name}.npy", mmap_mode="r" if mmap else None) for name in PARTS]
        self._router = {name: np.load(folder / f"{name}.npy") for name in ROUTER_PARTS}
        if self._router["key_map"].shape[0] != self.keys.shape[1]:
            raise ValueError(f"key_map must be of {self.keys.shape[1]} dimensions")
        self._lists = _qivf.restore(*parts, **self._router, n=len(self.keys))


def _checked_effort(k: int | None, share: float = 0.95, rerank: float = 2.0) -> tuple[int, float, int]:
    """`k`, `share` and the number of candidates as the search takes them, defaults filled in."""
    k = DEFAULT_K if k is None else k
    if k < 0 or share < 0 or rerank < 0:
        raise ValueError(f"k, share and rerank must not be negative, got {k}, {share} and {rerank}")
    return k, share, math.ceil(rerank * k)
