"""Paired differences of two sides with their intervals, over the heads that both measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ra_bench.diff.pairs import Paired
from ra_bench.diff.quantities import Quantity
from ra_bench.statistics import Interval, holm, paired_by_head, paired_by_query, sign_flip_test


class Ends(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


@dataclass
class Change:
    """One quantity of one setting, the mean over the paired heads, in B against A.

    `p_value` is that of the sign-flip test over heads, corrected by Holm for the number of settings; None for
    one head.
    """

    paired: Paired
    quantity: Quantity
    before: float
    after: float
    p_value: float | None = None

    def value(self, relative: bool) -> float:
        """B less A; with `relative`, over A."""
        if not relative or self.before == self.after:
            return self.after - self.before
        return self.after / self.before - 1 if self.before else math.copysign(math.inf, self.after)

    def interval(self, relative: bool) -> Ends | None:
        """Of the value: by query where there are samples, else by head; None where neither tells."""
        return self.by_query(relative) or self.by_head(relative)

    def by_query(self, relative: bool) -> Ends | None:
        """For these heads, whatever the queries; None where a row keeps no samples."""
        return _by_query(self.paired, self.quantity, relative)

    def by_head(self, relative: bool) -> Ends | None:
        """For heads like these; None for one head."""
        return _by_head(self.paired, self.quantity, relative)

    @property
    def is_certain(self) -> bool:
        """Whether its interval does not hold zero; without one, a changed count is certain, a time never."""
        if self.before == self.after:
            return False
        ends = self.interval(self.quantity.relative)
        return not self.quantity.is_time if ends is None else ends.low > 0 or ends.high < 0

    @property
    def is_better(self) -> bool:
        """Whether the change is for the good."""
        return (self.after > self.before) == self.quantity.higher_is_better and self.after != self.before


def changes(
    paired: Sequence[Paired], quantities: Iterable[Quantity], across_machines: bool = False
) -> list[Change]:
    """Every setting's change of each quantity that all its rows have; times of one machine, unless asked."""
    found = []
    for quantity in quantities:
        family = [
            Change(one, quantity, float(np.mean(before)), float(np.mean(after)))
            for one in paired
            if across_machines or one.same_machine or not quantity.is_time
            for before, after in [one.both(quantity.column)]
            if None not in before and None not in after
        ]
        tested = [change for change in family if len(change.paired.heads) > 1]
        p_values = [
            sign_flip_test(np.subtract(*reversed(change.paired.both(quantity.column)))) for change in tested
        ]
        for change, p_value in zip(tested, holm(np.array(p_values)).tolist(), strict=True):
            change.p_value = p_value
        found += family
    return found


@functools.cache
def _by_query(paired: Paired, quantity: Quantity, relative: bool) -> Ends | None:
    samples = [
        (quantity.samples_of(before), quantity.samples_of(after))
        for before, after in zip(paired.before, paired.after, strict=True)
    ]
    known = [(a, b) for a, b in samples if a is not None and b is not None and a.shape[1] == b.shape[1]]
    if len(known) < len(samples):
        return None
    before, after = ([one[side] for one in known] for side in (0, 1))
    block = quantity.block_of(paired.before[0])
    return _ends(paired_by_query(before, after, block, quantity.quantile, relative))


@functools.cache
def _by_head(paired: Paired, quantity: Quantity, relative: bool) -> Ends | None:
    if len(paired.heads) == 1:
        return None
    before, after = (np.array(side, float) for side in paired.both(quantity.column))
    return _ends(paired_by_head(before, after, relative))


def _ends(interval: Interval) -> Ends | None:
    return None if math.isnan(interval.low) else Ends(interval.low, interval.high)
