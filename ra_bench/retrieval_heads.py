"""Which KV heads of a model retrieve, told from a dump of random tokens that repeat.

RazorAttention (Tang et al., arXiv 2407.15891), section 3.2: on a repeated random text an echo head attends to
the earlier tokens that are the current one, an induction head to those that came after them. The heads of the
largest scores retrieve: 14 % by induction and 1 % by echo in the paper, whose models have a query head for
each KV head. Here the query heads are ranked, and a KV head retrieves if one of its query heads does.

    ra-bench dump --model MODEL --prompt repeated:2500x4 --context 10000 --decode-steps 0 --out repeated
    ra-bench heads --data repeated --out heads.json
    ra-bench compare --indexes razor:heads=heads.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ra_bench.attention import partial_attention
from ra_bench.errors import UsageError
from ra_bench.prompts import Repeated
from ra_bench.vectors import DataSet, HeadVectors

SCHEMA_VERSION = 1
PAPER_INDUCTION_SHARE, PAPER_ECHO_SHARE = 0.14, 0.01


@dataclass(frozen=True)
class HeadScores:
    """Of one KV head, and of each of its G query heads: mean weights in [0, 1]."""

    layer: int
    kv_head: int
    echo: list[float]
    induction: list[float]


@dataclass(frozen=True)
class RetrievalHeads:
    """A model's scores and the (layer, KV head) that retrieve; as JSON in a file."""

    model: str
    prompt: str
    token_hash: str
    induction_share: float
    echo_share: float
    retrieval: list[tuple[int, int]]
    scores: list[HeadScores]

    @classmethod
    def rank(
        cls, about: Mapping[str, str], scores: list[HeadScores], induction_share: float, echo_share: float
    ) -> Self:
        """Takes the best `induction_share` and `echo_share` of all query heads, at least one each if not 0.

        `about` holds model, prompt and token_hash. Raises UsageError for a share outside [0, 1].
        """
        chosen: set[int] = set()
        for name, share in (("induction", induction_share), ("echo", echo_share)):
            if not 0 <= share <= 1:
                raise UsageError(f"--{name} must be in [0, 1], got {share:g}")
            flat = np.array([getattr(one, name) for one in scores])  # (KV heads, G)
            count = max(1, round(share * flat.size)) if share else 0
            best = np.argsort(-flat.ravel(), kind="stable")[:count]
            chosen |= set((best // flat.shape[1]).tolist())
        retrieval = sorted((scores[head].layer, scores[head].kv_head) for head in chosen)
        return cls(
            **about,
            induction_share=induction_share,
            echo_share=echo_share,
            retrieval=retrieval,
            scores=scores,
        )

    def retrieves(self, layer: int, kv_head: int) -> bool:
        """Whether the head keeps all tokens. Raises ValueError for a head that was not scored."""
        if not any((one.layer, one.kv_head) == (layer, kv_head) for one in self.scores):
            raise ValueError(f"heads of {self.model} tell nothing of layer {layer}, KV head {kv_head}")
        return (layer, kv_head) in self.retrieval

    def write(self, path: Path) -> None:
        """Writes the file: a line a head."""
        facts = asdict(self) | {"schema_version": SCHEMA_VERSION}
        scores = ",\n  ".join(json.dumps(one) for one in facts.pop("scores"))
        text = json.dumps(facts, indent=1).removesuffix("\n}")
        path.write_text(f'{text},\n "scores": [\n  {scores}\n ]\n}}\n', encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file that `write` wrote. Raises ValueError where it is absent or of another form."""
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if facts.pop("schema_version") != SCHEMA_VERSION:
                raise ValueError("another schema version")
            facts["scores"] = [HeadScores(**one) for one in facts["scores"]]
            facts["retrieval"] = [(int(layer), int(kv_head)) for layer, kv_head in facts["retrieval"]]
            return cls(**facts)
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"heads must be a file of `ra-bench heads`: {path}: {error}") from error


def classify(
    data: DataSet,
    induction_share: float = PAPER_INDUCTION_SHARE,
    echo_share: float = PAPER_ECHO_SHARE,
) -> RetrievalHeads:
    """Scores and ranks all heads of a dump of a `Repeated` prompt; they should be all of the model.

    Raises UsageError for another dump.
    """
    scores, about = [], {}
    for name in data.heads:
        head = data.load(name)
        repeated = Repeated.parse(head.metadata.prompt)
        if repeated is None:
            prompt = head.metadata.prompt
            raise UsageError(
                f"--data must be a dump of --prompt repeated:TOKENSxTIMES, {data.path} is of {prompt}"
            )
        if head.metadata.window is None:  # a sliding layer keeps its window anyway
            echo, induction = score(head, repeated.tokens)
            scores.append(HeadScores(name.layer, name.kv_head, _rounded(echo), _rounded(induction)))
        metadata = head.metadata
        about = {"model": metadata.model, "prompt": metadata.prompt, "token_hash": metadata.token_hash}
    if not scores:
        raise UsageError(f"--data {data.path} holds no layer of full attention")
    return RetrievalHeads.rank(about, scores, induction_share, echo_share)


def score(head: HeadVectors, period: int) -> tuple[np.ndarray, np.ndarray]:
    """Echo and induction scores (G,) of the query heads of `head`, of a text that repeats after `period`.

    The mean, over the queries after the first round, of the weight on all earlier tokens that are the
    query's own (echo), or that followed those (induction).
    """
    later = head.prefill_query_positions >= period
    queries, positions = head.prefill_queries[later], head.prefill_query_positions[later]
    if not len(queries):
        raise UsageError(f"{head.name} has no queries after the first {period} tokens")
    # Only the log-sum-exp is used, which no values decide: a data set may lack them.
    _, lse = partial_attention(queries, head.keys, head.keys, positions + 1)
    echo, induction = np.zeros(len(queries)), np.zeros(len(queries))
    for rounds in range(1, int(positions.max()) // period + 1):
        seen = positions >= rounds * period
        same = positions[seen] - rounds * period
        for weights, targets in ((echo, same), (induction, same + 1)):
            keys = head.keys[targets].astype(np.float32)
            weights[seen] += np.exp(np.einsum("md,md->m", queries[seen], keys) - lse[seen])
    group = head.about.group
    return echo.reshape(-1, group).mean(axis=0), induction.reshape(-1, group).mean(axis=0)


def _rounded(scores: np.ndarray) -> list[float]:
    return [round(float(one), 5) for one in scores]
