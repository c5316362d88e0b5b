"""RazorAttention: the scores that tell its heads apart, the file that keeps them, the compensation token."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ra_bench import registry
from ra_bench.attention import partial_attention
from ra_bench.cli import app
from ra_bench.dump import DumpSettings, dump
from ra_bench.errors import UsageError
from ra_bench.head import Head
from ra_bench.prompts import Repeated, read_documents
from ra_bench.registry import create
from ra_bench.retrieval_heads import HeadScores, RetrievalHeads, classify, score
from ra_bench.vectors import DataSet

sys.path.append(str(Path(__file__).parent))
import tiny_model

N, D, G, PERIOD = 500, 16, 2, 20
RNG = np.random.default_rng(0)
KEYS = (0.3 * RNG.normal(size=(N, D)) + 0.3).astype(np.float32)
VALUES = (RNG.normal(size=(N, D)) + 1).astype(np.float32)
QUERIES = RNG.normal(size=(6, D)).astype(np.float32)
ABOUT = {"model": "tiny", "prompt": "repeated:20x3", "token_hash": "0"}


def built(spec: str, about: Head | None = None):
    index = create(spec)
    index.build(KEYS, VALUES, None, about or Head(group=G))
    return index


@pytest.fixture(scope="module")
def repeated(tmp_path_factory) -> DataSet:
    folder = tmp_path_factory.mktemp("razor")
    model = str(tiny_model.save_config(folder / "model"))
    settings = DumpSettings(
        model=model,
        out=folder / "dump",
        prompts=("repeated:20x3",),
        context_tokens=60,
        device="cpu",
        random_weights=True,
    )
    return dump(settings)


class TestPrompt:
    def test_random_tokens_repeat_and_are_distinct_within_a_round(self):
        [document] = read_documents(("repeated:20x3",), 60, list, vocabulary=50, seed=1)
        rounds = document.token_ids.reshape(3, 20)
        assert (rounds == rounds[0]).all()
        assert len(set(rounds[0].tolist())) == 20
        assert rounds.max() < 50
        [other] = read_documents(("repeated:20x3",), 60, list, vocabulary=50, seed=2)
        assert other.token_hash != document.token_hash

    @pytest.mark.parametrize(
        ("prompt", "context", "named"),
        [
            ("repeated:20x3", 59, "--context 60"),
            ("repeated:60x1", 60, "twice"),
            ("repeated:99x2", 198, "50 tokens"),
        ],
    )
    def test_a_prompt_that_cannot_be_is_refused(self, prompt: str, context: int, named: str):
        with pytest.raises(UsageError, match=named):
            read_documents((prompt,), context, list, vocabulary=50)
        assert Repeated.parse("repeated.txt") is None
        assert Repeated.parse(f"repeated:{'9' * 5000}x2") is None


class TestScores:
    def test_they_are_the_mean_weights_on_earlier_equals_and_on_what_followed_them(self, repeated):
        head = repeated.load(repeated.heads[-1])
        echo, induction = score(head, PERIOD)
        group = head.about.group
        sums = np.zeros((2, group))
        for row, position in enumerate(head.prefill_query_positions.tolist()):
            if position < PERIOD:
                continue
            logits = head.keys[: position + 1].astype(float) @ head.prefill_queries[row]
            weights = np.exp(logits) / np.exp(logits).sum()
            same = np.arange(position % PERIOD, position, PERIOD)
            sums[:, row % group] += weights[same].sum(), weights[same + 1].sum()
        np.testing.assert_allclose([echo, induction], sums / 40, rtol=1e-3)

    def test_the_best_query_heads_make_their_kv_heads_retrieve(self):
        scores = [
            HeadScores(0, 0, [0.9, 0.1], [0.1, 0.1]),
            HeadScores(0, 1, [0.0, 0.0], [0.2, 0.8]),
            HeadScores(1, 0, [0.1, 0.2], [0.7, 0.3]),
            HeadScores(1, 1, [0.0, 0.0], [0.0, 0.6]),
        ]
        known = RetrievalHeads.rank(ABOUT, scores, induction_share=0.25, echo_share=0.01)
        assert known.retrieval == [(0, 0), (0, 1), (1, 0)]
        assert RetrievalHeads.rank(ABOUT, scores, 0.25, 0).retrieval == [(0, 1), (1, 0)]
        assert known.retrieves(0, 1)
        assert not known.retrieves(1, 1)
        with pytest.raises(ValueError, match="layer 2"):
            known.retrieves(2, 0)
        with pytest.raises(UsageError, match="--echo"):
            RetrievalHeads.rank(ABOUT, scores, 0.25, 2)

    def test_the_command_writes_the_file_that_razor_reads(self, repeated, tmp_path):
        file = tmp_path / "heads.json"
        result = CliRunner().invoke(app, ["heads", "--data", str(repeated.path), "--out", str(file)])
        assert result.exit_code == 0, result.output
        known = RetrievalHeads.read(file)
        assert known == classify(repeated)
        assert len(known.scores) == len(repeated.heads)
        assert json.loads(file.read_text())["prompt"] == "repeated:20x3"
        for name in repeated.heads:
            about = Head(known.model, layer=name.layer, kv_head=name.kv_head, group=G)
            index = built(f"razor:heads={file}", about)
            assert index.retrieves == ((name.layer, name.kv_head) in known.retrieval)
        with pytest.raises(ValueError, match="another"):
            built(f"razor:heads={file}", Head("another"))

    def test_another_dump_is_refused(self, make_dump):
        with pytest.raises(UsageError, match="repeated:TOKENSxTIMES"):
            classify(DataSet.open(make_dump()))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 9}'])
    def test_a_file_that_is_none_is_refused(self, tmp_path, text: str):
        file = tmp_path / "heads.json"
        with pytest.raises(UsageError, match="heads must be a file"):
            create(f"razor:heads={file}")
        file.write_text(text)
        with pytest.raises(UsageError, match="heads must be a file"):
            create(f"razor:heads={file}")


class TestCompensation:
    @pytest.mark.parametrize("budget", [1, 100, 437, 499])
    def test_its_weight_in_the_softmax_is_that_of_all_dropped_tokens(self, budget: int):
        part = built("razor").attend(QUERIES, 10, budget=budget)
        dropped = N - budget
        mean_key, mean_value = KEYS[:dropped].mean(axis=0), VALUES[:dropped].mean(axis=0)
        kept = np.exp(QUERIES.astype(float) @ KEYS[dropped:].T)
        weight = dropped * np.exp(QUERIES.astype(float) @ mean_key)
        total = kept.sum(axis=1) + weight
        expected = (kept @ VALUES[dropped:] + weight[:, None] * mean_value) / total[:, None]
        np.testing.assert_allclose(part.output, expected, atol=1e-4)
        np.testing.assert_allclose(part.lse, np.log(total), atol=1e-4)
        assert (part.work.attended == budget).all()
        assert (part.work.bytes_read == budget * D * 8 + D * 8).all()

    def test_it_is_exact_where_the_dropped_keys_are_alike(self):
        index = create("razor")
        keys = np.concatenate([np.tile(KEYS[:1], (300, 1)), KEYS[300:]])
        index.build(keys, VALUES)
        output, lse = partial_attention(QUERIES, keys, VALUES)
        part = index.attend(QUERIES, None, budget=200)
        np.testing.assert_allclose(part.output, output, atol=1e-4)
        np.testing.assert_allclose(part.lse, lse, atol=1e-4)

    def test_it_follows_later_tokens(self, tmp_path):
        index = built("razor")
        for block in np.array_split(np.arange(N), 9):
            index.insert(KEYS[block][::-1], VALUES[block][::-1])
        fresh = create("razor")
        fresh.build(np.array(index.keys), np.array(index.values))
        index.save(tmp_path)
        for one in (index, registry.load(tmp_path)):
            for budget in (70, 640, 999):
                part, expected = (
                    one.attend(QUERIES, 5, budget=budget),
                    fresh.attend(QUERIES, 5, budget=budget),
                )
                np.testing.assert_allclose(part.output, expected.output, atol=1e-5)
                np.testing.assert_allclose(part.lse, expected.lse, atol=1e-5)

    def test_the_buffer_is_the_larger_of_the_paper_s_two(self):
        assert built("razor:least_buffer=90").budget_tokens(10, 0) == 100
        assert built("razor:least_buffer=120").budget_tokens(10, 0) == 120
        assert built("razor").budget_tokens(10, 0) == N, "4000, but there are fewer"
        assert {"budget": 100} in built("razor:least_buffer=90").effort_sweep(N, 10)


def test_a_head_that_retrieves_attends_to_all_keys(tmp_path):
    scores = [HeadScores(0, 0, [0.9], [0.1]), HeadScores(0, 1, [0.0], [0.0])]
    RetrievalHeads.rank(ABOUT, scores, 0.1, 0.1).write(tmp_path / "heads.json")
    index = built(f"razor:least_buffer=9:heads={tmp_path / 'heads.json'}", Head("tiny", kv_head=0, group=G))
    other = built(f"razor:least_buffer=9:heads={tmp_path / 'heads.json'}", Head("tiny", kv_head=1, group=G))
    output, lse = partial_attention(QUERIES, KEYS, VALUES)
    part = index.attend(QUERIES, 10)
    np.testing.assert_allclose(part.output, output, atol=1e-5)
    np.testing.assert_allclose(part.lse, lse, atol=1e-5)
    assert (part.work.attended == N).all()
    assert (other.attend(QUERIES, 10).work.attended == 100).all()
    exact = np.argsort(-(QUERIES @ KEYS.T), axis=1)[:, :10]
    np.testing.assert_array_equal(index.search(QUERIES, 10).ids, exact)
    index.save(tmp_path / "index")
    assert registry.load(tmp_path / "index").retrieves


def test_the_sample_s_model_has_its_heads_beside_razor():
    model = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
    assert built("razor", Head(model, layer=13, kv_head=0)).retrieves
    assert not built("razor", Head(model, layer=12, kv_head=0)).retrieves
    assert not built("razor", Head("unknown", layer=13, kv_head=0)).retrieves
