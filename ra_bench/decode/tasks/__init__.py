"""Tasks that tell whether a model with an index still answers, made offline from a seed.

| task | what is asked | definition | answer tokens | score |
| --- | --- | --- | --- | --- |
| `niah_single` | one number among repeated noise | RULER niah_single_1 | 128 | share contained |
| `niah_multikey_2` | one number among numbers of other keys | RULER | 128 | share contained |
| `niah_multikey_3` | one UUID among UUIDs of other UUIDs | RULER | 128 | share contained |
| `niah_multivalue` | all four numbers of one key, in prose | RULER | 128 | share contained |
| `niah_multiquery` | the numbers of four keys, in prose | RULER | 128 | share contained |
| `vt` | the five variables of one chain of assignments | RULER | 30 | share contained |
| `cwe` | the ten common words of a numbered list | RULER | 120 | share contained |
| `fwe` | the three most frequent words of a coded text | RULER | 50 | share contained |
| `passkey` | a 5-digit key in one line among noise | InfiniteBench | 12 | first integer |
| `number_string` | a 10-digit key with repeated digits | InfiniteBench | 20 | first integer |
| `kv_retrieval` | one value of a JSON object of UUID pairs | InfiniteBench | 50 | word equal |
| `fidelity` | the next tokens of a text, teacher-forced | KL, top-1 agreement, ΔNLL | 0 | by logits |

    samples = make_samples("niah_single", 8192, count=50, tokenizer=tokenizer, seed=0)
    score("niah_single", samples[0], text)

A family's file says where it departs from the original. Nothing but the seed decides what a sample is: sample
i is the same whichever others are made. `fidelity` takes the parts of its text in order, whatever the seed:
the same ones too, but in a text too short for `count` parts, which then overlap, spread evenly by `count`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ra_bench import prompts
from ra_bench.decode.tasks.counting import COUNTING_TASKS
from ra_bench.decode.tasks.fidelity import Fidelity, compare_logits, windows
from ra_bench.decode.tasks.needles import NEEDLE_TASKS
from ra_bench.decode.tasks.passage import Task
from ra_bench.decode.tasks.prompt import Template, most_units
from ra_bench.decode.tasks.retrieval import RETRIEVAL_TASKS
from ra_bench.decode.tasks.variables import VARIABLE_TASKS
from ra_bench.errors import UsageError, unknown

__all__ = [
    "FIDELITY",
    "TASKS",
    "Fidelity",
    "Sample",
    "answer_tokens",
    "compare_logits",
    "make_samples",
    "score",
]

FIDELITY = "fidelity"

_TASKS: dict[str, Task] = NEEDLE_TASKS | VARIABLE_TASKS | COUNTING_TASKS | RETRIEVAL_TASKS

# Name → what is asked, for the command line and its help.
TASKS: dict[str, str] = {name: task.description for name, task in _TASKS.items()} | {
    FIDELITY: "next tokens of a text, teacher-forced: KL, top-1 agreement and ΔNLL against dense"
}


@dataclass(frozen=True)
class Sample:
    """One prompt: `context_ids` + `question_ids`, chat template and begin-of-text token included.

    The context ends before the question; the question ends with how the answer begins, so that the first
    token decoded belongs to the answer. For `fidelity` the question is the tokens to force, and there is no
    answer. `depths` tell where the needles lie, as shares of the filler before them.
    """

    task: str
    number: int
    context_ids: tuple[int, ...]
    question_ids: tuple[int, ...]
    answers: tuple[str, ...]
    max_new_tokens: int
    depths: tuple[float, ...] = ()


def make_samples(
    task: str,
    context_tokens: int,
    count: int,
    tokenizer: Any,
    seed: int,
    text: str | None = None,
    numbers: range | None = None,
) -> list[Sample]:
    """`count` samples of `task` with as much filler as `context_tokens` hold, the longest answer included.

    `tokenizer` is a transformers tokenizer; prompts follow its chat template where it has one. `text` is what
    `fidelity` forces, by default the sources of Python's standard library. `numbers` are those of the samples
    that are wanted, in order; all by default. Raises UsageError for a task that is not known, for a count
    below 1 and for a context too short.
    """
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if count < 1:
        raise UsageError(f"the number of samples must be at least 1, got {count}")
    wanted = range(count) if numbers is None else numbers
    if task == FIDELITY:
        samples = _fidelity_samples(context_tokens, count, tokenizer, text)
        return [samples[number] for number in wanted]
    template = Template.of(tokenizer)
    # The first is always made: the others begin with its filler, so that none depends on which are wanted.
    first, units = _make_sample(task, 0, context_tokens, template, seed, guess=0)
    return [
        _make_sample(task, number, context_tokens, template, seed, units)[0] if number else first
        for number in wanted
    ]


def answer_tokens(task: str) -> int:
    """The longest answer of a sample of `task`; 0 for `fidelity`."""
    return 0 if task == FIDELITY else _TASKS[task].max_new_tokens


def score(task: str, sample: Sample, text: str) -> float:
    """How right the decoded `text` is, in [0, 1], as the benchmark that defined `task` counts.

    Raises UsageError for a task that is not known, and for `fidelity`, which `compare_logits` measures.
    """
    if task not in _TASKS:
        raise unknown("task with a scored answer", task, _TASKS)
    return _TASKS[task].score(sample.answers, text)


def _make_sample(
    name: str, number: int, context_tokens: int, template: Template, seed: int, guess: int
) -> tuple[Sample, int]:
    """Sample `number`, and how many filler units it has: the other samples' `guess`."""
    task = _TASKS[name]
    build = task.draw(random.Random(f"{seed}/{name}/{number}"), number, context_tokens)

    def count_tokens(units: int) -> int:
        return task.max_new_tokens + sum(map(len, template.encode(build(units))))

    units = most_units(count_tokens, context_tokens, task.least_units, guess)
    if units < task.least_units:
        least_tokens = count_tokens(task.least_units)
        raise UsageError(
            f"--context must be at least {least_tokens} tokens for {name} with this tokenizer, "
            f"got {context_tokens}"
        )
    passage = build(units)
    context_ids, question_ids = template.encode(passage)
    sample = Sample(
        task=name,
        number=number,
        context_ids=tuple(context_ids),
        question_ids=tuple(question_ids),
        answers=passage.answers,
        max_new_tokens=task.max_new_tokens,
        depths=passage.depths,
    )
    return sample, units


def _fidelity_samples(context_tokens: int, count: int, tokenizer: Any, text: str | None) -> list[Sample]:
    def tokenize(part: str) -> list[int]:
        ids: list[int] = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    ids = prompts.default_tokens(context_tokens * count, tokenize) if text is None else tokenize(text)
    first_ids = Template.of(tokenizer).first_ids
    return [
        Sample(FIDELITY, number, tuple(context), tuple(forced), (), 0)
        for number, (context, forced) in enumerate(windows(ids, context_tokens, count, first_ids))
    ]
