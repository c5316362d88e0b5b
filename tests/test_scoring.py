"""A method that is one expression passes the contract, and finds what a plain computation of it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ra_bench.conformance import check
from ra_bench.registry import create

CODE = '''
"""Scores by the first channels only."""
from dataclasses import dataclass
from ra_bench.index import Bytes
from ra_bench.scoring import ScoringIndex

@dataclass
class FirstChannels(ScoringIndex):
    """q[:c] · k[:c]."""

    channels: int = 16

    def prepare(self, keys, queries):
        self.part = keys[:, : self.channels].contiguous()

    def approximate_scores(self, queries):
        return queries[:, : self.channels] @ self.part.T

    @property
    def key_bytes(self):
        return self.part.shape[1] * 4

    @property
    def nbytes(self):
        return Bytes(self.part.numel() * 4)
'''


def spec(folder: Path, tail: str = "") -> str:
    file = folder / "first_channels.py"
    file.write_text(CODE)
    return f"{file}::FirstChannels{tail}"


def test_a_method_of_one_expression_passes_every_check(tmp_path) -> None:
    results = check(spec(tmp_path))

    assert [result for result in results if not result.passed] == []


def test_it_finds_the_top_of_its_scores_and_counts_what_it_reads(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("ra_bench.scoring.BLOCK_ELEMENTS", 1500)  # three queries a block
    rng = np.random.default_rng(0)
    keys, queries = (
        rng.normal(size=(500, 16)).astype(np.float16),
        rng.normal(size=(10, 16)).astype(np.float32),
    )
    index = create(spec(tmp_path, ":channels=4"))
    index.build(keys)

    found = index.search(queries, 7)

    scores = queries[:, :4] @ keys[:, :4].astype(np.float32).T
    np.testing.assert_array_equal(found.ids, np.argsort(-scores, axis=1)[:, :7])
    assert (found.work.keys_read == 500).all()
    assert (found.work.bytes_read == 500 * 4 * 4).all()
