"""How hard a head is for an index, by measures that hold for inner product.

Distance-based measures (relative contrast, intrinsic dimension) are undefined for it. All are of the keys
that an index holds and of a sample of queries; RetrievalAttention (arXiv 2409.10516) figure 3b measures
the Mahalanobis distance in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ra_bench.attention import KEY_ELEMENTS, best_device, on_device
from ra_bench.truth import exact_topk

SAMPLE_KEYS = 1024  # whose nearest key is looked for
SAMPLE_QUERIES = 256  # whose masses are measured
MAHALANOBIS_ROWS = 5000
COVARIANCE_ROWS = 100_000
HUB_K = 100
MASS = 0.9
# A key counts towards a mass by its score below the largest, in steps so fine that weights inside differ
# by 1 %.
_STEP = 0.01
_LOWEST = 40.0  # a key so far below the largest weighs 4e-18 of it


@dataclass(frozen=True)
class Difficulty:
    """Of one head; None where the data set does not tell enough (no softmax scale)."""

    not_own_nearest: (
        float  # share of keys that have a larger inner product with another key than with themselves
    )
    norm_cv: float  # standard deviation of key norms over their mean
    effective_keys: float | None  # exp of the entropy of attention over the indexed keys; median of queries
    keys_for_mass: float | None  # fewest keys that hold 90 % of that attention; median of queries
    mahalanobis_keys: float  # mean distance of keys to the keys' distribution: about sqrt(d)
    mahalanobis_queries: float  # mean distance of unscaled queries to it
    hubness: float  # skewness of how often a key is among a query's 100 largest inner products

    def row(self) -> dict[str, float | None]:
        """As columns of a result row."""
        return {f"difficulty_{part.name}": getattr(self, part.name) for part in fields(self)}


def difficulty(
    keys: np.ndarray, queries: np.ndarray, softmax_scale: float | None, seed: int = 0
) -> Difficulty:
    """The difficulty of `keys` (n, d) for `queries` (m, d), which are multiplied by the softmax scale.

    Of large heads a sample of keys and queries is measured, each against all keys; the score matrix is never
    held, nor all keys in float32.
    """
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(len(keys), min(SAMPLE_KEYS, len(keys)), replace=False))
    some_keys = keys[sample].astype(np.float32)
    own = np.einsum("nd,nd->n", some_keys, some_keys)
    nearest = exact_topk(some_keys, keys, 1)[1][:, 0]
    norms = _norms(keys)
    some_queries = _spread(queries, SAMPLE_QUERIES)
    effective, for_mass = None, None
    if softmax_scale is not None:
        entropy, counts = _masses(some_queries, keys)
        effective, for_mass = float(np.median(np.exp(entropy))), float(np.median(counts))
    unscaled = _spread(queries, MAHALANOBIS_ROWS) / (1.0 if softmax_scale is None else softmax_scale)
    of_keys, of_queries = _mahalanobis(keys, unscaled, rng)
    return Difficulty(
        not_own_nearest=float((nearest > own * (1 + 1e-4) + 1e-6).mean()),
        norm_cv=float(norms.std() / max(norms.mean(), 1e-30)),
        effective_keys=effective,
        keys_for_mass=for_mass,
        mahalanobis_keys=of_keys,
        mahalanobis_queries=of_queries,
        hubness=_hubness(_spread(queries, 4 * SAMPLE_QUERIES), keys),
    )


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `rows`, evenly spaced, as float32."""
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return np.asarray(rows, np.float32)


def _norms(keys: np.ndarray) -> np.ndarray:
    rows = max(1, KEY_ELEMENTS["cpu"] // keys.shape[1])
    blocks = (keys[start : start + rows].astype(np.float32) for start in range(0, len(keys), rows))
    return np.concatenate([np.sqrt(np.einsum("nd,nd->n", block, block)) for block in blocks])


def _masses(queries: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entropy (m,) of each query's attention over `keys`, and how many keys hold MASS of it (m,)."""
    import torch

    device = best_device()
    wanted = on_device(queries, device)
    rows = max(1, KEY_ELEMENTS[device] // max(keys.shape[1], len(queries)))
    largest = torch.full((len(queries),), -torch.inf, device=device)
    for start in range(0, len(keys), rows):
        scores = wanted @ on_device(keys[start : start + rows], device).T
        largest = torch.maximum(largest, scores.amax(dim=1))
    bins = int(_LOWEST / _STEP) + 1
    counts = torch.zeros(len(queries) * bins, dtype=torch.float64, device=device)
    mass, weighted = (torch.zeros(len(queries), dtype=torch.float64, device=device) for _ in range(2))
    offset = torch.arange(len(queries), device=device)[:, None] * bins
    for start in range(0, len(keys), rows):
        below = largest[:, None] - wanted @ on_device(keys[start : start + rows], device).T
        weights = torch.exp(-below)
        mass += weights.sum(dim=1)
        weighted += (weights * below).sum(dim=1)
        place = (below / _STEP).clamp(max=bins - 1).long() + offset
        counts += torch.bincount(place.view(-1), minlength=len(counts)).double()
    entropy = torch.log(mass) + weighted / mass
    counts = counts.view(len(queries), bins)
    middle = torch.exp(-(torch.arange(bins, device=device).double() + 0.5) * _STEP)
    held = torch.cumsum(counts * middle, dim=1)
    reached = (held < MASS * held[:, -1:]).sum(dim=1)  # the first bin with which the mass is reached
    return entropy.cpu().numpy(), torch.cumsum(counts, 1).gather(1, reached[:, None])[:, 0].cpu().numpy()


def _mahalanobis(keys: np.ndarray, queries: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Mean distances to the distribution of keys: of keys that it was not made from, and of queries."""
    chosen = rng.permutation(len(keys))[: COVARIANCE_ROWS + MAHALANOBIS_ROWS]
    apart = min(MAHALANOBIS_ROWS, len(chosen) // 4)
    rest = keys[np.sort(chosen[apart:])].astype(np.float64)
    mean = rest.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(rest, rowvar=False).reshape(keys.shape[1], -1))
    whiten = vectors / np.sqrt(np.maximum(values, values.max() * 1e-9))  # constant dimensions do not count

    def mean_distance(rows: np.ndarray) -> float:
        return float(np.linalg.norm((rows.astype(np.float64) - mean) @ whiten, axis=1).mean())

    return mean_distance(keys[np.sort(chosen[:apart])] if apart else rest), mean_distance(queries)


def _hubness(queries: np.ndarray, keys: np.ndarray) -> float:
    """Skewness of the k-occurrence (Radovanović et al., JMLR 11, 2010), of queries among keys."""
    ids, _ = exact_topk(queries, keys, min(HUB_K, len(keys)))
    occurrence = np.bincount(ids[ids >= 0], minlength=len(keys)).astype(np.float64)
    spread = occurrence.std()
    return float(((occurrence - occurrence.mean()) ** 3).mean() / spread**3) if spread else 0.0
