"""Data sets at URLs (`s3://bucket/dump`, `file:///mnt/dump`), read through fsspec, file by file as needed.

Files land in a folder of this machine's and user's temporary folder; the dump's reader checks their sizes and
hashes as it does for local ones, so a file that another run left there is used only if it is the right one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from ra_bench.errors import UsageError, one_line
from ra_bench.results import write_stream


def is_url(path: str) -> bool:
    """Whether a data set is named by a URL rather than a folder."""
    return "://" in path


def local_folder(url: str) -> Path:
    """Where files of the data set at `url` land."""
    folder = Path(tempfile.gettempdir(), f"ra-bench-data-{os.getuid()}")
    return folder / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


def fetch(url: str, name: str) -> Path:
    """The file `name` of the data set at `url`, fetched anew. FileNotFoundError where it has none.

    Raises UsageError where the URL cannot be read at all: an unknown protocol, a library that is absent.
    """
    import fsspec

    target = local_folder(url) / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with fsspec.open(f"{url.rstrip('/')}/{name}", "rb") as source:
            write_stream(target, source)
    except FileNotFoundError:
        raise
    except Exception as error:  # each protocol is a library of its own, with its own errors
        raise UsageError(f"data set '{url}': {name} cannot be read: {one_line(error)}") from error
    return target
