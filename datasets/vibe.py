"""VIBE's HDF5 files (arXiv 2505.17810): train, test, learn and the neighbours of both.

`llama-128-ip` and `yi-128-ip` are keys and queries of one attention head each, without values, positions and
groups: the first token and the last 2,047 are left out, and test queries are drawn at random from the
prefill's, which flatters indexes that learn from the others.
"""

from __future__ import annotations

from pathlib import Path

from ra_bench.datasets.ann_benchmarks import open_hdf5
from ra_bench.datasets.ann_benchmarks import recognises as is_hdf5

from ra_bench.data import Family, Known
from ra_bench.vector_set import VectorSet

SOURCE = "https://huggingface.co/datasets/vector-index-bench/vibe/resolve/main"

# Of attention heads the softmax scale is known: 1 / sqrt(d), as Llama and Yi have it.
ATTENTION = {
    "llama-128-ip": "Llama-3-8B-Instruct-262k, layer 12, query head 15: 256,921 keys, d 128",
    "yi-128-ip": "Yi-6B-200K, layer 31, query head 13: 187,843 keys, d 128",
}


def recognises(path: Path) -> bool:
    """An HDF5 file of one of VIBE's attention heads, by its name: others are as ann-benchmarks' are."""
    return is_hdf5(path) and path.stem in ATTENTION


def open_vibe(path: Path) -> VectorSet:
    """One of VIBE's attention heads."""
    model = ATTENTION[path.stem].partition(",")[0]
    return open_hdf5(
        path, softmax_scale=128**-0.5, model=model, origin=f"VIBE {path.stem}: {ATTENTION[path.stem]}"
    )


FAMILY = Family(
    name="vibe",
    layout="llama-128-ip.hdf5 or yi-128-ip.hdf5; VIBE's other files are read as ann-benchmarks'",
    recognises=recognises,
    open=open_vibe,
    known=tuple(
        Known(name, f"vibe/{name}.hdf5", f"{SOURCE}/{name}.hdf5", about) for name, about in ATTENTION.items()
    ),
)
