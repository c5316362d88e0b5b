"""What the figures are made of: the rows of all runs, labelled, and the points that several figures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ra_bench.report import compared, decoded, drifted, intervals, theme
from ra_bench.report.rows import Run
from ra_bench.results import Row


@dataclass
class Material:
    """The rows of all runs of a report."""

    runs: Sequence[Run]

    @cached_property
    def compare(self) -> list[Row]:
        """Measured rows of `compare`, labelled."""
        return compared.labelled_rows(self.runs)

    @cached_property
    def decode(self) -> list[Row]:
        """Measured rows of `decode`, labelled."""
        return decoded.labelled_rows(self.runs)

    @cached_property
    def drift(self) -> list[Row]:
        """Measured rows of `drift`, labelled."""
        return drifted.labelled_rows(self.runs)

    @cached_property
    def points(self) -> list[Row]:
        """Each index at each setting: the mean over heads, with its intervals."""
        made = compared.points_over_heads(self.compare)
        for where, points in compared.by(made, (*compared.SCOPE, "index")).items():
            for point, ends in zip(points, self.intervals[where].means, strict=True):
                point.update(intervals.fields(ends))
        return made

    @cached_property
    def head_points(self) -> list[Row]:
        """The same for each head; none where no scope has more than one."""
        if len({row["head"] for row in self.compare}) < 2:
            return []
        made = compared.points_of_heads(self.compare)
        for where, points in compared.by(made, (*compared.SCOPE, "index")).items():
            for point in points:
                own = self.intervals[where].heads.get((point["head"], point["effort_rank"]), {})
                point.update(intervals.fields(own))
        return made

    @cached_property
    def intervals(self) -> dict[tuple, intervals.Sure]:
        """How sure the numbers of each index in each scope are."""
        return intervals.intervals(self.compare)

    @cached_property
    def decoded(self) -> list[Row]:
        """Each run of `decode` on each task, and on all of them: the mean over samples."""
        return decoded.points(self.decode)

    @cached_property
    def heads(self) -> list[str]:
        """The heads of `compare` and `drift`."""
        rows = (*self.compare, *self.drift)
        places = {row["head"]: (str(row["document"]), row["layer"], row["kv_head"]) for row in rows}
        return sorted(places, key=lambda head: places[head])

    @cached_property
    def indexes(self) -> list[str]:
        """All indexes in the order of their colours; the oracle and the floors have none."""
        candidates = [row["index"] for row in self.compare if row["role"] == "index"]
        return theme.ordered([*candidates, *(row["index"] for row in (*self.decode, *self.drift))])
