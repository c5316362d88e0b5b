"""The child process of one unit: `python -m ra_bench.engine.worker TASK.json LINES.jsonl`.

The task names a function `module:function`, called with the task's arguments and a `land` that appends a
JSON line at once, so that what was measured survives whatever happens next. The last line is the outcome.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from ra_bench.errors import RaBenchError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies, however that dies; elsewhere does nothing."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Runs the task; a failure is a line too, and an unexpected one also prints its traceback."""
    die_with_parent()
    task = json.loads(Path(sys.argv[1]).read_text())
    module, _, function = task["call"].partition(":")
    with Path(sys.argv[2]).open("a") as lines:

        def land(kind: str, content: Any) -> None:
            lines.write(json.dumps({kind: content}) + "\n")
            lines.flush()

        try:
            call = getattr(importlib.import_module(module), function)
            land("done", call(task["arguments"], lambda row: land("row", row)))
        except RaBenchError as error:
            land("failed", {"reason": str(error), "exit_code": error.exit_code})
        except MemoryError as error:
            land("oom", {"reason": f"out of memory: {error}"})
        except Exception as error:  # an index is foreign code: anything can be raised
            traceback.print_exc()
            land("failed", {"reason": f"{type(error).__name__}: {error}".splitlines()[0], "exit_code": 1})
    return 0


if __name__ == "__main__":
    sys.exit(main())
