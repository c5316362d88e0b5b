"""Runs units on a Ray cluster: Ray places them, by cores, memory and GPUs, and repeats those that it loses.

Every machine of the cluster needs this package, and the data set at the same path, or at a URL. A unit is
measured there as the local engine does it (`ra_bench.engine.node`); rows are written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from ra_bench.engine.node import machine_of_node, measure_on_node
from ra_bench.engine.task import Call, Ended, Outcome, Watcher, Work
from ra_bench.errors import UsageError

RETRIES = 3  # of a unit whose Ray worker or machine is lost
MEMORY_SHARE = 0.8
WAITING = 2  # units handed to Ray at a time, for each that the cluster can run at once
POLL_S = 1.0


class RayEngine:
    """A connection to the cluster at `address` (`auto`: the one this machine belongs to; `local`: a new one).

    Raises UsageError where there is none, or Ray is not installed.
    """

    def __init__(self, address: str = "auto", threads: int = 1) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--engine ray needs Ray: pip install 'ra-bench[ray]'") from error
        self.ray: Any = ray
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise UsageError(f"--address '{address}' is no Ray cluster: {message}") from error
        self.nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        self.slots = sum(int(node["Resources"]["CPU"] // threads) for node in self.nodes)
        if self.slots < 1:
            ray.shutdown()
            raise UsageError(f"--threads {threads}: no machine of the cluster has so many cores")

    def memory_bytes(self, threads: int) -> int:
        """The share of `threads` cores in the memory of the machine that has least for a core."""
        shares = [node["Resources"]["memory"] / node["Resources"]["CPU"] for node in self.nodes]
        return int(min(shares) * threads * MEMORY_SHARE)

    def machine_class(self) -> str:
        """What decides latency: of all machines, joined by ' + ' where they differ."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        tell = self.ray.remote(num_cpus=0)(machine_of_node)
        asked = []
        for node in self.nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(tell.options(scheduling_strategy=strategy).remote())
        return " + ".join(sorted(set(self.ray.get(asked))))

    def run(self, works: Iterable[Work], watcher: Watcher) -> Iterator[Ended]:
        """See `Engine.run`."""
        units = ((work.prepare, unit) for work in works for unit in work.units)
        flying: dict[Any, Call] = {}
        try:
            while True:
                while len(flying) < self.slots * WAITING and (pair := next(units, None)) is not None:
                    watcher.start(pair[1].name)
                    flying[self._submit(*pair)] = pair[1]
                if not flying:
                    return
                ready, _ = self.ray.wait(list(flying), num_returns=1, timeout=POLL_S)
                for reference in ready:
                    unit = flying.pop(reference)
                    ended = self._ended(unit, reference)
                    yield ended
                    watcher.end(unit.name, ended.outcome.status, ended.outcome.reason)
        finally:
            for reference in flying:
                self.ray.cancel(reference, force=True)
            self.ray.shutdown()

    def _submit(self, prepare: Call, unit: Call) -> Any:
        limits = unit.limits
        remote = self.ray.remote(max_retries=RETRIES, retry_exceptions=False)(measure_on_node)
        options = {"num_cpus": limits.threads, "num_gpus": limits.gpus, "memory": limits.memory_bytes}
        return remote.options(name=unit.name, **options).remote(prepare, unit, os.getcwd())

    def _ended(self, unit: Call, reference: Any) -> Ended:
        try:
            measured = self.ray.get(reference)
        except self.ray.exceptions.OutOfMemoryError:
            lost = Outcome("oom", f"Ray ended it for lack of memory, {RETRIES + 1} times", 1)
            return Ended(unit, lost, lost)
        except self.ray.exceptions.RayError as error:
            first = (str(error).strip().splitlines() or [""])[0]
            lost = Outcome("failed", f"lost by Ray: {type(error).__name__}: {first}", 1)
            return Ended(unit, lost, lost)
        if measured.log:
            with unit.log.open("ab") as file:
                file.write(measured.log)
        return Ended(unit, measured.prepared, measured.outcome)
