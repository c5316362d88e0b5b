"""Checks of what comes back from `search` and `attend`."""

from __future__ import annotations

import numpy as np

from ra_bench.conformance.subject import (
    ERROR_CEILING,
    GROUP,
    N_KEYS,
    N_QUERIES,
    RECALL_FLOOR,
    K,
    Subject,
    dense_attention,
    overlap,
    require,
    require_part,
    require_same,
    require_well_formed,
    selects,
    true_top,
)


def result_shapes(subject: Subject) -> None:
    """Ids are (m, k) int32, and the work is (m,) int64 or None, for one query, many and none."""
    index = subject.index
    for k in (1, K):
        for m in (GROUP, N_QUERIES):
            queries = subject.data.queries[:m]
            works = [index.attend(queries, k, **subject.dearest(index, N_KEYS, k)).work]
            if index.has_search:
                works.append(subject.search(index, k, queries).work)
            for name, count in [item for work in works for item in vars(work).items()]:
                if count is not None:
                    require(
                        count.shape == (m,) and count.dtype == np.int64,
                        f"work.{name} must be ({m},) int64, got {count.shape} {count.dtype}",
                    )


def own_budget(subject: Subject) -> None:
    """k=None asks for as many keys as the method likes."""
    require_part(subject.index.attend(subject.data.queries, None), subject.data.queries.shape)
    if not subject.index.has_search:
        return
    found = subject.index.search(subject.data.queries, None)
    require(found.ids.ndim == 2, f"ids must be (m, any), got {found.ids.shape}")
    require_well_formed(found, N_QUERIES, found.ids.shape[1], N_KEYS)


def every_effort(subject: Subject) -> str:
    """Each setting of the sweep is accepted, at its own k and at another, and gives well-formed ids."""
    sweep = subject.sweep(subject.index, N_KEYS, K)
    require(len(sweep) > 0, "effort_sweep must not be empty")
    for effort in sweep:
        for k in (K, 5 * K):
            part = subject.index.attend(subject.data.queries, k, **effort)
            require_part(part, subject.data.queries.shape)
            if subject.index.has_search:
                found = subject.index.search(subject.data.queries, k, **effort)
                require_well_formed(found, N_QUERIES, k, N_KEYS)
    return f"{len(sweep)} settings"


def more_results_than_keys(subject: Subject) -> None:
    """K > n gives k columns, of which at most n are real."""
    subject.answer(subject.index, N_KEYS + 7)


def few_keys(subject: Subject) -> None:
    """One, two or five keys are an index too, smaller than any parameter of the method."""
    for n in (1, 2, 5):
        index = subject.built(subject.data.keys[:n], subject.data.values[:n])
        for k in (1, n, K):
            subject.finds_something(index, k, n, f"of {n} keys")


def one_dimension(subject: Subject) -> None:
    """Rows of one dimension are vectors too."""
    keys = subject.data.keys[:, :1]
    index = subject.built(keys, subject.data.values[:, :1])
    subject.answer(index, K, subject.data.queries[:, :1])


def duplicates(subject: Subject) -> None:
    """Keys that are there many times, or all the same, are found as different ids."""
    for keys in (
        np.tile(subject.data.keys[: N_KEYS // 50], (50, 1)),
        np.tile(subject.data.keys[:1], (400, 1)),
    ):
        subject.finds_something(subject.built(keys, keys), K, len(keys), "among duplicates")


def zero_rows(subject: Subject) -> None:
    """Keys and queries of zeros are rows like others."""
    keys = subject.data.keys.copy()
    keys[::3] = 0
    queries = subject.data.queries.copy()
    queries[::5] = 0
    subject.answer(subject.built(keys, subject.data.values), K, queries)
    subject.answer(subject.built(np.zeros_like(keys), subject.data.values), K, queries)


def attend_is_exact(subject: Subject) -> str | None:
    """`attend` is softmax over `attended_ids`, by default what `search` found; all keys if exact."""
    index, data, remark = subject.index, subject.data, None
    for k in (K, N_KEYS):
        effort = subject.dearest(index, N_KEYS, k)
        part = index.attend(data.queries, k, **effort)
        require_part(part, data.queries.shape)
        ids = index.attended_ids(data.queries, k, **effort)
        if ids is None:
            remark = "estimates: only the shape of its attention was checked"
            continue
        if selects(index):
            require_same(ids, index.search(data.queries, k, **effort).ids, "attended_ids against search")
        output, lse = dense_attention(data.queries, ids, data.keys, data.values)
        require(np.allclose(part.output, output, atol=1e-4), f"output is not that of the ids found, k = {k}")
        require(np.allclose(part.lse, lse, atol=1e-4), f"lse is not that of the ids found, k = {k}")
        if index.kind == "exact" and k == N_KEYS:
            require((ids >= 0).all(), "an exact method must find all n keys")
    return remark


def batch_equals_blocks(subject: Subject) -> None:
    """Many queries in one call score what the same queries score block by block."""
    data = subject.data
    together = subject.answer(subject.index, K)
    blocks = np.split(data.queries, N_QUERIES // GROUP)
    apart = np.concatenate([subject.answer(subject.index, K, block) for block in blocks])
    if not subject.index.has_search:
        require_same(together, apart, "a batch against blocks")
        return
    scores = [np.einsum("md,mkd->mk", data.queries, data.keys[ids]) for ids in (together, apart)]
    require(((together < 0) == (apart < 0)).all(), "a batch finds another number of keys than blocks")
    require(np.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4), "a batch finds other keys than blocks")


def recall_floor(subject: Subject) -> str | None:
    """At its dearest, a search finds half of the true top 10 of an easy set.

    A method that draws or compresses has no such aim: its attention must beat an output of zero.
    """
    index = subject.index
    if index.kind in ("floor", "policy"):
        return f"is a {index.kind}: it does not look for the query's keys"
    if index.kind in ("sampling", "compressor"):
        error = subject.attention_error(subject.data.queries)
        require(error <= ERROR_CEILING, f"attention error is {error:.2f}, must be at most {ERROR_CEILING}")
        return f"attention error {error:.2f}"
    found = subject.search(index, K)
    recall = overlap(true_top(subject.data.keys, subject.data.queries, K), found.ids)
    require(recall >= RECALL_FLOOR, f"recall@{K} is {recall:.2f}, must be at least {RECALL_FLOOR}")
    return f"recall@{K} {recall:.2f}"
