"""The built-in sample: a real capture of one KV head; sample/PROVENANCE.md tells how it was made."""

from __future__ import annotations

from pathlib import Path

from ra_bench.errors import UsageError


def sample_path() -> Path:
    """The folder of the sample dump. Raises UsageError where it was left out of the installation."""
    folder = Path(__file__).resolve().parent / "sample"
    if not folder.is_dir():
        raise UsageError("the built-in sample is not installed; name a dump with --data")
    return folder
