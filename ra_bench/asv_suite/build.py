"""Builds by index: time, peak memory, and the size of what was built."""

from __future__ import annotations

from .heads import DATA, INDEXES, Built, States, build, bundle, state_of


class Build(Built):
    """A build on one thread; the neighbours of the learn queries are the harness's, computed before."""

    params = (DATA, INDEXES)
    param_names = ("data", "index")
    number = 1
    repeat = (1, 5, 20.0)
    rounds = 1
    warmup_time = 0.0

    def setup(self, states: States, data: str, spec: str) -> None:
        """Maps the vectors; skips what does not apply."""
        state_of(states, data, spec)
        bundle(data)

    def time_build(self, states: States, data: str, spec: str) -> None:
        """From the vectors in memory to an index that can be searched."""
        build(data, spec)

    def peakmem_build(self, states: States, data: str, spec: str) -> None:
        """The largest resident set of a process that maps the vectors and builds."""
        build(data, spec)

    def track_bytes_per_key(self, states: States, data: str, spec: str) -> float:
        """Memory of the index beyond the key and value rows."""
        return state_of(states, data, spec).bytes_per_key

    track_bytes_per_key.unit = "bytes/key"  # type: ignore[attr-defined]
