"""Search by index and effort: its time, and the quality that the time buys."""

from __future__ import annotations

from .heads import DATA, EFFORTS, INDEXES, Built, K, Measured, States, built, state_of, tokens_of


class Search(Built):
    """One-token searches, as decoding asks: G queries of one KV head a call, one thread."""

    params = (DATA, INDEXES, tuple(EFFORTS))
    param_names = ("data", "index", "effort")

    def setup(self, states: States, data: str, spec: str, effort: str) -> None:
        """Skips an effort that the method's sweep does not tell apart."""
        state = state_of(states, data, spec)
        if effort not in state.efforts:
            raise NotImplementedError(f"{spec} has no {effort} effort of its own")
        self.settings = state.efforts[effort]
        self.index, self.tokens = built(data, spec), tokens_of(data)[:32]

    def time_search(self, states: States, data: str, spec: str, effort: str) -> None:
        """32 tokens, one call each."""
        for token in self.tokens:
            self.index.search(token, K, **self.settings)


class Quality(Built):
    """What a search misses; measured once, in `setup_cache`."""

    params = (DATA, INDEXES, tuple(EFFORTS))
    param_names = ("data", "index", "effort")

    def setup(self, states: States, data: str, spec: str, effort: str) -> None:
        """Skips an effort that the method's sweep does not tell apart."""
        if effort not in state_of(states, data, spec).efforts:
            raise NotImplementedError(f"{spec} has no {effort} effort of its own")

    def track_miss(self, states: States, data: str, spec: str, effort: str) -> float:
        """1 - recall@100."""
        return self._measured(states, data, spec, effort).miss

    def track_output_error(self, states: States, data: str, spec: str, effort: str) -> float:
        """|o'-o|/|o|, static part merged."""
        return self._measured(states, data, spec, effort).output_error

    def track_keys_read(self, states: States, data: str, spec: str, effort: str) -> float:
        """Share of the indexed keys that were touched in any form; not defined where a library hides it."""
        share = self._measured(states, data, spec, effort).keys_read
        return float("nan") if share is None else share

    def _measured(self, states: States, data: str, spec: str, effort: str) -> Measured:
        return state_of(states, data, spec).measured[effort]

    track_miss.unit = "1 - recall@100"  # type: ignore[attr-defined]
    track_output_error.unit = "relative error"  # type: ignore[attr-defined]
    track_keys_read.unit = "share of keys"  # type: ignore[attr-defined]
