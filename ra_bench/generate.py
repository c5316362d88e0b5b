"""Attention-like heads of any length, fitted to a real one: `ra-bench data gen --like DUMP`.

A smoothed bootstrap of the real head, before its rotary embedding. Keys and values come in runs of
consecutive real tokens, each run once before any comes again; a row is then moved by a difference of two
others of its cluster, so that no row is a copy and clusters keep their shape. Queries are drawn in the
same way, a token's G heads together. All are rotated to their new positions, by a rotation stretched as
YaRN does where these are more than in the real head. Sinks and the last tokens stay where attention expects
them: at the beginning, and just before the first decoded token. `Knobs` move what makes heads hard.

Rows are made in blocks and written at once: memory is that of the real head, whatever the length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ra_bench.arguments import check_seed, check_tokens
from ra_bench.data import DataSource
from ra_bench.errors import UsageError
from ra_bench.head import Rope
from ra_bench.split import RECENT_TOKENS, SINK_TOKENS
from ra_bench.vectors import DataSet, HeadMetadata, HeadName, HeadVectors
from ra_bench.writer import DumpWriter, refuse_full_disk, row_bytes

RUN_TOKENS = 32  # consecutive real tokens that stay together
JITTER = 0.35  # of the difference of two rows of a cluster
ROWS_A_CLUSTER = 48
BLOCK_TOKENS = 1 << 16
TAIL_SHARE = 0.05  # of the keys' variance lies in the directions that `ood` stretches queries along
FEW_TURNS, MANY_TURNS = 1, 32  # YaRN's alpha and beta
_FIT_ROUNDS, _FIT_ROWS = 5, 64  # of k-means, and rows a cluster that it is fitted to


@dataclass(frozen=True)
class Knobs:
    """What to change of the real head; 1 keeps it.

    `ood` stretches queries along the directions in which keys vary least: their Mahalanobis distance
    grows, the order of keys hardly changes. `norm_spread` is the exponent of key norms about their
    geometric mean. `sharpness` multiplies queries: attention mass gathers in fewer keys. `drift`
    multiplies the shift from prefill to decode queries.
    """

    ood: float = 1.0
    norm_spread: float = 1.0
    sharpness: float = 1.0
    drift: float = 1.0


@dataclass(frozen=True)
class Request:
    """What to generate: `tokens` of prefill, `learn_queries` rows of it, and `decode_steps` tokens after."""

    tokens: int
    decode_steps: int = 64
    learn_queries: int = 32768
    knobs: Knobs = Knobs()
    seed: int = 0


def generate(
    like: DataSource,
    heads: list[HeadName],
    out: Path,
    request: Request,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> DataSet:
    """Writes a dump into `out` with a generated head for each of `heads` of `like`.

    Raises UsageError for a head too short to be learned from, or without what it takes; `progress(head, done,
    tokens)` is told how it goes.
    """
    _check(out, request)
    first = like.load(heads[0])
    refuse_full_disk(out, len(heads) * _head_bytes(first, request))
    with DumpWriter(out, first.keys.dtype) as writer:
        for name in heads:
            model = _Model(like.load(name), request)
            _write(writer, model, name, progress)
        source = {"like": like.path.resolve().name, "like_hash": like.hash, "heads": [str(h) for h in heads]}
        writer.finish({"verb": "data gen"} | source | asdict(request))
    return DataSet.open(out)


def _check(out: Path, request: Request) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out must be a new folder, got '{out}'")
    least = SINK_TOKENS + RECENT_TOKENS + 1
    for argument, value, low in (
        ("--tokens", request.tokens, least),
        ("--decode-steps", request.decode_steps, 0),
        ("--learn-queries", request.learn_queries, 0),
    ):
        if value < low:
            raise UsageError(f"{argument} must be at least {low}, got {value}")
    check_seed(request.seed)
    check_tokens("--tokens", request.tokens, request.decode_steps)
    for name, value in asdict(request.knobs).items():
        if not 0 <= value <= 100:
            raise UsageError(f"--{name.replace('_', '-')} must be between 0 and 100, got {value:g}")


def _head_bytes(like: HeadVectors, request: Request) -> int:
    """What the files of a head take, about."""
    keys = request.tokens + request.decode_steps
    queries = min(request.tokens * like.about.group, request.learn_queries)
    rows = 2 * keys + queries + request.decode_steps * like.about.group
    return rows * row_bytes(like.keys.shape[1], like.keys.dtype)


class _Pool:
    """Real rows (n, any) and their clusters, from which moved rows are drawn."""

    def __init__(self, rows: np.ndarray, place: np.ndarray, seed: int) -> None:
        self.rows = rows
        self._members, self._starts, self._sizes, self._cluster = _clusters(place, seed)

    def moved(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The rows `chosen` (m,), each moved by a part of the difference of two rows of its cluster."""
        cluster = self._cluster[chosen]
        starts, sizes = self._starts[cluster], self._sizes[cluster]
        alone = sizes < 2  # then any two rows will do
        starts, sizes = np.where(alone, 0, starts), np.where(alone, len(self._members), sizes)
        at = (rng.random(len(chosen)) * sizes).astype(np.int64)
        other = (at + 1 + (rng.random(len(chosen)) * (sizes - 1)).astype(np.int64)) % sizes
        first, second = self._members[starts + at], self._members[starts + other]
        return self.rows[chosen] + np.float32(JITTER / 2**0.5) * (self.rows[first] - self.rows[second])


