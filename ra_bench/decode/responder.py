"""Answers any prompt through an index: generates after it, or tells how likely given continuations are.

The same prefill, indexes and caches as `ra-bench decode`, without its tasks and measures; `lm_eval` offers it
to lm-evaluation-harness. A prompt is prefilled densely but for its last `sparse_tokens`, which are decoded
through the index, as all that follows is. A prompt with nothing between the sinks and the recent window is
answered densely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from ra_bench import dump, models
from ra_bench.decode.arms import CacheMaker
from ra_bench.decode.built import Built
from ra_bench.decode.graphs import make_track
from ra_bench.decode.harness import dump_settings
from ra_bench.decode.indexed import STATIC_TOKENS, IndexedLayer, Retrieval, insert_left
from ra_bench.decode.plan import Plan, Settings, check_numbers, plan_model
from ra_bench.decode.prefilled import Prefilled, prefill_sample
from ra_bench.decode.step import Stepper
from ra_bench.errors import UsageError
from ra_bench.prepare import wants
from ra_bench.prompts import Document
from ra_bench.registry import create, parse


@dataclass(frozen=True)
class _Prompt:
    """A prompt that was prefilled, its last tokens that are still to be fed, and the indexes over it."""

    prefilled: Prefilled
    fed: list[int]
    built: Built | None


class _Stream:
    """Decoding under way: `logits` (vocab,) are those of what comes next."""

    def __init__(self, stepper: Stepper, before_step: Callable[[], None], logits: torch.Tensor) -> None:
        self.logits = logits
        self._stepper = stepper
        self._before_step = before_step

    @property
    def likeliest(self) -> int:
        """The likeliest next token."""
        return int(self.logits.argmax())

    def feed(self, token: int) -> None:
        """Takes `token` as the next one."""
        self._before_step()
        self._stepper.step(token)
        self.logits = self._stepper.logits[0]


class Responder:
    """A loaded model that attends through the first of `settings.indexes`, or densely where there is none.

    Of the settings those of the model and of the index count. Raises UsageError for a model, an index or a
    number that cannot be had.
    """

    def __init__(self, settings: Settings, sparse_tokens: int) -> None:
        check_numbers(settings)
        if sparse_tokens < 0:
            raise UsageError(f"sparse_tokens must be at least 0, got {sparse_tokens}")
        self._spec = parse(settings.indexes[0]) if settings.indexes else None
        if self._spec is not None:
            create(self._spec)
        model, indexed_layers = plan_model(settings)
        self.tokenizer = models.load_chat_tokenizer(model.source)
        self._plan = Plan(settings, model, [], [], indexed_layers, self.tokenizer)
        self._sparse_tokens = sparse_tokens
        if model.device == "cpu":
            torch.set_num_threads(settings.threads)
        self._session = dump.start(model, dump_settings(self._plan))
        self.stop_tokens = self._plan.stop_tokens(self._session.model)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the model can hold, where its config tells."""
        return self._plan.model.shape.max_tokens

    def generate(
        self,
        prompt: Sequence[int],
        most_tokens: int,
        is_done: Callable[[Sequence[int]], bool] = lambda _: False,
    ) -> list[int]:
        """Up to `most_tokens` tokens after `prompt`, greedily; a stop token, not kept, ends them.

        So does `is_done`, asked after each token with all of them.
        """
        made: list[int] = []
        with self._prompt(prompt, most_tokens) as asked, self._decoding(asked, most_tokens) as stream:
            while len(made) < most_tokens and stream.likeliest not in self.stop_tokens:
                made.append(stream.likeliest)
                if is_done(made) or len(made) == most_tokens:
                    break
                stream.feed(made[-1])
        return made

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[tuple[float, bool]]:
        """Of each of `continuations`: its log-likelihood after `prompt`, in nats, and whether it is greedy.

        The prompt is prefilled and indexed once.
        """
        scores = []
        longest = max(map(len, continuations))
        with self._prompt(prompt, longest) as asked:
            for continuation in continuations:
                log_likelihood, is_greedy = 0.0, True
                with self._decoding(asked, longest) as stream:
                    for place, token in enumerate(continuation):
                        log_likelihood += float(torch.log_softmax(stream.logits.float(), -1)[token])
                        is_greedy = is_greedy and stream.likeliest == token
                        if place < len(continuation) - 1:
                            stream.feed(token)
                scores.append((log_likelihood, is_greedy))
        return scores

    @contextmanager
    def _prompt(self, prompt: Sequence[int], new_tokens: int) -> Iterator[_Prompt]:
        """Prefills `prompt` but for the tokens to be fed, and builds its indexes."""
        if not prompt:
            raise UsageError("a prompt must have at least one token, got none")
        longest = len(prompt) + new_tokens
        if self.most_tokens is not None and longest > self.most_tokens:
            raise UsageError(
                f"a prompt of {len(prompt)} tokens and {new_tokens} to follow are {longest}, "
                f"{self._plan.model.source.name} can hold {self.most_tokens}"
            )
        dense = len(prompt) - min(self._sparse_tokens, len(prompt) - 1)
        document = Document("doc000", "a prompt", np.array(prompt[:dense], np.int64))
        settings = replace(
            self._session.settings, context_tokens=dense, decode_steps=len(prompt) - dense + new_tokens
        )
        session = replace(self._session, settings=settings)
        spec = self._spec if dense > STATIC_TOKENS else None
        learn_sizes = {}
        if spec is not None:
            wish = create(spec)
            learn_sizes = wants([(wish.learn_queries, wish.learn_neighbors)])
        asked = self._plan.settings
        stored, layers = getattr(torch, asked.dtype), self._plan.indexed_layers
        prefilled = prefill_sample(session, document, stored, layers, learn_sizes)
        built = None
        if spec is not None:
            built = Built(spec, layers, asked.threads, asked.seed)
            built.build(prefilled, learn_sizes)
        try:
            yield _Prompt(prefilled, list(prompt[dense:]), built)
        finally:
            if built is not None:
                built.close()

    @contextmanager
    def _decoding(self, asked: _Prompt, new_tokens: int) -> Iterator[_Stream]:
        """What follows the prompt, token by token; its indexes are as they were built."""
        model, built = self._session.model, asked.built
        before_step = None if built is None else built.lend()
        maker = CacheMaker(
            asked.prefilled,
            max(1, len(asked.fed) + new_tokens),
            make_track(model, self._plan.settings.capture),
            self._plan.indexed_layers,
        )
        if built is None:
            cache = maker.dense()
        else:
            settings = self._plan.settings
            assert self._spec is not None
            cache = maker.indexed(
                built,
                Retrieval(
                    settings.ks[0],
                    dict(self._spec.effort),
                    settings.threads,
                    getattr(torch, settings.dtype),
                ),
            )
        layers = [layer for layer in cache.layers if isinstance(layer, IndexedLayer)]
        inserts = built is not None and built.can_insert
        with torch.inference_mode(), cache.serving(model):
            stepper = Stepper(model, cache, lambda: insert_left(layers) if inserts else 0.0)
            stepper.prepare()
            assert asked.prefilled.logits is not None
            before = (lambda: None) if before_step is None else (lambda: before_step(layers))
            stream = _Stream(stepper, before, asked.prefilled.logits[0])
            for token in asked.fed:
                stream.feed(token)
            yield stream
