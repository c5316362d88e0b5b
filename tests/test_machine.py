"""Measurements of the machine: what must hold of them on any."""

from __future__ import annotations

import pytest

from ra_bench import machine


def test_random_reads_have_a_rate_and_are_measured_once():
    rate = machine.random_read_gb_per_s(2, 128, 8 * machine.MIB)
    assert 0.01 < rate < 10_000
    assert machine.random_read_gb_per_s(2, 128, 8 * machine.MIB) == rate


@pytest.mark.parametrize(
    ("threads", "row_bytes", "match"), [(0, 128, "threads"), (1, 100, "row_bytes"), (1, 0, "row_bytes")]
)
def test_impossible_reads_are_refused(threads, row_bytes, match):
    with pytest.raises(ValueError, match=match):
        machine.random_read_gb_per_s(threads, row_bytes, machine.MIB)


def test_a_pool_call_costs_time_and_its_tasks_do_too():
    assert machine.pool_call_us(3, calls=50) > 0
    assert machine.pool_call_us(3, busy_us=100, pause_us=50, calls=20) > 0  # less would be work left out


def test_threads_double_up_to_all_cores():
    assert machine.thread_counts(1) == [1]
    assert machine.thread_counts(2) == [1, 2]
    assert machine.thread_counts(16) == [1, 2, 4, 8, 16]
    assert machine.thread_counts(24) == [1, 2, 4, 8, 16, 24]
