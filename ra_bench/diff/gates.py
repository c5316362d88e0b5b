"""Gates: `mass_total<-0.01,p50>+20%` falls where mass drops by over .01 or the median grows by a fifth."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ra_bench.diff.changes import Change
from ra_bench.diff.quantities import Quantity, quantity_named
from ra_bench.diff.sides import Side
from ra_bench.errors import RunError, UsageError

_GATE = re.compile(r"\s*(\w+)\s*(<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")


@dataclass(frozen=True)
class Gate:
    """Falls where the change of a quantity, B less A, is beyond `threshold`; `relative`: over A."""

    text: str
    quantity: Quantity
    above: bool  # falls above the threshold, or below
    threshold: float
    relative: bool

    def falls(self, change: Change, certain: bool = False) -> bool:
        """Whether the change is beyond the threshold; with `certain`, the whole interval of it."""
        if not self._beyond(change.value(self.relative)):
            return False
        ends = change.interval(self.relative) if certain else None
        return ends is None or self._beyond(ends.low if self.above else ends.high)

    def _beyond(self, value: float) -> bool:
        return value > self.threshold if self.above else value < self.threshold


def parse_gates(text: str) -> list[Gate]:
    """The gates of a --fail-on expression. Raises UsageError naming the part that is wrong."""
    gates = []
    for part in text.split(","):
        match = _GATE.fullmatch(part)
        if match is None:
            raise UsageError(
                f"--fail-on must be gates such as mass_total<-0.01,p50>+20%, got '{part.strip()}'"
            )
        name, sign, number, percent = match.groups()
        try:
            quantity = quantity_named(name)
        except UsageError as error:
            raise UsageError(f"--fail-on: {error}") from error
        threshold = float(number) / (100 if percent else 1)
        if not math.isfinite(threshold):
            raise UsageError(f"--fail-on must have finite numbers, got '{part.strip()}'")
        gates.append(Gate(part.strip(), quantity, sign == ">", threshold, bool(percent)))
    return gates


def refuse_untimed(gates: Sequence[Gate], a: Side, b: Side) -> None:
    """Raises UsageError for a gate on times where the two sides are of different machines."""
    for gate in gates:
        if gate.quantity.is_time and a.machines != b.machines:
            raise UsageError(
                f"--fail-on '{gate.text}' needs times of one machine, got {'; '.join(a.machines)} and"
                f" {'; '.join(b.machines)}; --across-machines compares them all the same"
            )


def fallen(
    gates: Sequence[Gate], found: Sequence[Change], certain: bool = False
) -> list[tuple[Gate, Change]]:
    """Each gate with each change that it falls at. Raises RunError for a gate that no change was held to."""
    pairs = []
    for gate in gates:
        held = [change for change in found if change.quantity == gate.quantity]
        if not held:
            raise RunError(f"--fail-on '{gate.text}': no pair of rows has a {gate.quantity.column}")
        pairs += [(gate, change) for change in held if gate.falls(change, certain)]
    return pairs
