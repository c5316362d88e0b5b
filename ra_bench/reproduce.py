"""Published results, checked on the files that they were measured on: `ra-bench compare --reproduce vibe`.

VIBE (arXiv 2505.17810) publishes recall@100 of the indexes that it runs on one head of Llama-3-8B and one of
Yi-6B, on raw inner product; RecoverGraphANN (CIKM 2026) recall@10 of graphs on lifted keys. Times belong to
their machines; what must come out anywhere is the order and the levels of recall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ra_bench.data import Known, known
from ra_bench.errors import UsageError
from ra_bench.results import Row

HEADS = ("llama-128-ip", "yi-128-ip")
# RoarGraph as VIBE builds it: 100 neighbours a query (M_sq), up to 96 links, a pool of 500, raw inner
# product, one link target a query. Its search pools (L_pq) end at 2000.
ROARGRAPH = (
    "ra:degree=96:query_degree=96:learn_neighbors=100:beam=500:pivots=1:prune=raw:learn_queries=1000000"
)
OURS = "ra:degree=96:query_degree=64:beam=500"
# Graphs as VIBE builds them, on raw inner product, and the lifted HNSW of RecoverGraphANN.
RAW_GRAPHS = ("hnsw:degree=48:ef_construction=500", "nsg", "vamana")
LIFTED = "hnsw:degree=48:ef_construction=500@lift"
KS = (10, 100)
LEAST_RA, LEAST_LIFTED = 0.98, 0.94


@dataclass(frozen=True)
class Verdict:
    """One published statement about one head, what was measured, and whether that agrees."""

    head: str
    statement: str
    measured: str
    holds: bool

    @property
    def line(self) -> str:
        """As it is printed."""
        return f"{'holds' if self.holds else 'FAILS'}  {self.head}: {self.statement}: {self.measured}"


def indexes() -> tuple[str, ...]:
    """What is measured: of the graphs those that are installed; `compare` adds their lifted twins."""
    from ra_bench.registry import info, parse

    graphs = [graph for graph in RAW_GRAPHS if info(parse(graph).name).available]
    return (ROARGRAPH, OURS, *graphs, LIFTED, "ivf")


def present(name: str) -> list[Known]:
    """The data sets of the reproduction `name` that are here; UsageError with their places if none."""
    if name != "vibe":
        raise UsageError(f"--reproduce must be vibe, got '{name}'")
    wanted = [known()[head] for head in HEADS]
    here = [one for one in wanted if one.path.exists()]
    if not here:
        raise UsageError(
            "--reproduce vibe needs its files, which are not here: "
            + "; ".join(f"get {one.source} and put it at {one.path}" for one in wanted)
        )
    return here


def verdicts(head: str, rows: Sequence[Row], least_ra: float = LEAST_RA) -> list[Verdict]:
    """What the rows of one head say of what VIBE and RecoverGraphANN published."""
    best = {k: _best_recall(rows, k) for k in KS}
    found = [
        _at_least(head, f"RoarGraph's settings reach recall@100 {least_ra}", best[100], ROARGRAPH, least_ra),
        _at_least(head, f"lifted HNSW reaches recall@10 {LEAST_LIFTED}", best[10], LIFTED, LEAST_LIFTED),
    ]
    ra = best[100].get(ROARGRAPH)
    for graph in RAW_GRAPHS:
        other = best[100].get(graph)
        if other is None and graph not in indexes():
            continue
        measured = f"{_shown(ra)} against {_shown(other)}"
        holds = ra is not None and other is not None and ra > other
        found.append(
            Verdict(head, f"`ra` is above {graph} on raw inner product, recall@100", measured, holds)
        )
    return found


def _at_least(head: str, statement: str, best: Mapping[str, float], index: str, least: float) -> Verdict:
    recall = best.get(index)
    return Verdict(head, statement, _shown(recall), recall is not None and recall >= least)


def _best_recall(rows: Sequence[Row], k: int) -> dict[str, float]:
    best: dict[str, float] = {}
    for row in rows:
        if row["status"] == "ok" and row["k"] == k and row["recall"] is not None:
            best[row["index"]] = max(best.get(row["index"], 0.0), row["recall"])
    return best


def _shown(recall: float | None) -> str:
    return "not measured" if recall is None else f"{recall:.3f}"
