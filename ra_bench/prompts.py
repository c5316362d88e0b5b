"""The documents that a model prefills: text from files, from standard input, or Python's own sources.

Or random tokens, several times over, as RazorAttention (arXiv 2407.15891) tells retrieval heads by.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ra_bench.errors import UsageError

Tokenize = Callable[[str], list[int]]

_SKIPPED = ("site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__")


@dataclass(frozen=True)
class Document:
    """One prompt: its `token_ids` (n,) int64, cut to the context, and where the text came from."""

    name: str
    origin: str
    token_ids: np.ndarray

    @property
    def token_hash(self) -> str:
        """The SHA-256 of the token ids as int64 little-endian."""
        return hashlib.sha256(np.asarray(self.token_ids, "<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Repeated:
    """The prompt "repeated:TOKENSxTIMES": `tokens` random tokens, then the same again, `times` in all."""

    tokens: int
    times: int

    @classmethod
    def parse(cls, prompt: str) -> Self | None:
        """What `prompt` asks for; None where it is not of this form."""
        match = re.fullmatch(r"repeated:([0-9]{1,18})x([0-9]{1,18})", prompt)
        return cls(int(match[1]), int(match[2])) if match else None

    def token_ids(self, context_tokens: int, vocabulary: int, seed: int) -> list[int]:
        """Ids below `vocabulary`, each at most once in `tokens`; UsageError where that cannot be."""
        prompt = f"--prompt repeated:{self.tokens}x{self.times}"
        if self.times < 2 or not 2 <= self.tokens <= vocabulary:
            raise UsageError(f"{prompt} must repeat 2 to {vocabulary} tokens at least twice")
        if context_tokens != self.tokens * self.times:
            raise UsageError(f"{prompt} needs --context {self.tokens * self.times}, got {context_tokens}")
        once = np.random.default_rng(seed).permutation(vocabulary)[: self.tokens]
        return np.tile(once, self.times).tolist()


def read_documents(
    prompts: tuple[str, ...], context_tokens: int, tokenize: Tokenize, vocabulary: int = 0, seed: int = 0
) -> list[Document]:
    """The first `context_tokens` tokens of each of `prompts`: a file, "-" for standard input, or `Repeated`.

    Without prompts there is one document, the standard library of the Python that runs. Raises UsageError for
    a prompt that cannot be read, is empty, or has fewer tokens. Random tokens need `vocabulary`.
    """
    if not prompts:
        ids = default_tokens(context_tokens, tokenize)
        return [_document(0, f"Python {platform.python_version()} standard library", ids, context_tokens)]
    if prompts.count("-") > 1:
        raise UsageError("--prompt - (standard input) can be given once")
    documents = []
    for number, prompt in enumerate(prompts):
        if (repeated := Repeated.parse(prompt)) is not None:
            ids = repeated.token_ids(context_tokens, vocabulary, seed)
            documents.append(_document(number, prompt, ids, context_tokens))
            continue
        origin = "standard input" if prompt == "-" else f"file {Path(prompt).name}"
        text = read_text("--prompt", prompt)
        if not text.strip():
            raise UsageError(f"--prompt {prompt} is empty")
        documents.append(_document(number, origin, tokenize(text), context_tokens))
    return documents


def tokenize_bytes(vocabulary: int) -> Tokenize:
    """A stand-in for a model without a tokenizer: UTF-8 bytes as token ids, modulo the vocabulary."""
    return lambda text: [byte % vocabulary for byte in text.encode()]


def _document(number: int, origin: str, token_ids: list[int], context_tokens: int) -> Document:
    if len(token_ids) < context_tokens:
        raise UsageError(
            f"the prompt ({origin}) has {len(token_ids)} tokens, fewer than --context {context_tokens}"
        )
    return Document(f"doc{number:03}", origin, np.array(token_ids[:context_tokens], np.int64))


def read_text(argument: str, path: str | Path) -> str:
    """The UTF-8 text of a file, or of standard input for "-"; UsageError names `argument`."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{argument} {path} must be UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{argument} {path} cannot be read: {error.strerror}") from error


def default_tokens(context_tokens: int, tokenize: Tokenize) -> list[int]:
    """At least `context_tokens` tokens of the standard library's sources, or all that there are.

    A longer text is tokenized anew: tokens cross seams.
    """
    sources = _standard_library()
    text, wanted_chars = "", context_tokens * 4 + 4096
    for source in sources:
        text += source
        if len(text) >= wanted_chars:
            token_ids = tokenize(text)
            if len(token_ids) > context_tokens:
                return token_ids
            wanted_chars = len(text) * 3 // 2
    return tokenize(text)


def _standard_library() -> Iterator[str]:
    """The sources of the standard library, by path; not what a distribution or a build puts beside them."""
    root = Path(sysconfig.get_path("stdlib"))
    places = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED]
        places += [
            (Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(".py")
        ]
    for place in sorted(places):
        if not Path(place).name.startswith("_sysconfigdata"):
            yield f"# {place}\n{(root / place).read_text(encoding='utf-8', errors='replace')}\n"
