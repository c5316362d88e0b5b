"""InfiniteBench's retrieval tasks: passkey, number string and key-value (arXiv 2402.13718).

As there: a 5-digit key, or a 10-digit one with repeated digits, said twice over in one line among lines of
noise; or one of many UUID pairs in a JSON object. An answer may have 6, 12 and 50 tokens there; the first two
get 12 and 20 here, since not every model begins with the digits. Departures: the sentences are our own; the
depth of sample i is the i-th of an evenly spread sequence, where InfiniteBench steps through all lines.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ra_bench.decode.tasks.haystack import NOISE, distinct, insert, number_of, random_uuid, spread
from ra_bench.decode.tasks.passage import Build, Passage, Task
from ra_bench.decode.tasks.scores import first_integer, whole_word


def _hidden_line(
    what: str, make: Callable[[random.Random], str], reply: str
) -> Callable[[random.Random, int, int], Build]:
    def draw(rng: random.Random, number: int, context_tokens: int) -> Build:
        key, depth = make(rng), spread(number)

        def build(units: int) -> Passage:
            needle = f"The {what} is {key}. Remember it. {key} is the {what}."
            return Passage(
                context=(
                    "One important fact is hidden in a lot of irrelevant text. Find it and remember it: "
                    "you will be asked for it after the text.\n"
                    + "\n".join(insert([NOISE] * units, [needle], [depth]))
                    + "\n"
                ),
                question=f"What is the {what}?",
                reply=reply,
                answers=(key,),
                depths=(depth,),
            )

        return build

    return draw


def _digits_in_runs(rng: random.Random) -> str:
    """Ten digits in runs of one to four equal ones, two of them at least longer than one."""
    while True:
        runs: list[int] = []
        while sum(runs) < 10:
            runs.append(min(rng.randint(1, 4), 10 - sum(runs)))
        if sum(run > 1 for run in runs) >= 2:
            break
    text = ""
    for run in runs:
        text += rng.choice([digit for digit in "0123456789" if not text.endswith(digit)]) * run
    return text


def _draw_pairs(rng: random.Random, number: int, context_tokens: int) -> Build:
    uuids = distinct(random.Random(rng.getrandbits(64)), random_uuid)
    key, value = next(uuids), next(uuids)
    depth = spread(number)
    others: list[str] = []

    def build(units: int) -> Passage:
        while len(others) < units:
            others.append(f'"{next(uuids)}": "{next(uuids)}"')
        pairs = insert(others[:units], [f'"{key}": "{value}"'], [depth])
        return Passage(
            context="Find the value of one key in the JSON object below.\n{" + ",\n".join(pairs) + "}\n",
            question=f'What is the value of the key "{key}"?',
            reply=f'The value of the key "{key}" is "',
            answers=(value,),
            depths=(depth,),
        )

    return build


RETRIEVAL_TASKS = {
    "passkey": Task(
        "a 5-digit key said in one line among repeated noise",
        12,
        "line of noise",
        1,
        _hidden_line("pass key", number_of(5), "The pass key is the number"),
        first_integer,
    ),
    "number_string": Task(
        "a 10-digit key with repeated digits among repeated noise",
        20,
        "line of noise",
        1,
        _hidden_line("sequence of digits", _digits_in_runs, "The sequence of digits is"),
        first_integer,
    ),
    "kv_retrieval": Task(
        "the value of one key of a JSON object of UUID pairs", 50, "UUID pair", 1, _draw_pairs, whole_word
    ),
}
