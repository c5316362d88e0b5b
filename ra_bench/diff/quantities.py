"""What can be compared: a column of the rows, the samples behind it, and how its change is told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ra_bench.errors import unknown
from ra_bench.results import Row
from ra_bench.statistics import passes


@dataclass(frozen=True)
class Quantity:
    """A column. `samples` is the column of its samples, `quantile` what is taken of them (None: the mean)."""

    column: str
    relative: bool = False  # its change is told in percent
    higher_is_better: bool = False
    is_time: bool = False  # says something of one machine only
    samples: str = ""
    quantile: float | None = None

    def samples_of(self, row: Row) -> np.ndarray | None:
        """(repeats, values) behind the column, or None where the row keeps none."""
        values = row.get(self.samples) if self.samples else None
        if values is None or not len(values):
            return None
        return passes(values, row["repeats"] if self.is_time else 1)

    def block_of(self, row: Row) -> int:
        """Samples of one token: a value a query row, a time a call."""
        return 1 if self.is_time else int(row["group"])


def _quality(column: str, samples: str = "", quantile: float | None = None, higher: bool = False) -> Quantity:
    return Quantity(column, higher_is_better=higher, samples=samples, quantile=quantile)


def _cost(column: str, is_time: bool = False, higher: bool = False) -> Quantity:
    return Quantity(column, relative=True, is_time=is_time, higher_is_better=higher)


def _times(name: str) -> list[Quantity]:
    return [
        Quantity(
            f"{name}_p{rank}_us",
            relative=True,
            is_time=True,
            samples=f"{name}_us_samples",
            quantile=rank / 100,
        )
        for rank in (50, 95, 99)
    ]


QUANTITIES = {
    quantity.column: quantity
    for quantity in (
        _quality("recall", "recall_by_query", higher=True),
        _quality("recall_p05", "recall_by_query", 0.05, higher=True),
        _quality("no_hit_share"),
        _quality("mass_of_indexed", higher=True),
        _quality("mass_total", "mass_total_by_query", higher=True),
        _quality("output_error", "output_error_by_query"),
        _quality("output_error_p95", "output_error_by_query", 0.95),
        _quality("output_error_index"),
        *_times("search"),
        *_times("attend"),
        _cost("queries_per_s", is_time=True, higher=True),
        _cost("attended"),
        _cost("keys_read"),
        _cost("exact"),
        _cost("search_bytes"),
        _cost("attend_bytes"),
        _cost("build_s", is_time=True),
        _cost("knn_s", is_time=True),
        _cost("insert_us_per_key", is_time=True),
        _cost("host_bytes"),
        _cost("device_bytes"),
        _cost("peak_bytes"),
    )
}
SHORT = {"p50": "search_p50_us", "p95": "search_p95_us", "p99": "search_p99_us", "qps": "queries_per_s"}


def quantity_named(name: str) -> Quantity:
    """The quantity of a column, or of a short name. Raises UsageError."""
    column = SHORT.get(name, name)
    if column not in QUANTITIES:
        raise unknown("quantity", name, [*QUANTITIES, *SHORT])
    return QUANTITIES[column]
