"""A responder's answers through an index are the plain model's, where the index finds all there is."""

import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from ra_bench.decode.plan import Settings
from ra_bench.decode.responder import Responder
from ra_bench.errors import UsageError

sys.path.append(str(Path(__file__).parent))
import tiny_model

PROMPT = tiny_model.token_ids(900)[0].tolist()  # 260 of them in an index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model.save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def plain(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(ids):
        return model(torch.tensor([ids])).logits[0]

    return logits


def settings(folder, *indexes, k=1000):
    asked = {"dtype": "float32", "device": "cpu", "threads": 1}
    return Settings(str(folder), indexes, ks=(k,), **asked)


def greedy(plain, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(plain(ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("sparse_tokens", [0, 5])
@pytest.mark.parametrize("indexes", [("flat",), ()])
def test_what_is_generated_is_what_the_plain_model_says(folder, plain, indexes, sparse_tokens):
    responder = Responder(settings(folder, *indexes), sparse_tokens)
    expected = greedy(plain, PROMPT, 8)
    assert responder.generate(PROMPT, 8) == expected
    assert responder.generate(PROMPT[:100], 3) == greedy(plain, PROMPT[:100], 3)  # too short for an index
    assert responder.generate(PROMPT, 8, lambda made: len(made) == 3) == expected[:3]
    assert responder.generate(PROMPT, 0) == []
    responder.stop_tokens = frozenset({expected[2]})
    assert responder.generate(PROMPT, 8) == expected[: expected.index(expected[2])]


@pytest.mark.parametrize("sparse_tokens", [0, 5])
def test_log_likelihoods_are_the_plain_models_whatever_came_before(folder, plain, sparse_tokens):
    """A continuation of 80 tokens makes the indexes take tokens in; the next one must not see them."""
    responder = Responder(settings(folder, "flat"), sparse_tokens)
    long = tiny_model.token_ids(80, seed=1)[0].tolist()
    best = greedy(plain, PROMPT, 2)
    continuations = [long, best, [best[0], best[1] ^ 1], [7], long]
    scores = responder.score(PROMPT, continuations)
    for continuation, (log_likelihood, is_greedy) in zip(continuations, scores, strict=True):
        rows = plain(PROMPT + continuation)[len(PROMPT) - 1 : -1].log_softmax(-1)
        expected = rows[torch.arange(len(continuation)), continuation].sum()
        assert log_likelihood == pytest.approx(float(expected), abs=2e-3)
        assert is_greedy == (rows.argmax(-1).tolist() == continuation)
    assert [is_greedy for _, is_greedy in scores] == [False, True, False, False, False]


STATEFUL = """
from dataclasses import dataclass
import numpy as np
from ra_bench.index import Found, Index, Work

@dataclass
class Moving(Index):
    steps = 0

    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)

    def search(self, queries, k):
        first = 20 * self.steps % (len(self.keys) - 20)
        ids = np.arange(first, first + 20, dtype=np.int32)
        return Found(np.tile(ids, (len(queries), 1)), Work())

    def observe(self, queries):
        self.steps += 1

    def effort_sweep(self, n, k):
        return [{}]

    def save_state(self, folder):
        np.save(folder / "steps.npy", np.array(self.steps))

    def load_state(self, folder, mmap):
        self.steps = int(np.load(folder / "steps.npy"))
"""


def test_what_one_answer_observed_is_gone_in_the_next(folder, tmp_path):
    file = tmp_path / "moving.py"
    file.write_text(STATEFUL)
    continuation = tiny_model.token_ids(6, seed=5)[0].tolist()
    responder = Responder(settings(folder, f"{file}::Moving", k=20), 2)
    once, again = responder.score(PROMPT, [continuation, continuation])
    assert once == again
    still = file.read_text().replace("self.steps += 1", "pass")
    (tmp_path / "still.py").write_text(still)
    [other] = Responder(settings(folder, f"{tmp_path / 'still.py'}::Moving", k=20), 2).score(
        PROMPT, [continuation]
    )
    assert abs(other[0] - once[0]) > 1e-5, "or its state does not show"


def test_what_a_broken_off_answer_inserted_is_gone_in_the_next(folder):
    responder = Responder(settings(folder, "flat"), 2)
    with responder._prompt(PROMPT, 80) as asked:
        with suppress(KeyError), responder._decoding(asked, 80) as stream:
            for token in PROMPT[:70]:
                stream.feed(token)
            assert asked.built.tokens == 258 + 64
            raise KeyError("planted")
        with responder._decoding(asked, 80):
            assert asked.built.tokens == 258


def test_an_index_that_finds_little_answers_differently(folder, plain):
    """Else the tests above would not tell whether the index is asked at all."""
    found = Responder(settings(folder, "random", k=1), 5).score(PROMPT, [[7]])[0][0]
    exact = Responder(settings(folder, "flat"), 5).score(PROMPT, [[7]])[0][0]
    assert abs(found - exact) > 1e-3


def test_what_cannot_be_answered_is_refused(folder):
    responder = Responder(settings(folder, "flat"), 0)
    with pytest.raises(UsageError, match="at least one token"):
        responder.generate([], 3)
    with pytest.raises(UsageError, match=r"900 tokens and 200 to follow are 1100, .* can hold 1024"):
        responder.generate(PROMPT, 200)
    with pytest.raises(UsageError, match="sparse_tokens must be at least 0, got -1"):
        Responder(settings(folder, "flat"), -1)
    with pytest.raises(UsageError, match="unknown index"):
        Responder(settings(folder, "flatt"), 0)


# --- lm-evaluation-harness, where it is installed ----------------------------------------------------------


@pytest.fixture
def offered(folder):
    pytest.importorskip("lm_eval")
    from ra_bench.decode.lm_eval import RetrievalModel

    def make(**arguments):
        usual = {
            "model": str(folder),
            "index": "flat",
            "k": 1000,
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
        }
        return RetrievalModel(**usual | arguments)

    return make


def request(*args):
    return SimpleNamespace(args=args)


def test_lm_eval_gets_answers_cut_at_its_until_texts(offered, plain):
    model = offered()
    prompt = "The quick brown fox. " * 42
    ids = model._encode(prompt)
    whole = model._decode(greedy(plain, ids, 12))
    end = whole[6:8]
    answers = model.generate_until(
        [request(prompt, {"max_gen_toks": 12, "until": [end]}), request(prompt, {"max_gen_toks": 12})]
    )
    assert answers == [whole.split(end)[0], whole]
    with pytest.raises(UsageError, match="only greedy"):
        model.generate_until([request(prompt, {"do_sample": True})])


def test_lm_eval_gets_log_likelihoods_and_spaces_go_to_the_continuation(offered, plain):
    model = offered()
    prompt = "The quick brown fox. " * 42
    scores = model.loglikelihood([request(prompt, "a"), request(prompt, " bc"), request("", "d")])
    both = model._encode(prompt + "a")
    rows = plain(both)[-3:-1].log_softmax(-1)
    assert scores[0][0] == pytest.approx(float(rows[0, both[-2]] + rows[1, both[-1]]), abs=1e-3)
    assert len(scores) == 3
    with pytest.raises(UsageError, match="no prompt to index"):
        model.loglikelihood_rolling([request("text")])


@pytest.mark.parametrize("arguments", [{"batch_size": 4}, {"colour": "red"}, {"k": 0}])
def test_lm_eval_arguments_that_mean_nothing_are_refused(offered, arguments):
    with pytest.raises(UsageError):
        offered(**arguments)
