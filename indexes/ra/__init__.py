"""A graph over the keys, projected from the exact neighbours of prefill queries; best-first search.

Papers: RetrievalAttention (Liu et al. 2024, arXiv 2409.10516, section 3.2) builds the index of each head from
its prefill queries; the construction is RoarGraph's (Chen et al., PVLDB 17(11), 2024, arXiv 2408.08933,
section 4): query→key edges from the exact neighbours of each query, projected onto the keys, pruned, and
completed by a search for every key ("connectivity enhancement").

What differs from them:
- Pruning measures distances between lifted keys: with raw inner product, the papers' way (`prune="raw"`),
  the longest keys occlude all others. No lifted copy is made: q·k and one extra number a key do. The keys
  are first brought into coordinates in which queries are like them (`balanced`; `lifted` leaves that out):
  what no query looks for makes no key distant. A build compares them rounded to 8 bits. Keys inserted later
  are pruned as they are.
- A key is joined to the neighbours of every query that has it among its first `pivots`, and where several
  queries share a key, to the keys that they name most often. RoarGraph: pivots=1, the last query wins.
- A search starts at the keys most named by the group of learn queries around the nearest of `centroids` mean
  directions, and at one fixed entry; RoarGraph starts at the key nearest to the mean of keys. It expands
  eight keys at a time, or five of each query that walks along, RoarGraph's one.
- A walk goes by 4-bit codes of the keys in those coordinates (`ra_bench.indexes._balance`); the best
  2 k + 64 by code, or a quarter of `ef`, are scored by their rows.
- The query heads of a KV head share one graph; the papers' one graph a query head is `per_query_head`. And
  those of one token walk together (`together`): each has its own queue, but a key that one of them reads is
  scored for all, and no key is expanded twice.
- Inserted keys (neither paper says how): a sample of the learn queries is kept with their exact neighbours,
  which are brought up to date and projected onto the new keys among them; a search for each new key finds its
  other links.
- Without learn queries, a sample of the keys stands in for them.

Cost: build O(m n d) for the exact neighbours of m learn queries, where the harness has not computed them, the
same for those of the n keys with `key_neighbors`, and about O(n log n) for the graph; search about O(log n)
at a given quality; insert the same for a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ra_bench.indexes._balance import balance
from ra_bench.indexes._learn import learn_set

from ra_bench.head import Head
from ra_bench.index import Bytes, Found, Index, LaterWorks, Partial, Work, gathered_work, layer_rows
from ra_bench.transform import LIFT_HEADROOM

DEFAULT_K = 100
# Of a graph, beside its links; one .npy file each.
PARTS = ("kept", "centroids", "seeds", "sample", "sample_ids", "codes", "steps")
CODE_PARTS = ("to_key", "to_query", "offset")
MAPPED = ("links", "codes")  # stay in their files where the index is mapped
KEPT_WIDTH = 100  # nearest keys of each kept query
KEYS_PER_KEPT_QUERY = 16  # at least: kept queries must not weigh more than the links
LISTS = 64  # learn queries whose neighbours are offered to one key, at most


@dataclass
class Ra(Index):
    """RetrievalAttention's graph index.

    A key has up to `degree` links, up to `query_degree` of them from learn queries, chosen from `candidates`
    keys; `beam` is the pool of the search that finds the others (0: no such search). With `key_neighbors`
    the exact nearest keys of each key take that search's place: sooner on a GPU, later on a CPU, and as good
    with 32 of them. A search starts from `seeds` keys of the nearest of `centroids` groups of learn queries.
    Up to `kept_queries` of those stay (one for 16 keys at most), to link the keys that are inserted later.
    """

    kind: ClassVar[str] = "search"
    paper: ClassVar[str] = "RetrievalAttention, arXiv 2409.10516; RoarGraph, arXiv 2408.08933"
    query_aware: ClassVar[bool] = True
    can_insert: ClassVar[bool] = True
    requires: ClassVar[tuple[str, ...]] = ("ra_bench.indexes.ra._ra",)

    degree: int = 24  # RoarGraph's M
    query_degree: int = 16
    prune: Literal["balanced", "lifted", "raw"] = "balanced"
    learn_queries: int = 32768
    learn_neighbors: int = 100  # RoarGraph's N_q
    pivots: int = 20
    candidates: int = 128
    beam: int = 32  # RoarGraph's L of construction, there 300 to 500
    key_neighbors: int = 0
    centroids: int = 64
    seeds: int = 32
    kept_queries: int = 4096
    codes: bool = True  # whether a walk goes by codes of the keys, of 4 bits a dimension
    per_query_head: bool = False
    learn: Literal["queries", "keys"] = "queries"  # keys: for an ablation, queries stay unused

    def __post_init__(self) -> None:
        for name in ("degree", "learn_neighbors", "pivots", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "query_degree",
            "learn_queries",
            "beam",
            "key_neighbors",
            "centroids",
            "seeds",
            "kept_queries",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def build(
        self,
        keys: np.ndarray,
        values: np.ndarray | None = None,
        queries: np.ndarray | None = None,
        about: Head | None = None,
    ) -> None:
        """Builds the graph, or one a query head, from learn queries or else from a sample of the keys."""
        super().build(keys, values, queries, about)
        queries = queries if self.learn == "queries" else None
        learn, neighbors = learn_set(self.keys, queries, about, self.learn_queries, self.learn_neighbors)
        near_keys = self._nearest_keys(about)
        if not self.per_query_head or self.group == 1:
            self._graphs = [self._build_graph(learn, neighbors, near_keys)]
            return
        heads = np.arange(len(learn)) % self.group
        if queries is not None and about is not None and about.query_heads is not None:
            heads = np.asarray(about.query_heads) % self.group
        self._graphs = []
        for head in range(self.group):
            mine = heads == head
            rows_of_head = mine if mine.any() else np.ones_like(mine)
            self._graphs.append(self._build_graph(learn[rows_of_head], neighbors[rows_of_head], near_keys))

    def search(self, queries: np.ndarray, k: int | None, *, ef: int = 0, together: int = 0) -> Found:
        """Best-first search that expands the best `ef` keys (0: 3 k) that each query meets.

        An `ef` below k is allowed: more are kept than expanded. By codes, the best 2 k + 64 or a quarter of
        `ef` are then scored by their rows, all where `ef` is n. `together` query rows of a token (0: all; at
        most 8) share what they read: a key that one of them comes to is scored for all. It counts for each in
        `keys_read`, and its bytes once. Several graphs, one a query head, share nothing.
        """
        from ra_bench.indexes.ra import _ra

        k, ef, together = _checked_effort(k, ef, together)
        ids, *counts = _ra.search(
            self._graphs,
            self.keys,
            np.asarray(queries, np.float32),
            k=k,
            ef=ef,
            group=self.group,
            together=together,
            threads=self.threads,
        )
        return Found(ids, Work(*counts))

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
        """Search and attention of all heads in one native call.

        The rows of a head that walk together are one thread's work: where threads outnumber the heads,
        `together=1` or 2 may be sooner done.
        """
        from ra_bench.indexes.ra import _ra

        heads = [index for index in indexes if type(index) is Ra]
        checked = [_checked_effort(k, **{**head.fixed_effort, **effort}) for head in heads]
        walks = {
            (head.group, together, len(head._graphs))
            for head, (_, _, together) in zip(heads, checked, strict=True)
        }
        if len(heads) < len(indexes) or len(walks) > 1:
            return super().attend_layer(indexes, queries, k, out, threads, **effort)
        values = [head.values_to_attend for head in heads]
        *counts, attended = _ra.attend_layer(
            [head._graphs for head in heads],
            [head.keys for head in heads],
            values,
            layer_rows(queries, len(heads)),
            k=checked[0][0],
            efs=[ef for _, ef, _ in checked],
            group=heads[0].group,
            together=checked[0][2],
            output=out.output,
            lse=out.lse,
            threads=threads,
        )

        def work(h: int) -> Work:
            searched = Work(*(of_heads[h] for of_heads in counts))
            return gathered_work(searched, attended[h], heads[h].keys, values[h])

        return LaterWorks(len(heads), work)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """`ef` from half of k to 27 k, beyond a million keys to 60 k; no more than n."""
        dear = (40, 60) if n > 1 << 20 else ()
        efforts = {
            max(1, min(n, round(k * times)))
            for times in (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 18, 27, *dear)
        }
        return [{"ef": ef} for ef in sorted(efforts)]

    def insert(self, keys: np.ndarray, values: np.ndarray | None = None) -> None:
        """Links each new key to what kept queries and a search for it find, and links back."""
        if not len(keys):
            return
        self.keep_inserted(keys, values)
        for graph in self._graphs:
            graph.insert(self.keys, threads=self.threads)

    @property
    def nbytes(self) -> Bytes:
        """Links, entry structures, kept queries, codes and their transforms."""
        return Bytes(sum(graph.nbytes for graph in self._graphs))

    def save_state(self, folder: Path) -> None:
        """One set of .npy files a graph."""
        for g, graph in enumerate(self._graphs):
            for name in ("links", *PARTS, *CODE_PARTS):
                np.save(folder / f"graph{g}_{name}.npy", getattr(graph, name))
        np.save(folder / "graphs.npy", np.array([[graph.entry, graph.radius] for graph in self._graphs]))

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Checks every id before a search may meet it; `mmap` leaves links and codes in their files."""
        from ra_bench.indexes.ra import _ra

        if not (folder / "graph0_codes.npy").exists():
            raise ValueError("it has no codes, as graphs of earlier versions: build it anew")
        about = np.load(folder / "graphs.npy")
        if about.ndim != 2 or about.shape[1] != 2 or len(about) not in (1, self.group):
            raise ValueError(f"graphs.npy must be (graphs, 2), got {about.shape}")
        graphs = []
        for g, (entry, radius) in enumerate(about):
            links, *parts = (
                np.load(folder / f"graph{g}_{name}.npy", mmap_mode="r" if mmap and name in MAPPED else None)
                for name in ("links", *PARTS, *CODE_PARTS)
            )
            if links.shape != (len(self.keys), self.degree):
                raise ValueError(f"links must be {(len(self.keys), self.degree)}, got {links.shape}")
            if parts[1].shape[1:] != self.keys.shape[1:]:
                raise ValueError(f"centroids must be (any, {self.keys.shape[1]}), got {parts[1].shape}")
            graph = _ra.restore(
                links,
                *parts,
                entry=int(entry),
                radius=radius,
                query_degree=self.query_degree,
                lists=LISTS,
                candidates=self.candidates,
                beam=self.beam,
                copy=not mmap,
            )
            graphs.append(graph)
        self._graphs = graphs

    def _build_graph(self, learn: np.ndarray, neighbors: np.ndarray, near_keys: np.ndarray) -> Any:
        from ra_bench.indexes.ra import _ra

        kept = _ra.most_kept(self.keys.shape[1])
        turns = balance(self.keys, learn, kept, self.seed)
        shape = turns.apply(self.keys) if self.prune == "balanced" else self.keys
        coded = slice(None if self.codes else 0)
        kept_rows = self._kept_rows(len(learn))
        most = np.finfo(np.float16).max
        return _ra.build(
            self.keys,
            shape,
            learn,
            neighbors,
            near_keys,
            np.clip(learn[kept_rows], -most, most).astype(np.float16),
            np.ascontiguousarray(neighbors[kept_rows, :KEPT_WIDTH]),
            turns.to_key[coded],
            turns.to_query[coded],
            turns.offset[:, coded],
            shape_radius=self._radius(shape),
            radius=self._radius(self.keys),
            degree=self.degree,
            query_degree=self.query_degree,
            pivots=self.pivots,
            lists=LISTS,
            candidates=self.candidates,
            beam=self.beam,
            num_centroids=self.centroids,
            seeds_each=self.seeds,
            seed=self.seed,
            threads=self.threads,
        )

    def _radius(self, rows: np.ndarray) -> float:
        """Of the sphere to which `rows` are lifted; 0 for raw inner product."""
        if self.prune == "raw":
            return 0.0
        wide = rows.astype(np.float32)
        return float(np.sqrt(np.einsum("nd,nd->n", wide, wide).max())) * LIFT_HEADROOM

    def _nearest_keys(self, about: Head | None) -> np.ndarray:
        """The nearest keys of each key (n, N) int32, itself among them; (0, 0) where a search finds them."""
        if not self.key_neighbors:
            return np.empty((0, 0), np.int32)
        width = min(self.key_neighbors + 1, len(self.keys))
        given = None if about is None else about.key_neighbors
        if given is None or given.shape[0] != len(self.keys) or given.shape[1] < width:
            from ra_bench.truth import nearest_keys

            given = nearest_keys(self.keys, width - 1)
        return np.ascontiguousarray(given[:, :width], np.int32)

    def _kept_rows(self, learn: int) -> np.ndarray:
        """Which of so many learn queries stay: evenly spaced ones."""
        count = min(self.kept_queries, len(self.keys) // KEYS_PER_KEPT_QUERY, learn)
        return np.arange(count) * learn // max(1, count)


def _checked_effort(k: int | None, ef: int = 0, together: int = 0) -> tuple[int, int, int]:
    """The arguments as the native search takes them, defaults filled in."""
    k = DEFAULT_K if k is None else k
    for name, value in (("k", k), ("ef", ef), ("together", together)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    return k, ef or max(1, 3 * k), together
