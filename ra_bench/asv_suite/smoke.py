"""`python -m ra_bench.asv_suite.smoke`: every benchmark once, in this Python; fails if nothing was measured.

`asv run` alone cannot tell: it ends well where no benchmark matched its environment. The results go into a
folder of their own, since a single quick run has no place in the history.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What must have been measured, whatever else was: a benchmark of each kind.
KINDS = ("time_search", "time_build", "peakmem_build", "track_miss", "track_output_error", "time_merge")


def main(arguments: list[str]) -> int:
    """Runs asv in this file's checkout, or only judges the folder after `--results`; the exit code."""
    if arguments[:1] == ["--results"]:
        return judge(measured(Path(arguments[1]).glob("*/*.json")))
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="ra-bench-asv-") as scratch:
        config = write_config(root, Path(scratch))
        asv = [sys.executable, "-m", "asv"]
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        commands = (
            ["machine", "--yes"],
            ["check", "--python=same"],
            # Without the hash asv measures in this Python and keeps nothing.
            ["run", "--python=same", "--quick", "--show-stderr", f"--set-commit-hash={head}"],
        )
        for command in commands:
            code = subprocess.run([*asv, *command, f"--config={config}"], cwd=root, check=False).returncode
            if code:
                print(f"asv {command[0]} failed with exit code {code}", file=sys.stderr)
                return code
        return judge(measured(Path(scratch, "results").glob("*/*.json")))


def write_config(root: Path, scratch: Path) -> Path:
    """asv.conf.json with absolute paths, and all that is written in `scratch`."""
    from asv.util import load_json

    config = load_json(str(root / "asv.conf.json"), js_comments=True)
    config |= {
        name: str(scratch / name.removesuffix("_dir")) for name in ("env_dir", "results_dir", "html_dir")
    }
    config |= {"repo": str(root), "benchmark_dir": str(root / config["benchmark_dir"])}
    path = scratch / "asv.conf.json"
    path.write_text(json.dumps(config))
    return path


def measured(files: Iterable[Path]) -> dict[str, int]:
    """How many numbers asv's result files hold, by the benchmark's own name."""
    counts: dict[str, int] = {}
    for file in files:
        content = json.loads(file.read_text())
        if "results" not in content:  # machine.json lies beside them
            continue
        at = content["result_columns"].index("result")
        for name, columns in content["results"].items():
            short = name.rpartition(".")[2]
            counts[short] = counts.get(short, 0) + sum(map(_is_number, columns[at] or []))
    return counts


def judge(counts: dict[str, int]) -> int:
    """0 where every kind was measured; else 1, and a line that names what was not."""
    missing = [kind for kind in KINDS if not counts.get(kind)]
    print(f"asv measured {sum(counts.values())} numbers of {len(counts)} benchmarks")
    if missing:
        print(f"asv measured nothing of {', '.join(missing)}", file=sys.stderr)
    return 1 if missing else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
