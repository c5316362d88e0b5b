"""Offers a model that attends through an index to lm-evaluation-harness: its RULER, LongBench and the like.

    python -m ra_bench.decode.lm_eval --model ra-bench --model_args model=FILE,index=ra,k=100 --tasks TASK

The arguments after the module are lm-evaluation-harness's own (`pip install 'ra-bench[lm-eval]'`),
`--device` among them. Of `--model_args`, `index` is a spec, or `dense` for none; the last `sparse_tokens`
of a prompt, about a question, are decoded through the index as the answer is (0: all of the prompt is
prefilled densely, and with it the answer's first token); `rope_scaling`, `dtype`, `threads`, `seed` and
`capture` are as in `ra-bench decode`. Prompts come one at a time. Log-likelihoods of whole texts
(perplexity) are not offered: they have no prompt to index.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ra_bench.decode.plan import Settings
from ra_bench.decode.responder import Responder
from ra_bench.errors import RaBenchError, UsageError

DEFAULT_NEW_TOKENS = 256  # where a task does not say
LM_EVAL_DEVICE = "cuda:0"  # what lm-eval passes where nobody asked for a device


@register_model("ra-bench")
class RetrievalModel(LM):
    """An lm-evaluation-harness model whose attention is served by an index."""

    def __init__(
        self,
        model: str,
        index: str = "ra",
        k: int = 100,
        sparse_tokens: int = 64,
        batch_size: int | str = 1,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) not in ("1", "auto"):
            raise UsageError(f"batch_size must be 1, got {batch_size}")
        settings.pop("max_batch_size", None)
        asked = {name: value for name, value in settings.items() if value is not None}
        device = "auto" if device == LM_EVAL_DEVICE else device.partition(":")[0]
        indexes = () if index == "dense" else (index,)
        try:
            named = Settings(model=model, indexes=indexes, ks=(int(k),), device=device, **asked)
        except TypeError as error:
            raise UsageError(f"--model_args: {error}") from error
        self._responder = Responder(named, int(sparse_tokens))
        self._tokenizer = self._responder.tokenizer

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each cut at the first of its `until` texts."""
        answers = []
        for request in requests:
            prompt, arguments = request.args
            if arguments.get("do_sample") or arguments.get("temperature"):
                raise UsageError("lm-eval: only greedy decoding is offered, the task asks for sampling")
            until = arguments.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            most = int(arguments.get("max_gen_toks", DEFAULT_NEW_TOKENS))

            def is_done(tokens: Sequence[int], until: list[str] = until) -> bool:
                return any(end in self._decode(tokens) for end in until)

            text = self._decode(self._responder.generate(self._encode(prompt), most, is_done))
            for end in until:
                text = text.split(end)[0] if end else text
            answers.append(text)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihoods of continuations; those after the same prompt share its prefill and indexes."""
        pairs = [self._encode_pair(*request.args) for request in requests]
        scores: list[tuple[float, bool]] = []
        for prompt, same in groupby(pairs, key=lambda pair: pair[0]):
            scores += self._responder.score(prompt, [continuation for _, continuation in same])
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Not offered: a whole text has no prompt to index."""
        raise UsageError("lm-eval: a log-likelihood of a whole text has no prompt to index: not offered")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation, by the model's chat template."""
        text: str = self._tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    @property
    def tokenizer_name(self) -> str:
        """Tells chat templates apart in lm-eval's cache."""
        return str(self._tokenizer.name_or_path).replace("/", "__")

    def _encode_pair(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both; spaces at the prompt's end belong to the continuation."""
        kept = prompt.rstrip(" ")
        both = self._encode(prompt + continuation)
        first = self._encode(kept)
        return both[: len(first)], both[len(first) :]

    def _encode(self, text: str) -> list[int]:
        """Token ids, with a begin-of-text token where the tokenizer sets one and the text has none yet."""
        bos = self._tokenizer.bos_token
        has_one = bos is not None and text.startswith(bos)
        ids: list[int] = self._tokenizer(text, add_special_tokens=not has_one, verbose=False)["input_ids"]
        if not ids:  # an empty prompt
            start = self._tokenizer.bos_token_id
            ids = [self._tokenizer.eos_token_id if start is None else start]
        return ids

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except RaBenchError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
