"""`Wrapper`: an index around another, whose spec is `NAME(SPEC)`, as `tail(ra:ef=300)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ra_bench.head import Head
from ra_bench.index import Bytes, Index


class Wrapper(Index):
    """An index that asks another one and does something more with what it found.

    A subclass is a dataclass of its own settings. The registry sets `inner` after `__init__` and before all
    else, and `inner_effort`, what the inner spec fixes. The wrapper's sweep is the inner one's.
    """

    kind: ClassVar[str] = "wrapper"
    default_inner: ClassVar[str] = "ra"  # what NAME without parentheses wraps

    inner: Index
    inner_effort: dict[str, Any]

    def wrap(self, inner: Index, effort: dict[str, Any]) -> None:
        """Takes over what the inner index is; `effort` is fixed for it already."""
        self.inner, self.inner_effort = inner, effort
        self.learn_queries, self.learn_neighbors = inner.learn_queries, inner.learn_neighbors
        self.key_neighbors = inner.key_neighbors
        facts = ("query_aware", "deterministic", "where")  # class variables, so by their names
        vars(self).update({name: getattr(inner, name) for name in facts})
        vars(self)["can_insert"] = type(self).can_insert and inner.can_insert

    def use_threads(self, threads: int) -> None:
        """Sets the inner index's threads too."""
        super().use_threads(threads)
        self.inner.use_threads(threads)

    def warm_up(self, d: int) -> None:
        """Warms the inner index up."""
        self.inner.warm_up(d)

    def build_inner(self, keys: Any, values: Any, queries: Any, about: Head | None) -> None:
        """Builds the inner index with this one's seed and threads."""
        self.inner.seed = self.seed
        self.inner.use_threads(self.threads)
        self.inner.build(keys, values, queries, about)

    def effort_sweep(self, n: int, k: int) -> list[dict[str, Any]]:
        """The inner index's sweep, but for what its spec fixes."""
        return [effort | self.inner_effort for effort in self.inner.effort_sweep(n, k)]

    def observe(self, queries: Any) -> None:
        """Passes the step's queries on."""
        self.inner.observe(queries)

    @property
    def is_stateful(self) -> bool:
        """Whether the inner index is."""
        return self.inner.is_stateful

    @property
    def nbytes(self) -> Bytes:
        """The inner index's memory; a subclass adds its own."""
        return self.inner.nbytes

    def save_state(self, folder: Path) -> None:
        """Saves the inner index in a subfolder."""
        self.inner.save(folder / "inner")

    def load_state(self, folder: Path, mmap: bool) -> None:
        """Loads the inner index from its subfolder."""
        self.inner.restore(folder / "inner", mmap)
