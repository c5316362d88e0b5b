"""The thread pool over the heads of a layer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_POOL_NAME = "ra-bench-heads"


def over_heads(one: Callable[[int], None], heads: int, threads: int) -> None:
    """Calls `one(h)` for each of `heads`, on up to `threads` threads; raises what a call raised."""
    if threads == 1 or heads == 1 or threading.current_thread().name.startswith(_POOL_NAME):
        for h in range(heads):  # a pool's own thread must not wait for its fellows
            one(h)
        return
    list(_pool(min(threads, heads)).map(one, range(heads)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: a decoded token asks for them once a layer, and to start them would cost more."""
    return ThreadPoolExecutor(threads, thread_name_prefix=_POOL_NAME)
