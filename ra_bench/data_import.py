"""`ra-bench data import`: another family's data set, written as a dump. What it lacks stays absent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ra_bench.data import DataSource
from ra_bench.errors import UsageError
from ra_bench.vectors import DataSet, HeadName, HeadVectors
from ra_bench.writer import DumpWriter

_BLOCK_ROWS = 1 << 16


def import_into(
    source: DataSource,
    out: Path,
    softmax_scale: float | None = None,
    model: str | None = None,
    max_keys: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> DataSet:
    """The dump that holds all of `source`; UsageError where it is one already, or `out` is in use.

    Keys lie in their order, and heads are named by place: doc000, doc001. A `softmax_scale` or `model` given
    here fills what the data set does not tell.
    """
    if isinstance(source, DataSet):
        raise UsageError(f"data set '{source.path}' is a dump already")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out must be a new folder, got '{out}'")
    if softmax_scale is not None and not 0 < softmax_scale < float("inf"):
        raise UsageError(f"--softmax-scale must be more than 0, got {softmax_scale:g}")
    if max_keys is not None and max_keys < 1:
        raise UsageError(f"--max-keys must be at least 1, got {max_keys}")
    documents = {
        name: f"doc{place:03}" for place, name in enumerate(dict.fromkeys(h.document for h in source.heads))
    }
    first = source.load(source.heads[0])
    with DumpWriter(out, str(first.keys.dtype)) as writer:
        for name in source.heads:
            progress(str(name))
            head = source.load(name)
            _write(
                writer,
                HeadName(documents[name.document], name.layer, name.kv_head),
                head,
                softmax_scale,
                model,
                max_keys,
            )
        writer.finish(
            {
                "verb": "data import",
                "source": source.path.resolve().name,
                "source_hash": source.hash,
                "has_layers": source.has_layers,
                "documents": documents,
                "max_keys": max_keys,
            }
        )
    return DataSet.open(out)


def _write(
    writer: DumpWriter,
    name: HeadName,
    head: HeadVectors,
    softmax_scale: float | None,
    model: str | None,
    max_keys: int | None,
) -> None:
    known = head.metadata.softmax_scale
    metadata = replace(
        head.metadata,
        softmax_scale=known if known is not None else softmax_scale,
        model=head.metadata.model or model or "",
    )
    dim, group = head.keys.shape[1], head.about.group
    for kind, rows in (("keys", head.keys), ("values", head.values)):
        if rows is None:
            continue
        file = writer.open(name, kind, dim, metadata)  # type: ignore[arg-type]
        for start in range(0, len(rows[:max_keys]), _BLOCK_ROWS):
            file.append(rows[:max_keys][start : start + _BLOCK_ROWS], None)
        writer.close(file)
    scale = np.float32(1.0 if known is None else known)
    heads = (name.kv_head * group + np.arange(group)).astype(np.int16)
    if len(head.prefill_queries):
        file = writer.open(name, "prefill_queries", dim, metadata)
        file.append(head.prefill_queries / scale, None, np.tile(heads, len(head.prefill_queries) // group))
    file = writer.open(name, "decode_queries", dim, metadata)
    file.append(
        head.decode_queries / scale,
        None,
        np.tile(heads, len(head.decode_queries) // group),
        head.decode_steps,
    )
