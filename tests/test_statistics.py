"""Intervals and tests: against plain loops, and by what they promise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ra_bench import statistics
from ra_bench.statistics import (
    by_head,
    by_query,
    holm,
    over_heads,
    paired_by_head,
    paired_by_query,
    passes,
    resampled,
    sign_flip_test,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def plain_draws(values: np.ndarray, block: int, quantile: float | None, stream: int) -> np.ndarray:
    """Every resample written out: a list of tokens, their rows and repeats gathered one by one."""
    tokens = values.shape[1] // block
    results = []
    for counts in statistics._counts(tokens, stream).T:
        drawn = []
        for token, times in enumerate(counts.astype(int)):
            rows = values[:, token * block : (token + 1) * block].ravel().tolist()
            drawn += rows * times
        results.append(np.mean(drawn) if quantile is None else np.quantile(drawn, quantile))
    return np.array(results)


@pytest.mark.parametrize("quantile", [None, 0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(("repeats", "block"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_draws_are_those_of_resamples_written_out(repeats, block, quantile, monkeypatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 40)
    statistics._counts.cache_clear()
    values = rng().normal(size=(repeats, 5 * block)).round(1)  # with ties

    fast = statistics._drawn(statistics._samples(values, block), quantile, 2)

    np.testing.assert_allclose(fast, plain_draws(values, block, quantile, 2), rtol=1e-12, atol=1e-12)
    statistics._counts.cache_clear()


@pytest.mark.parametrize("reach", [0.0, statistics.REACH])
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.99])
def test_draws_of_a_quantile_are_the_same_however_far_is_looked(quantile, reach, monkeypatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 40)
    monkeypatch.setattr(statistics, "REACH", reach)
    statistics._counts.cache_clear()
    values = rng(3).lognormal(size=(3, 60))

    fast = statistics._drawn(statistics._samples(values, 1), quantile, 0)

    np.testing.assert_allclose(fast, plain_draws(values, 1, quantile, 0), rtol=1e-12)
    statistics._counts.cache_clear()


def test_settings_of_a_head_are_drawn_alike() -> None:
    values = rng(4).normal(size=(1, 50))

    one, moved = resampled(values, 3), resampled(values + 2, 3, quantile=None)

    np.testing.assert_allclose(moved.draws, one.draws + 2)
    assert not np.allclose(resampled(values, 4).draws, one.draws)
    assert over_heads([one]).low == pytest.approx(over_heads([moved]).low - 2)


def test_what_some_draws_never_reach_has_no_upper_end() -> None:
    draws = np.arange(1000.0)
    draws[-100:] = np.inf

    interval = over_heads([statistics.Resampled(500.0, draws, 50)])

    assert interval.high == np.inf
    assert 0 < interval.low < 50


def test_the_value_is_the_plain_mean_or_quantile_averaged_over_heads() -> None:
    heads = [rng(1).exponential(size=(3, 40)), rng(2).exponential(size=(2, 60))]

    assert by_query(heads).value == pytest.approx(np.mean([head.mean() for head in heads]))
    median = np.mean([np.percentile(head, 50) for head in heads])
    assert by_query(heads, quantile=0.5).value == pytest.approx(median)


def test_equal_calls_give_equal_intervals() -> None:
    head = rng().normal(size=50)

    assert by_query([head]) == by_query([head])


@pytest.mark.parametrize(("size", "runs"), [(8, 300), (40, 300)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(size, runs) -> None:
    held = 0
    for seed in range(runs):
        interval = by_head(rng(seed).normal(size=size))
        held += interval.low <= 0 <= interval.high

    assert 0.90 <= held / runs <= 0.99


def test_the_interval_of_a_median_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        interval = by_query([rng(seed).exponential(size=60)], quantile=0.5)
        held += interval.low <= np.log(2) <= interval.high

    assert 0.90 <= held / 200 <= 0.99


def test_rows_of_a_token_that_say_the_same_do_not_narrow_the_interval() -> None:
    tokens = rng().normal(size=50)
    copied = np.repeat(tokens, 7)

    assert by_query([copied], block=7) == pytest.approx(by_query([tokens]))
    apart = by_query([copied])
    assert apart.high - apart.low < 0.5 * (by_query([tokens]).high - by_query([tokens]).low)


def test_repeats_that_say_the_same_do_not_narrow_the_interval() -> None:
    once = rng().normal(size=50)

    assert by_query([np.stack([once] * 3)]) == pytest.approx(by_query([once]))


def test_pairing_removes_what_both_sides_share() -> None:
    hardness = rng(0).normal(0, 10, 100)
    before = hardness + rng(1).normal(0, 0.1, 100)
    after = hardness + rng(2).normal(0.2, 0.1, 100)

    change = paired_by_query([before], [after])

    assert 0.1 < change.low < change.value < change.high < 0.3
    assert by_query([before]).high - by_query([before]).low > 2


def test_a_paired_mean_is_that_of_the_differences() -> None:
    before, after = rng(1).normal(size=(2, 30)), rng(2).normal(size=(2, 30))

    assert paired_by_query([before], [after]) == pytest.approx(by_query([after - before]))


def test_a_relative_change_is_over_the_mean_before() -> None:
    before, after = rng(1).uniform(1, 2, 30), rng(2).uniform(2, 3, 30)

    change = paired_by_head(before, after, relative=True)

    assert change.value == pytest.approx(after.mean() / before.mean() - 1)
    assert change.low < change.value < change.high
    assert paired_by_head(np.zeros(3), np.zeros(3), relative=True) == (0, 0, 0)
    assert paired_by_head(np.zeros(3), np.ones(3), relative=True).value == np.inf


def test_sides_may_have_another_number_of_repeats() -> None:
    once = rng().normal(size=(1, 30))

    assert paired_by_query([once], [np.repeat(once, 3, axis=0)]) == pytest.approx((0, 0, 0))


def test_one_sample_tells_no_spread() -> None:
    for interval in (by_head(np.array([0.5])), by_query([np.full((3, 7), 0.5)], block=7)):
        assert interval.value == 0.5
        assert np.isnan([interval.low, interval.high]).all()


def test_a_sign_flip_test_counts_every_flip() -> None:
    differences = rng().normal(0.4, 1, 9)
    flips = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=9)]

    counted = np.mean(np.abs(flips) >= abs(differences.sum()) - 1e-12)

    assert sign_flip_test(differences) == pytest.approx(counted)


def test_a_sampled_sign_flip_test_agrees_with_the_exact_one(monkeypatch) -> None:
    differences = rng(3).normal(0.4, 1, 12)
    exact = sign_flip_test(differences)
    monkeypatch.setattr(statistics, "EXACT_HEADS", 2)

    assert sign_flip_test(differences) == pytest.approx(exact, abs=0.01)


def test_a_sign_flip_test_never_falls_below_what_its_heads_allow() -> None:
    assert sign_flip_test(np.ones(5)) == 2 / 2**5
    assert sign_flip_test(np.zeros(4)) == 1.0
    assert sign_flip_test(np.ones(40)) == pytest.approx(1 / 20_001)


def test_p_values_are_uniform_where_nothing_differs() -> None:
    p = [sign_flip_test(rng(seed).normal(size=8)) for seed in range(400)]

    assert 0.02 < np.mean(np.array(p) <= 0.05) < 0.08


def test_holm_s_correction_of_a_worked_example() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1, 1])
    assert holm(np.array([])).shape == (0,)


def test_passes_come_back_in_the_order_in_which_rows_keep_them() -> None:
    np.testing.assert_array_equal(passes(np.arange(6), 2), [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="7 samples are not 2 passes"):
        passes(np.arange(7), 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: by_query([np.empty(0)]), r"at least one, got \(0,\)"),
        (lambda: by_query([np.ones(7)], block=2), "7 values are not whole blocks of 2"),
        (lambda: by_query([np.array([1.0, np.nan])]), "must be finite"),
        (lambda: paired_by_query([np.ones(3)], [np.ones(4)]), "the same tokens, got 3 and 4"),
        (lambda: paired_by_query([np.ones(3)], []), "shorter"),
        (lambda: sign_flip_test(np.empty(0)), r"at least one, got \(0,\)"),
    ],
)
def test_what_cannot_be_said_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