class _Model:
    """A real head, taken apart: what new tokens are drawn from."""

    def __init__(self, head: HeadVectors, request: Request) -> None:
        if head.key_positions is None or head.values is None or not len(head.prefill_queries):
            raise UsageError(f"--like: {head.name} must have positions, values and prefill queries")
        self.head, self.request = head, request
        self.rng = np.random.default_rng([request.seed, head.name.layer, head.name.kv_head])
        self.group, self.dim = head.about.group, head.keys.shape[1]
        decoded = head.decode_query_positions
        self.prefilled = (
            int(np.searchsorted(head.key_positions, decoded[0])) if len(decoded) else len(head.keys)
        )
        if self.prefilled < SINK_TOKENS + RECENT_TOKENS + 16 * RUN_TOKENS:
            raise UsageError(f"--like: {head.name} is too short to learn from: {self.prefilled} tokens")
        self.rope = head.about.rope
        self.new_rope = self.rope and _stretched(self.rope, request.tokens / self.prefilled, self.prefilled)
        keys = self._turned_back(head.keys, head.key_positions)
        self.norm = float(np.exp(np.log(np.linalg.norm(keys, axis=1).clip(1e-6)).mean()))
        self.mean = keys.mean(axis=0)
        self.tail = _tail_directions(keys)
        self.keys = keys
        values = np.asarray(head.values, np.float32)
        self.pool = _Pool(np.concatenate([keys, values], axis=1), keys[:, : self.dim], request.seed)
        unscaled = np.float32(head.about.softmax_scale)
        prefill = self._turned_back(head.prefill_queries / unscaled, head.prefill_query_positions)
        decode = self._turned_back(head.decode_queries / unscaled, head.decode_query_positions)
        self.prefill = _Pool(self._blocks(prefill), self._blocks(prefill), request.seed)
        self.has_decoded = len(decode) > 0
        source = decode if self.has_decoded else prefill
        self.decode = _Pool(self._blocks(source), self._blocks(source), request.seed)
        self.shift = self.decode.rows.mean(axis=0) - self.prefill.rows.mean(axis=0)

    @property
    def metadata(self) -> HeadMetadata:
        """That of the real head, but for where the vectors come from."""
        real = self.head.metadata
        return replace(
            real,
            model=f"generated, like {real.model}",
            context_tokens=self.request.tokens,
            token_hash="",
            rope=self.new_rope,
            prompt=f"generated, seed {self.request.seed}, like {self.head.name} of {real.model}",
        )

    def tokens(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Positions (m,), keys and values (m, d) of all tokens, block by block; decoded ones last."""
        total = self.request.tokens + self.request.decode_steps
        order = self._order()
        for start in range(0, total, BLOCK_TOKENS):
            positions = np.arange(start, min(total, start + BLOCK_TOKENS), dtype=np.int32)
            chosen = np.fromiter(order, np.int64, len(positions))
            rows = self.pool.moved(chosen, self.rng)
            fixed = positions < SINK_TOKENS  # sinks are few, and unlike all other keys
            rows[fixed] = self.pool.rows[chosen[fixed]]
            keys, values = rows[:, : self.dim], rows[:, self.dim :]
            norms = np.linalg.norm(keys, axis=1, keepdims=True).clip(1e-6)
            keys = keys * (norms / self.norm) ** (self.request.knobs.norm_spread - 1.0)
            yield positions, self._turned(keys, positions), values

    def learned(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (m,) of the prefill tokens whose queries are kept, and those queries (m * G, d)."""
        wanted = min(self.request.tokens, max(1, self.request.learn_queries // self.group))
        tokens = np.unique(np.linspace(0, self.request.tokens - 1, wanted).round().astype(np.int32))
        chosen = _shuffled_epochs(len(self.prefill.rows), len(tokens), self.rng)
        return tokens, self._queries(self.prefill.moved(chosen, self.rng), tokens)

    def decoded(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (m,) of the decoded tokens, and their queries (m * G, d)."""
        steps = np.arange(self.request.decode_steps)
        count = len(self.decode.rows)
        rows = self.decode.moved(steps % count if self.has_decoded else count - 1 - steps % count, self.rng)
        shift = self.shift if self.has_decoded else 0.0 * self.shift
        rows = rows + np.float32(self.request.knobs.drift - 1.0) * shift
        positions = (self.request.tokens + steps).astype(np.int32)
        return positions, self._queries(rows, positions)

    def _order(self) -> Iterator[int]:
        """Real tokens in the order in which new ones are drawn from them."""
        real, wanted = self.prefilled, self.request.tokens
        yield from range(SINK_TOKENS)
        middle = wanted - SINK_TOKENS - RECENT_TOKENS
        runs = np.arange(SINK_TOKENS, real - RECENT_TOKENS, RUN_TOKENS)
        while middle > 0:
            for run in self.rng.permutation(runs):
                count = min(RUN_TOKENS, real - RECENT_TOKENS - run, middle)
                yield from range(run, run + count)
                middle -= count
                if not middle:
                    break
        yield from range(real - RECENT_TOKENS, real)
        decoded = len(self.head.keys) - real
        for step in range(self.request.decode_steps):
            yield real + step % decoded if decoded else real - 1 - step % RECENT_TOKENS

    def _queries(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        queries = rows.reshape(-1, self.dim)
        knobs = self.request.knobs
        if knobs.ood != 1.0:
            from_mean = queries - self.mean
            queries = queries + (knobs.ood - 1.0) * (from_mean @ self.tail) @ self.tail.T
        turned = self._turned(queries, np.repeat(tokens, self.group))
        return turned * np.float32(knobs.sharpness)

    def _blocks(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(-1, self.group * self.dim)

    def _turned(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self.new_rope is None or self.new_rope.stage == "pre":
            return np.asarray(rows, np.float32)
        return self.new_rope.apply(rows, positions)

    def _turned_back(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self.rope is None or self.rope.stage == "pre":
            return np.asarray(rows, np.float32)
        return self.rope.undo(rows, positions)


def _write(
    writer: DumpWriter, model: _Model, name: HeadName, progress: Callable[[str, int, int], None]
) -> None:
    group, dim, metadata = model.group, model.dim, model.metadata
    tokens = model.request.tokens
    keys, values = (writer.open(name, kind, dim, metadata) for kind in ("keys", "values"))
    decoded = [
        writer.open(name, kind, dim, metadata) if model.request.decode_steps else None
        for kind in ("decoded_keys", "decoded_values")
    ]
    for positions, key_rows, value_rows in model.tokens():
        cut = int(np.searchsorted(positions, tokens))
        for file, more, rows in ((keys, decoded[0], key_rows), (values, decoded[1], value_rows)):
            file.append(rows[:cut], positions[:cut])
            if more is not None and cut < len(positions):
                more.append(rows[cut:], positions[cut:])
        progress(str(name), min(tokens, int(positions[-1]) + 1), tokens)
    heads = np.arange(name.kv_head * group, (name.kv_head + 1) * group, dtype=np.int16)
    if model.request.learn_queries:
        places, rows = model.learned()
        file = writer.open(name, "prefill_queries", dim, metadata)
        file.append(rows, np.repeat(places, group), np.tile(heads, len(places)))
    if model.request.decode_steps:
        places, rows = model.decoded()
        steps = np.repeat(places - tokens, group)
        file = writer.open(name, "decode_queries", dim, metadata)
        file.append(rows, np.repeat(places, group), np.tile(heads, len(places)), steps)


def _clusters(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """k-means: members in the order of clusters, where each begins, its size, and each row's cluster."""
    import faiss

    count = max(1, len(rows) // ROWS_A_CLUSTER)
    rows = np.ascontiguousarray(rows, np.float32)
    kmeans = faiss.Kmeans(
        rows.shape[1],
        count,
        niter=_FIT_ROUNDS,
        seed=seed + 1,
        min_points_per_centroid=1,
        max_points_per_centroid=_FIT_ROWS,
    )
    kmeans.train(rows)
    cluster = kmeans.index.search(rows, 1)[1][:, 0]
    sizes = np.bincount(cluster, minlength=count)
    return np.argsort(cluster, kind="stable"), np.cumsum(sizes) - sizes, sizes, cluster


def _tail_directions(keys: np.ndarray) -> np.ndarray:
    """The directions (d, any) of least variance of `keys`, which together hold TAIL_SHARE of it."""
    values, vectors = np.linalg.eigh(np.cov(keys.astype(np.float64), rowvar=False))
    few = max(1, int(np.searchsorted(np.cumsum(values) / values.sum(), TAIL_SHARE)))
    return vectors[:, :few].astype(np.float32)


def _stretched(rope: Rope, factor: float, tokens: int) -> Rope:
    """The rotation of a model whose context is `factor` times as long, by YaRN (arXiv 2309.00071, 3.2).

    Pairs that turn less than once in the real head's `tokens` turn as far in the longer one, pairs that turn
    often go on as they do. Without it distant positions meet angles that no real query has met: at 128 times
    the sample's length queries are no longer apart from the keys, and a few dozen keys hold all attention.
    """
    if factor <= 1:
        return rope
    turns = tokens * rope.inverse_frequencies / (2 * np.pi)
    kept = np.clip((turns - FEW_TURNS) / (MANY_TURNS - FEW_TURNS), 0, 1)
    return replace(rope, inverse_frequencies=rope.inverse_frequencies * (kept + (1 - kept) / factor))


def _shuffled_epochs(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """`wanted` numbers below `count`, each once before any comes again."""
    epochs = -(-wanted // count)
    return np.concatenate([rng.permutation(count) for _ in range(epochs)])[:wanted]
