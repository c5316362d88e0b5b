"""Every index passes every check of ra_bench/conformance/; every check catches a liar planted for it."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ra_bench import conformance, registry
from ra_bench.conformance import CHECKS, answers, costs, inputs, run, state
from ra_bench.conformance.subject import Subject
from ra_bench.index import Bytes, Found, Index, Work, pad_ids

# A graph index is meant to be asked in lifted space; ivf stands for those that pad their rows.
LIFTED = ("hnsw@lift", "nsg@lift", "ra@lift", "ivf@lift", "flat@lift", "hnsw@normalize")
SET_OTHERWISE = ("ivf:trained_on=device",)
SLOW_TO_BUILD = ("ivfpq", "nsg")


def is_slow(spec: str, check: str) -> bool:
    if spec.startswith("pynndescent"):  # numba compiles it for half a minute in each process
        return True
    return check == "memory_counted" and ("@" in spec or spec in SLOW_TO_BUILD)


def cases() -> list[Any]:
    return [
        pytest.param(
            spec,
            check,
            id=f"{spec}-{check.__name__}",
            marks=[pytest.mark.slow] if is_slow(spec, check.__name__) else [],
        )
        for spec in (*registry.names(), *LIFTED, *SET_OTHERWISE, "pynndescent@lift")
        for check in CHECKS
    ]


@functools.cache
def subject(spec: str) -> Subject:
    reason = registry.info(registry.parse(spec).name).reason
    if reason:
        pytest.skip(reason)
    return Subject(spec)


@pytest.mark.parametrize(("spec", "check"), cases())
def test_index_passes(spec: str, check: conformance.Check):
    result = run(subject(spec), check)
    assert result.passed, result.detail


@dataclass
class Honest(Index):
    """Exact search in NumPy: passes, so that a liar fails by its lie alone."""

    can_insert = True

    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)

    def search(self, queries, k, *, share: float = 1.0):
        n = len(self.keys)
        k = n if k is None else k
        order = np.argsort(-(np.asarray(queries) @ self.keys.T.astype(np.float32)), axis=1, kind="stable")
        ids = pad_ids(order, k)
        ids[:, max(1, round(share * k)) :] = -1
        return Found(ids, self.work(np.full(len(queries), n)))

    def work(self, read):
        return Work(keys_read=read)

    def effort_sweep(self, n, k):
        return [{"share": 0.5}, {"share": 1.0}]

    def insert(self, keys, values=None):
        self.keep_inserted(keys, values)

    def save_state(self, folder):
        pass

    def load_state(self, folder, mmap):
        pass


@dataclass
class WrongType(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        return Found(found.ids.astype(np.int64), found.work)


@dataclass
class TooFewColumns(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        return Found(found.ids[:, : len(self.keys)], found.work)


@dataclass
class RepeatsIds(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        found.ids[:, 1:] = found.ids[:, :1]
        return found


@dataclass
class OutOfRange(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        return Found(np.where(found.ids < 0, np.int32(len(self.keys)), found.ids), found.work)


@dataclass
class HoleInIds(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        found.ids[:, 0] = -1
        return found


@dataclass
class WritesKeys(Honest):
    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)
        if keys.flags.writeable:
            keys *= 2


@dataclass
class WritesQueries(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        if queries.flags.writeable:
            queries *= 2
        return found


@dataclass
class HidesCopy(Honest):
    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)
        self.copy = self.keys.astype(np.float16)


@dataclass
class OwnsUpToCopy(HidesCopy):
    @property
    def nbytes(self):
        return Bytes(self.copy.nbytes)


@dataclass
class ReadsNothing(Honest):
    def work(self, read):
        return Work(keys_read=0 * read)


@dataclass
class ReadsTwice(Honest):
    def work(self, read):
        return Work(keys_read=2 * read)


@dataclass
class ReadsLessThanExact(Honest):
    kind = "exact"

    def work(self, read):
        return Work(keys_read=read - 1, exact=read)


@dataclass
class NarrowWork(Honest):
    def work(self, read):
        return Work(keys_read=read.astype(np.int32))


@dataclass
class Unseeded(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        return Found(np.random.default_rng().permuted(found.ids, axis=1), found.work)


@dataclass
class Remembers(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        found = super().search(queries, k)
        self.asked = getattr(self, "asked", 0) + 1
        return Found(np.roll(found.ids, self.asked if (found.ids >= 0).all() else 0, axis=1), found.work)


@dataclass
class AddsUpBuilds(Honest):
    def build(self, keys, values=None, queries=None, about=None):
        old = self.keys
        super().build(keys, values, queries, about)
        if len(old) and old.shape[1] == keys.shape[1]:
            self.keys = np.vstack([old, self.keys])


@dataclass
class LosesInserted(Honest):
    def insert(self, keys, values=None):
        self.keep_inserted(0 * keys, values)


@dataclass
class LoadsOther(Honest):
    def load_state(self, folder, mmap):
        self.keys = self.keys[::-1]


@dataclass
class LoadsAnything(Honest):
    def restore(self, folder, mmap=True):
        self.build(np.zeros((1500, 16), np.float32))


@dataclass
class TakesAnything(Honest):
    def build(self, keys, values=None, queries=None, about=None):
        super().build(np.nan_to_num(np.atleast_2d(keys).astype(np.float32)), values, queries, about)


@dataclass
class MeanOfValues(Honest):
    def save(self, folder):
        raise NotImplementedError

    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)
        if self.values is not None:
            self.values = self.values[::-1]


@dataclass
class FindsWorst(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        return super().search(-np.asarray(queries), k)


@dataclass
class Crashes(Honest):
    def search(self, queries, k, *, share: float = 1.0):
        raise KeyError("lists")


@dataclass
class NeedsManyKeys(Honest):
    def build(self, keys, values=None, queries=None, about=None):
        super().build(keys, values, queries, about)
        if len(keys) < 100:
            raise ValueError("needs 100 keys")


def spec_of(cls: type[Index]) -> str:
    return f"{__file__}::{cls.__name__}"


def test_honest_index_passes_every_check():
    failed = [result for result in conformance.check(spec_of(Honest)) if not result.passed]
    assert failed == []


@pytest.mark.parametrize(
    ("liar", "check"),
    [
        (WrongType, answers.result_shapes),
        (NarrowWork, answers.result_shapes),
        (HoleInIds, answers.result_shapes),
        (TooFewColumns, answers.more_results_than_keys),
        (OutOfRange, answers.more_results_than_keys),
        (RepeatsIds, answers.duplicates),
        (WritesKeys, inputs.inputs_unchanged),
        (WritesQueries, inputs.inputs_unchanged),
        (HidesCopy, costs.memory_counted),
        (ReadsNothing, costs.work_counted),
        (ReadsTwice, costs.work_counted),
        (ReadsLessThanExact, costs.work_counted),
        (Unseeded, state.same_seed_same_answer),
        (Remembers, state.search_is_pure),
        (AddsUpBuilds, state.second_build_replaces),
        (LosesInserted, state.insert_then_search),
        (LoadsOther, state.save_and_load),
        (LoadsAnything, state.torn_file_refused),
        (TakesAnything, inputs.wrong_rows_refused),
        (MeanOfValues, answers.attend_is_exact),
        (FindsWorst, answers.recall_floor),
        (NeedsManyKeys, answers.few_keys),
    ],
    ids=lambda value: value.__name__,
)
def test_liar_is_caught(liar: type[Index], check: conformance.Check):
    result = run(Subject(spec_of(liar)), check)
    assert not result.passed
    assert result.detail


def test_copy_that_nbytes_tells_of_is_allowed():
    assert run(Subject(spec_of(OwnsUpToCopy)), costs.memory_counted).passed


def test_crash_is_a_failed_result_with_its_text():
    results = conformance.check(spec_of(Crashes))
    failed = {result.name: result.detail for result in results if not result.passed}
    assert len(results) == len(CHECKS)
    assert failed["result_shapes"] == "raised KeyError: 'lists'"


def test_check_that_cannot_even_start_fails():
    results = conformance.check("no_such_file.py::Nothing")
    assert not any(result.passed for result in results)


def test_each_check_states_its_fact():
    for check in CHECKS:
        assert inspect.getdoc(check).endswith(".")
