"""What the methods that call faiss share: threads, row types, reading its files."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

# faiss's float16 scan handles 8 (AVX2) or 16 (AVX-512) dimensions at a time, and falls back to one at a time,
# four times slower, where d is no multiple of that: a lifted key of 65 dimensions is stored as 80.
ROW_MULTIPLE = 16

Count = TypeVar("Count", int, np.ndarray)


def library() -> Any:
    """The faiss module, imported at the first call; untyped, since its stubs show C++ signatures."""
    return importlib.import_module("faiss")


def use_threads(threads: int) -> None:
    """Makes faiss use `threads` from now on; OpenMP keeps this number per calling thread."""
    faiss = library()
    if faiss.omp_get_max_threads() != threads:
        faiss.omp_set_num_threads(threads)


def round_up(count: Count, multiple: int) -> Count:
    """The least multiple of `multiple` that is not less than `count`, for a number or each of an array."""
    return -(-count // multiple) * multiple


def padded(rows: np.ndarray, width: int) -> np.ndarray:
    """`rows` (m, d) as (m, width) float32, C-contiguous, zeros on the right: inner products stay the same."""
    if rows.shape[1] == width:
        return np.ascontiguousarray(rows, np.float32)
    out = np.zeros((len(rows), width), np.float32)
    out[:, : rows.shape[1]] = rows
    return out


def default_nlist(n: int, nlist: int) -> int:
    """The setting `nlist`, or 4 * sqrt(n) where it is 0; never more than the keys."""
    return max(1, min(n, nlist or int(4 * math.sqrt(n))))


def nprobe_sweep(nlist: int) -> list[int]:
    """Numbers of lists from 0.3 to 60 %, without repeats."""
    fractions = (0.003, 0.007, 0.015, 0.03, 0.05, 0.1, 0.17, 0.25, 0.4, 0.6)
    return sorted({max(1, round(fraction * nlist)) for fraction in fractions})


def train_lists(
    index: Any,
    rows: np.ndarray,
    seed: int,
    threads: int,
    at_least: int = 1,
    iterations: int = 10,
    on_device: bool = False,
) -> None:
    """Trains an empty faiss IVF `index` on `rows` and adds them: lists by L2, probes by inner product.

    K-means goes `iterations` times over the rows, at most 256 a list. faiss's own recipe for inner product
    normalises the centroids. Mean centroids, a key in the list of its nearest centroid (L2), and the lists
    probed in the order of q·centroid find 3 to 15 % more of the true top 100 of attention keys at the same
    cost. Fewer than `at_least` rows are repeated for the training, a little moved: codebooks of equal rows
    make faiss divide by zero. Codebooks train on one thread: their loops are so short that on a busy machine
    two threads took 46 s for what one does in 1 s. `on_device`: k-means in torch, on the
    GPU where there is one, over all rows.
    """
    faiss = library()
    use_threads(threads)
    index.cp.seed = seed
    index.cp.spherical = False
    index.cp.niter = iterations
    index.cp.min_points_per_centroid = 1  # silences a warning about few rows
    sample = rows
    if len(rows) < at_least:
        noise = np.random.default_rng(seed).standard_normal((at_least, rows.shape[1])).astype(np.float32)
        sample = np.resize(rows, noise.shape) + (1e-6 + 1e-2 * np.abs(rows).max()) * noise
    lists = None
    if on_device:
        from ra_bench.indexes._kmeans import kmeans

        centroids, lists = kmeans(rows, index.nlist, iterations, seed, threads)
        index.quantizer.add(centroids)
    else:
        index.train_q1(len(sample), faiss.swig_ptr(sample), False, faiss.METRIC_L2)  # the centroids
    use_threads(1)
    index.train(sample)  # what else there is to train
    use_threads(threads)
    if lists is None:
        index.add(rows)
    else:
        index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))


def add_to_lists(index: Any, quantizer: Any, rows: np.ndarray) -> None:
    """Adds rows to a trained IVF index: assigned by L2, where its quantizer is asked by inner product."""
    faiss = library()
    quantizer.metric_type = faiss.METRIC_L2
    try:
        index.add(rows)
    finally:
        quantizer.metric_type = faiss.METRIC_INNER_PRODUCT


def list_sizes(index: Any) -> np.ndarray:
    """Keys in each inverted list, int64, and a last 0 that list id -1 (no list) finds."""
    sizes = np.zeros(index.nlist + 1, np.int64)
    for i in range(index.nlist):
        sizes[i] = index.invlists.list_size(i)
    return sizes


def read(path: Path, rows: int) -> Any:
    """The faiss index in `path`; ValueError if it is torn or does not hold `rows` rows."""
    faiss = library()
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a whole faiss index: {str(error).splitlines()[0]}") from error
    if rows not in (0, index.ntotal):  # 0: a transform released them
        raise ValueError(f"{path} holds {index.ntotal} keys, not {rows}")
    return index
