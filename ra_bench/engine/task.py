"""What an engine runs: calls with limits, grouped by the head that they share; and how each ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Limits:
    """What a call may use; it is killed beyond. `gpus` are reserved, not enforced."""

    timeout_s: float
    memory_bytes: int
    threads: int
    gpus: int = 0


@dataclass(frozen=True)
class Call:
    """`module:function`, called with `arguments` in a process of its own; what it prints goes to `log`."""

    name: str
    function: str
    arguments: dict[str, Any]
    limits: Limits
    log: Path
    address: str = ""

    def on(self, bundle: Path) -> Call:
        """The same call, told where the bundle of its head is."""
        return replace(self, arguments=self.arguments | {"bundle": str(bundle)})


@dataclass(frozen=True)
class Work:
    """One head: the call that prepares its bundle, and the calls that measure on it."""

    prepare: Call
    units: list[Call]


@dataclass
class Outcome:
    """How a call ended: `status` ok, failed, timeout, oom or skipped; the rows it landed, what it returned.

    `facts` tells of the machine it ran on, where that is not this one.
    """

    status: str
    reason: str = ""
    exit_code: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    result: Any = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A unit that ended, and how the preparation of its head did."""

    unit: Call
    prepared: Outcome
    outcome: Outcome


class Watcher(Protocol):
    """Is told how the run goes on; the command line shows it."""

    def start(self, name: str) -> None:
        """A call starts."""

    def end(self, name: str, status: str, reason: str) -> None:
        """It ended."""


class Engine(Protocol):
    """Where units run."""

    def memory_bytes(self, threads: int) -> int:
        """Memory that a unit of so many threads may use, unless its user says otherwise."""

    def machine_class(self) -> str:
        """What decides latency where units run."""

    def run(self, works: Iterable[Work], watcher: Watcher) -> Iterator[Ended]:
        """Runs all units, and yields each as it ends; leaving the iterator early ends what still runs."""


def refusal(prepared: Outcome) -> Outcome | None:
    """How all units of a head end that could not be prepared, or cannot serve; None where they can run."""
    if prepared.status != "ok":
        return Outcome(prepared.status, f"preparing the head: {prepared.reason}", prepared.exit_code)
    if prepared.result["skipped"]:
        return Outcome("skipped", prepared.result["skipped"])
    return None
