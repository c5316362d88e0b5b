"""Tasks: what a prompt asks for is in it, it fits, it depends on the seed alone, and answers are scored."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ra_bench.decode.tasks import TASKS, Sample, compare_logits, make_samples, score
from ra_bench.decode.tasks.haystack import DEPTHS, NOISE, distinct, essay, insert, spread
from ra_bench.decode.tasks.prompt import most_units
from ra_bench.errors import UsageError

sys.path.append(str(Path(__file__).parent))
import tiny_model

CONTEXT = 16_000  # bytes
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ANSWERED = [name for name in TASKS if name != "fidelity"]
UNIT_BYTES = {"niah_multikey_3": 120, "kv_retrieval": 90, "fwe": 60}  # others: a line of noise at most


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_model.byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module")
def samples(tokenizer):
    made = {}

    def get(task):
        if task not in made:
            made[task] = make_samples(task, CONTEXT, 4, tokenizer, seed=5)
        return made[task]

    return get


def read(tokenizer, sample):
    """Context and question as text."""
    return tokenizer.decode(list(sample.context_ids)), tokenizer.decode(list(sample.question_ids))


# --- plain solvers: they know the sentences, and nothing of how a prompt is made ---------------------------


def solve_needles(context, question):
    asked = re.search(r"secret \w+ of (.*) that the text gives", question).group(1)
    keys = re.split(r", | and ", asked)
    found = re.findall(r"One of the secret \w+ of (\S+) is (\S+)\.", context)
    return {value for key, value in found if key in keys}


def solve_hidden_line(context, question):
    what = re.search(r"What is the (.*)\?", question).group(1)
    return set(re.findall(rf"The {what} is (\d+)\. Remember it\. \1 is the {what}\.", context))


def solve_chain(context, question):
    value = re.search(r"the value (\d+)", question).group(1)
    held = {}
    for name, what in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", context):
        held[name] = held.get(what, what)
    return {name for name, what in held.items() if what == value}


def solve_common(context, _):
    numbered = context.rsplit("numbered list", 1)[1]
    counts = Counter(re.findall(r"\d+\. (\w+)", numbered)).most_common()
    assert counts[9][1] > counts[10][1]
    return {word for word, _ in counts[:10]}


def solve_frequent(context, _):
    coded = context.split("most often.\n")[1].split("\n")[0]
    counts = Counter(coded.split()).most_common()
    assert counts[0][0] == "..."
    assert counts[3][1] > counts[4][1]
    return {word for word, _ in counts[1:4]}


def solve_pairs(context, question):
    pairs = json.loads(context[context.index("{") :])
    assert len(pairs) > 100
    return {pairs[re.search(r'key "(\S+)"\?', question).group(1)]}


SOLVERS = {
    "vt": solve_chain,
    "cwe": solve_common,
    "fwe": solve_frequent,
    "passkey": solve_hidden_line,
    "number_string": solve_hidden_line,
    "kv_retrieval": solve_pairs,
}


@pytest.mark.parametrize("task", ANSWERED)
def test_the_answers_are_what_a_plain_reader_finds(task, samples, tokenizer):
    for sample in samples(task):
        context, question = read(tokenizer, sample)
        found = SOLVERS.get(task, solve_needles)(context, question)
        assert found == set(sample.answers)
        assert score(task, sample, " and ".join(found)) == 1.0
        assert score(task, sample, "I do not know 7.") == 0.0


@pytest.mark.parametrize("task", ANSWERED)
def test_a_prompt_fills_the_context_with_room_for_the_answer(task, samples):
    unit = UNIT_BYTES.get(task, len(NOISE) + 1)
    for sample in samples(task):
        tokens = len(sample.context_ids) + len(sample.question_ids) + sample.max_new_tokens
        assert CONTEXT - unit <= tokens <= CONTEXT


@pytest.mark.parametrize("task", ANSWERED)
def test_a_sample_depends_on_task_number_and_seed_alone(task, samples, tokenizer):
    four = samples(task)
    assert make_samples(task, CONTEXT, 2, tokenizer, seed=5) == four[:2]
    assert make_samples(task, CONTEXT, 4, tokenizer, seed=5, numbers=range(1, 4, 2)) == four[1::2]
    assert make_samples(task, CONTEXT, 1, tokenizer, seed=6)[0].context_ids != four[0].context_ids
    assert len({sample.context_ids for sample in four}) == 4
    assert len({sample.answers for sample in four}) == 4
    assert [sample.number for sample in four] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("task", "needle"),
    [
        ("niah_single", r"One of the secret numbers of \S+ is {}\."),
        ("niah_multikey_2", r"One of the secret numbers of \S+ is {}\."),
        ("niah_multikey_3", r"One of the secret UUIDs of \S+ is {}\."),
        ("niah_multivalue", r"One of the secret numbers of \S+ is {}\."),
        ("niah_multiquery", r"One of the secret numbers of \S+ is {}\."),
        ("vt", r"VAR {} = (VAR )?\w+"),
        ("passkey", r"The pass key is {}\. Remember it\. {} is the pass key\."),
        ("number_string", r"The sequence of digits is {}\. Remember it\. {} is the sequence of digits\."),
        ("kv_retrieval", r'"\S+": "{}"'),
    ],
)
def test_each_needle_is_there_once_at_its_depth(task, needle, samples, tokenizer):
    for sample in samples(task):
        context, _ = read(tokenizer, sample)
        if task == "vt":  # the example before it has needles of its own
            context = context[context.rindex("Variables are assigned") :]
        text = context[context.index("\n") + 1 :]
        assert len(sample.depths) == len(sample.answers)
        places, needles = [], 0
        for answer in sample.answers:
            found = list(re.finditer(needle.replace("{}", answer), text))
            assert len(found) == 1
            places.append(found[0].start() - needles)
            needles += len(found[0].group())
        assert places == sorted(places)
        for place, depth in zip(places, sample.depths, strict=True):
            # in prose the depth counts sentences, and those are of unequal length
            tolerance = 0.1 if task in ("niah_multivalue", "niah_multiquery") else 0.02
            assert place / (len(text) - needles) == pytest.approx(depth, abs=tolerance)


def test_depths_are_ruler_s_forty_or_evenly_spread(samples):
    assert set(samples("niah_multiquery")[0].depths) <= set(DEPTHS)
    np.testing.assert_allclose(DEPTHS, np.linspace(0, 1, 40))
    for count in (5, 13, 50):
        depths = np.sort([spread(number) for number in range(count)])
        assert depths.min() >= 0
        assert depths.max() < 1
        assert np.diff(depths).max() < 3 / count


def test_counts_are_those_of_the_definitions(samples, tokenizer):
    context, _ = read(tokenizer, samples("cwe")[0])
    _, example, numbered = context.split("numbered list")
    assert Counter(Counter(re.findall(r"\d+\. (\w+)", example)).values()) == {10: 10, 3: 30}
    counts = Counter(Counter(re.findall(r"\d+\. (\w+)", numbered)).values())
    assert counts[30] == 10
    assert set(counts) == {30, 3}
    context, _ = read(tokenizer, samples("fwe")[0])
    ranked = [count for _, count in Counter(context.split("often.\n")[1].split()).most_common(5)]
    np.testing.assert_allclose(np.array(ranked) / ranked[0], [1, 1 / 4, 1 / 9, 1 / 16, 1 / 25], atol=0.01)


def test_a_number_string_has_runs_of_equal_digits(samples):
    for sample in samples("number_string"):
        runs = [len(run.group()) for run in re.finditer(r"(\d)\1*", sample.answers[0])]
        assert sum(runs) == 10
        assert sum(run > 1 for run in runs) >= 2


# --- prompt -----------------------------------------------------------------------------------------------


def test_the_prompt_follows_the_chat_template_and_splits_before_the_question(samples, tokenizer):
    context, question = read(tokenizer, samples("passkey")[0])
    assert context.startswith("<user>One important fact")
    assert context.endswith("back again.\n")
    assert question == "What is the pass key?</user><assistant>The pass key is the number"


def test_without_a_chat_template_the_prompt_is_plain_text():
    tokenizer = tiny_model.byte_tokenizer()
    context, question = read(tokenizer, make_samples("passkey", 2000, 1, tokenizer, 0)[0])
    assert context.startswith("One important fact")
    assert question == "What is the pass key?\nThe pass key is the number"


def test_a_begin_of_text_token_comes_once():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_model.byte_tokenizer(bos_token="<s>")
    bos = tokenizer.bos_token_id
    assert make_samples("passkey", 2000, 1, tokenizer, 0)[0].context_ids[0] != bos  # it adds none itself
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    sample = make_samples("passkey", 2000, 1, tokenizer, 0)[0]
    assert sample.context_ids[0] == bos
    assert (sample.context_ids + sample.question_ids).count(bos) == 1
    fidelity = make_samples("fidelity", 100, 1, tokenizer, 0)[0]
    assert fidelity.context_ids[0] == bos
    tokenizer.chat_template = "<s>" + CHAT
    sample = make_samples("passkey", 2000, 1, tokenizer, 0)[0]
    assert sample.context_ids[0] == bos
    assert (sample.context_ids + sample.question_ids).count(bos) == 1


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    head=st.integers(0, 40),
    most=st.integers(0, 300),
    least=st.integers(1, 5),
    guess=st.integers(0, 70),
)
def test_the_filler_is_the_most_that_fits(sizes, head, most, least, guess):
    def count(units):
        return head + sum(sizes[:units]) + 3 * max(0, units - len(sizes))

    expected = least - 1
    while count(expected + 1) <= most:
        expected += 1
    assert most_units(count, most, least, guess) == expected


def test_few_probes_are_enough_where_units_are_alike():
    probes = []

    def count(units):
        probes.append(units)
        return 117 + 23 * units

    assert most_units(count, 131_072, 1, 0) == (131_072 - 117) // 23
    assert len(probes) <= 6


# --- what is refused --------------------------------------------------------------------------------------


def test_an_unknown_task_is_refused_with_the_nearest_name(tokenizer):
    with pytest.raises(UsageError, match=r"unknown task 'niah_singel'\. Did you mean 'niah_single'\?"):
        make_samples("niah_singel", 1000, 1, tokenizer, 0)


@pytest.mark.parametrize("task", ANSWERED)
def test_a_context_too_short_is_refused_with_the_least_that_would_do(task, tokenizer):
    with pytest.raises(UsageError, match=rf"at least \d+ tokens for {task} .* got 60") as error:
        make_samples(task, 60, 1, tokenizer, 0)
    least = int(re.search(r"at least (\d+)", str(error.value)).group(1))
    assert len(make_samples(task, least, 1, tokenizer, 0)) == 1
    with pytest.raises(UsageError, match="at least"):
        make_samples(task, least - 1, 1, tokenizer, 0)


def test_no_samples_are_refused(tokenizer):
    with pytest.raises(UsageError, match="must be at least 1, got 0"):
        make_samples("passkey", 1000, 0, tokenizer, 0)


# --- scores -----------------------------------------------------------------------------------------------


def answer(*answers):
    return Sample("", 0, (), (), answers, 0)


@pytest.mark.parametrize(
    ("task", "answers", "text", "expected"),
    [
        ("niah_single", ["1234567"], " 1234567.", 1),
        ("niah_single", ["1234567"], "", 0),
        ("niah_multivalue", ["11", "22", "33", "44"], "22, 11 and 44", 0.75),
        ("vt", ["ABCDE", "FGHIJ"], "abcde", 0.5),
        ("passkey", ["12345"], " 12345. Remember it.", 1),
        ("passkey", ["12345"], "not 123, but 12345", 0),
        ("passkey", ["12345"], "123456", 0),
        ("passkey", ["12345"], "none", 0),
        ("number_string", ["0011223344"], "0011223344", 1),
        ("number_string", ["0011223344"], "11223344", 0),
        ("kv_retrieval", ["ab-cd"], 'ab-cd"\n', 1),
        ("kv_retrieval", ["ab-cd"], '{"x":"ab-cd"}', 1),
        ("kv_retrieval", ["ab-cd"], "ab-cde", 0),
    ],
)
def test_scores_are_counted_as_the_originals_do(task, answers, text, expected):
    assert score(task, answer(*answers), text) == expected


@pytest.mark.parametrize("task", ["fidelity", "nothing"])
def test_what_has_no_scored_answer_is_refused(task):
    with pytest.raises(UsageError, match="unknown task with a scored answer"):
        score(task, answer("1"), "1")


# --- haystack ---------------------------------------------------------------------------------------------


def test_needles_come_where_their_depth_is():
    assert insert(list("abcd"), ["1", "2", "3"], [0.0, 0.5, 1.0]) == ["1", "a", "b", "2", "c", "d", "3"]
    assert insert(list("ab"), ["1", "2"], [0.5, 0.5]) == ["a", "1", "2", "b"]
    assert insert([], ["1"], [0.7]) == ["1"]


@pytest.mark.parametrize("words", [1, 100, 50_000])
def test_the_essay_has_as_many_words_as_asked_and_goes_round(words):
    text = " ".join(essay(123_456_789, words)).split()
    assert len(text) == words
    assert text[:50] == " ".join(essay(123_456_789, 50)).split()[:words]


def test_distinct_never_repeats_itself_even_when_few_are_left():
    import random

    stream = distinct(random.Random(0), lambda rng: rng.choice("abc"))
    made = [next(stream) for _ in range(30)]
    assert len(set(made)) == 30
    assert set(made[:3]) == set("abc")


# --- fidelity ---------------------------------------------------------------------------------------------


def test_the_measures_of_fidelity_equal_their_definitions():
    rng = np.random.default_rng(0)
    dense, other = rng.normal(size=(2, 5, 11)).astype(np.float32) * 4
    ids = np.array([0, 3, 10, 5, 5])
    found = compare_logits(dense, other, ids)
    for row in range(5):
        p = np.exp(dense[row].astype(np.float64))
        q = np.exp(other[row].astype(np.float64))
        p, q = p / p.sum(), q / q.sum()
        assert found.kl[row] == pytest.approx((p * np.log(p / q)).sum(), rel=1e-9)
        assert found.delta_nll[row] == pytest.approx(np.log(p[ids[row]] / q[ids[row]]), rel=1e-9)
        assert found.agrees[row] == (p.argmax() == q.argmax())
    same = compare_logits(dense, dense + 100.0, ids)
    np.testing.assert_allclose(same.kl, 0, atol=1e-6)
    np.testing.assert_allclose(same.delta_nll, 0, atol=1e-4)
    assert same.agrees.all()


def test_logits_that_do_not_belong_together_are_refused():
    logits = np.zeros((3, 5))
    with pytest.raises(ValueError, match="do not belong together"):
        compare_logits(logits, logits[:2], [0, 1, 2])
    with pytest.raises(ValueError, match="do not belong together"):
        compare_logits(logits, logits, [0, 1])
    with pytest.raises(ValueError, match="finite"):
        compare_logits(logits, logits + np.nan, [0, 1, 2])


def test_fidelity_takes_the_parts_of_a_text_in_order():
    tokenizer = tiny_model.byte_tokenizer()
    text = "".join(chr(97 + place % 26) for place in range(1000))
    samples = make_samples("fidelity", 160, 4, tokenizer, 0, text)
    for number, sample in enumerate(samples):
        context, forced = read(tokenizer, sample)
        assert context + forced == text[160 * number : 160 * (number + 1)]
        assert len(forced) == 20
        assert sample.answers == ()
    overlapping = make_samples("fidelity", 400, 4, tokenizer, 0, text)
    assert ["".join(read(tokenizer, sample)) for sample in overlapping] == [
        text[start : start + 400] for start in (0, 200, 400, 600)
    ]
    assert make_samples("fidelity", 400, 4, tokenizer, 0, text, range(2, 4)) == overlapping[2:]


def test_a_text_or_a_context_too_short_for_fidelity_is_refused():
    tokenizer = tiny_model.byte_tokenizer()
    with pytest.raises(UsageError, match="has 10 tokens, fewer than --context 80"):
        make_samples("fidelity", 80, 1, tokenizer, 0, "0123456789")
    with pytest.raises(UsageError, match="--context must be at least 8 tokens"):
        make_samples("fidelity", 7, 1, tokenizer, 0, "0123456789")
