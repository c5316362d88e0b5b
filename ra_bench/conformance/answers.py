"""Checks of what comes back from `search` and `attend`."""

from __future__ import annotations

import numpy as np

from ra_bench.conformance.subject import (
    DIM,
    GROUP,
    N_KEYS,
    N_QUERIES,
    RECALL_FLOOR,
    K,
    Subject,
    dense_attention,
    overlap,
    require,
    require_well_formed,
    selects,
    true_top,
)


def result_shapes(subject: Subject) -> None:
    """Ids are (m, k) int32, and the work is (m,) int64 or None, for one query, many and none."""
    for k in (1, K):
        for m in (GROUP, N_QUERIES):
            found = subject.search(subject.index, k, subject.data.queries[:m])
            for name, count in vars(found.work).items():
                if count is not None:
                    require(
                        count.shape == (m,) and count.dtype == np.int64,
                        f"work.{name} must be ({m},) int64, got {count.shape} {count.dtype}",
                    )


def own_budget(subject: Subject) -> None:
    """k=None asks for as many keys as the method likes."""
    found = subject.index.search(subject.data.queries, None)
    require(found.ids.ndim == 2, f"ids must be (m, any), got {found.ids.shape}")
    require_well_formed(found, N_QUERIES, found.ids.shape[1], N_KEYS)


def every_effort(subject: Subject) -> str:
    """Each setting of the sweep is accepted, at its own k and at another, and gives well-formed ids."""
    sweep = subject.sweep(subject.index, N_KEYS, K)
    require(len(sweep) > 0, "effort_sweep must not be empty")
    for effort in sweep:
        for k in (K, 5 * K):
            found = subject.index.search(subject.data.queries, k, **effort)
            require_well_formed(found, N_QUERIES, k, N_KEYS)
    return f"{len(sweep)} settings"


def more_results_than_keys(subject: Subject) -> None:
    """K > n gives k columns, of which at most n are real."""
    subject.search(subject.index, N_KEYS + 7)


def few_keys(subject: Subject) -> None:
    """One, two or five keys are an index too, smaller than any parameter of the method."""
    for n in (1, 2, 5):
        index = subject.built(subject.data.keys[:n], subject.data.values[:n])
        for k in (1, n, K):
            found = subject.search(index, k, n=n)
            require((found.ids[:, 0] >= 0).all(), f"of {n} keys, none was found")


def one_dimension(subject: Subject) -> None:
    """Rows of one dimension are vectors too."""
    keys = subject.data.keys[:, :1]
    index = subject.built(keys, subject.data.values[:, :1])
    subject.search(index, K, subject.data.queries[:, :1])


def duplicates(subject: Subject) -> None:
    """Keys that are there many times, or all the same, are found as different ids."""
    for keys in (
        np.tile(subject.data.keys[: N_KEYS // 50], (50, 1)),
        np.tile(subject.data.keys[:1], (400, 1)),
    ):
        found = subject.search(subject.built(keys, keys), K, n=len(keys))
        require((found.ids[:, 0] >= 0).all(), "among duplicates, no key was found")


def zero_rows(subject: Subject) -> None:
    """Keys and queries of zeros are rows like others."""
    keys = subject.data.keys.copy()
    keys[::3] = 0
    queries = subject.data.queries.copy()
    queries[::5] = 0
    subject.search(subject.built(keys, subject.data.values), K, queries)
    subject.search(subject.built(np.zeros_like(keys), subject.data.values), K, queries)


def attend_is_exact(subject: Subject) -> str | None:
    """`attend` is softmax over what `search` found; with k = n, an exact method gives dense attention."""
    index, data = subject.index, subject.data
    for k in (K, N_KEYS):
        effort = subject.dearest(index, N_KEYS, k)
        part = index.attend(data.queries, k, **effort)
        for name, array, shape in (
            ("output", part.output, (N_QUERIES, DIM)),
            ("lse", part.lse, (N_QUERIES,)),
        ):
            require(
                array.shape == shape and array.dtype == np.float32,
                f"{name} must be {shape} float32, got {array.shape} {array.dtype}",
            )
        if not selects(index):
            require(np.isfinite(part.output).all(), "output must be finite")
            continue
        ids = index.search(data.queries, k, **effort).ids
        output, lse = dense_attention(data.queries, ids, data.keys, data.values)
        require(np.allclose(part.output, output, atol=1e-4), f"output is not that of the ids found, k = {k}")
        require(np.allclose(part.lse, lse, atol=1e-4), f"lse is not that of the ids found, k = {k}")
        if index.kind == "exact" and k == N_KEYS:
            require((ids >= 0).all(), "an exact method must find all n keys")
    return None if selects(index) else "attends by more than what it selects: only its shape was checked"


def batch_equals_blocks(subject: Subject) -> None:
    """Many queries in one call score what the same queries score block by block."""
    data = subject.data
    together = subject.search(subject.index, K).ids
    blocks = np.split(data.queries, N_QUERIES // GROUP)
    apart = np.concatenate([subject.search(subject.index, K, block).ids for block in blocks])
    scores = [np.einsum("md,mkd->mk", data.queries, data.keys[ids]) for ids in (together, apart)]
    require(((together < 0) == (apart < 0)).all(), "a batch finds another number of keys than blocks")
    require(np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4), "a batch finds other keys than blocks")


def recall_floor(subject: Subject) -> str | None:
    """At its dearest, a search finds half of the true top 10 of an easy set; floors are let off."""
    found = subject.search(subject.index, K)
    if subject.index.kind == "floor":
        return "is a floor"
    recall = overlap(true_top(subject.data.keys, subject.data.queries, K), found.ids)
    require(recall >= RECALL_FLOOR, f"recall@{K} is {recall:.2f}, must be at least {RECALL_FLOOR}")
    return f"recall@{K} {recall:.2f}"
