"""The dump: real keys, values and queries of attention heads, as a folder of Parquet files.

    data = DataSet.open("dump/")           # checks that the dump is whole; reads no vectors
    data.heads                             # [HeadName("doc000", 12, 0), ...]
    data.select(layers=[12])               # those of them; an absent layer or head is an error
    head = data.load(data.heads[0])        # HeadVectors: keys, values, queries, and `about`, a Head
    data.hash                              # names the content, for result rows

One file a document, layer, KV head and kind (`doc000_layer12_head0_keys.parquet`) with the columns
`position` int32, `query_head` int16 (null for keys and values), `step` int32 (null for the prefill) and
`vector` fixed_size_list<float16 | float32>[d]. Keys and values hold one row a token; those of decoded tokens
lie in files of their own (`decoded_keys`, `decoded_values`), so that a layer's prefill is whole when it is
written; `load` gives them as one. Version 1 kept them in one file; it is read too.
Query rows are ordered by token, then by query head: blocks of G, one block a token. Files hold queries as the
model made them; `load` gives them multiplied by the softmax scale, so that q·k is the attention logit.

What was imported may lack values, positions (null) or a softmax scale (null): they are None then, and queries
are as they were. What is known of the head is JSON in each file's metadata (`HeadMetadata`). The manifest
`dump.json` lists the files with their sizes and hashes and is written last: a folder without it is not a
finished dump. What writes all this is `ra_bench.writer`; one file is read by `ra_bench.head_file`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np

from ra_bench import remote
from ra_bench.errors import UsageError
from ra_bench.head import Head, Rope

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
MANIFEST = "dump.json"

Kind = Literal[
    "keys", "values", "prefill_queries", "decoded_keys", "decoded_values", "decode_queries"
]  # in the order in which a model makes them
KINDS: tuple[Kind, ...] = get_args(Kind)

# Makes an array to be filled, such as numpy.empty; a caller with little memory gives one backed by a file.
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]

_FILE_NAME = re.compile(rf"(doc\d{{3,}})_layer(\d+)_head(\d+)_({'|'.join(KINDS)})\.parquet")


class HeadName(NamedTuple):
    """The place of one KV head in a data set."""

    document: str
    layer: int
    kv_head: int

    def __str__(self) -> str:
        return f"{self.document}/layer{self.layer}/head{self.kv_head}"


@dataclass(frozen=True)
class HeadMetadata:
    """What every file says of its head.

    `softmax_scale` is None where it is not known or there is no softmax.
    `rope` is None where the rotation is unknown or there is none; `rope_note` then tells why. `window` is
    that of a sliding layer, in tokens. `token_hash` is the SHA-256 of the document's token ids, int64
    little-endian: the prompt's only. `prompt` tells where the text came from.
    """

    model: str
    revision: str
    group: int
    softmax_scale: float | None
    layer_kind: str
    window: int | None
    rope: Rope | None
    rope_note: str
    context_tokens: int
    token_hash: str
    prompt: str
    random_weights: bool
    versions: dict[str, str]

    def head(self, name: HeadName, key_positions: np.ndarray | None) -> Head:
        """What an index may know of the head, before there are learn queries."""
        return Head(
            model=self.model,
            document=name.document,
            layer=name.layer,
            kv_head=name.kv_head,
            group=self.group,
            softmax_scale=1.0 if self.softmax_scale is None else self.softmax_scale,
            layer_kind=self.layer_kind,
            rope=self.rope,
            key_positions=key_positions,
        )

    def to_json(self, name: HeadName, kind: Kind) -> str:
        """The metadata of the file that holds `kind` of `name`."""
        about = asdict(self) | name._asdict() | {"schema_version": SCHEMA_VERSION, "kind": kind}
        if self.rope is not None:
            about["rope"]["inverse_frequencies"] = np.asarray(self.rope.inverse_frequencies).tolist()
        return json.dumps(about, sort_keys=True)

    @classmethod
    def from_json(cls, text: bytes) -> tuple[Self, dict[str, Any]]:
        """The metadata and all that the file says; raises KeyError, TypeError or ValueError where it lies."""
        about = json.loads(text)
        check_version(about["schema_version"])
        known = {f.name: about[f.name] for f in fields(cls)}
        if known["rope"] is not None:
            frequencies = np.array(known["rope"]["inverse_frequencies"], np.float32)
            known["rope"] = Rope(**known["rope"] | {"inverse_frequencies": frequencies})
        scale = known["softmax_scale"]
        if known["group"] < 1 or not (scale is None or np.isfinite(scale)):
            raise ValueError(f"group {known['group']!r}, softmax_scale {known['softmax_scale']!r}")
        return cls(**known), about


@dataclass(frozen=True)
class HeadVectors:
    """All vectors of one KV head.

    `keys` and `values` (n, d) are in the stored type, `key_positions` (n,) int32 rises; the decoded tokens
    are the last rows; values or positions are None where the data set has none. Queries (m, d) are float32
    and multiplied by the softmax scale; `*_query_positions` (m,) int32 (empty without positions) and
    `*_query_heads` (m,) int16 belong to their rows, `decode_steps` (m,) int32 counts from 0. Arrays are
    read-only. Where the dump has no such queries they are empty.
    """

    name: HeadName
    keys: np.ndarray
    values: np.ndarray | None
    key_positions: np.ndarray | None
    prefill_queries: np.ndarray
    prefill_query_positions: np.ndarray
    prefill_query_heads: np.ndarray
    decode_queries: np.ndarray
    decode_query_positions: np.ndarray
    decode_query_heads: np.ndarray
    decode_steps: np.ndarray
    about: Head
    metadata: HeadMetadata


@dataclass(frozen=True)
class Listed:
    """A file as the manifest has it."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class DataSet:
    """A finished dump: the heads it holds, in order, and what `dump` was asked for. Use `DataSet.open`."""

    path: Path
    heads: list[HeadName]
    settings: dict[str, Any]
    hash: str
    source: str  # where it can be opened again from any folder: its whole path, or its URL
    _files: dict[tuple[HeadName, Kind], Listed] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The dump in folder `path`, or at a URL that fsspec reads; its files are then fetched as needed.

        Raises UsageError where it is absent, unfinished or damaged.
        """
        url = str(path) if remote.is_url(str(path)) else ""
        folder = remote.local_folder(url) if url else Path(path)
        if not url and not folder.is_dir():
            raise UsageError(f"data set '{path}' must be a folder that `ra-bench dump` wrote: no such folder")
        try:
            manifest_file = remote.fetch(url, MANIFEST) if url else folder / MANIFEST
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"data set '{path}' is not a finished dump: it has no {MANIFEST}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"data set '{path}': {MANIFEST} cannot be read: {error}") from error
        try:
            check_version(manifest["schema_version"])
            listed = [Listed(**file) for file in manifest["files"]]
            settings = dict(manifest["settings"])
            places = {place_of(file.name): file for file in listed}
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"data set '{path}': {MANIFEST} is not a dump's manifest: {error}") from error
        for file in () if url else listed:
            check_size(folder / file.name, file)
        heads = sorted({name for name, kind in places if kind == "keys"})
        if not heads:
            raise UsageError(f"data set '{path}' holds no keys: {MANIFEST} lists {len(listed)} files")
        lines = sorted(f"{file.name} {file.sha256}\n" for file in listed)
        content = hashlib.sha256("".join(lines).encode()).hexdigest()
        return cls(folder, heads, settings, content, url or str(folder.resolve()), places)

    @property
    def name(self) -> str:
        """The last part of its path, for rows and folders."""
        return self.source.rstrip("/").rpartition("/")[2]

    @property
    def has_layers(self) -> bool:
        """Whether the names of heads tell their layer and KV head: what was imported may not know."""
        return bool(self.settings.get("has_layers", True))

    def select(
        self,
        documents: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        kv_heads: Sequence[int] | None = None,
    ) -> list[HeadName]:
        """The heads in these documents, layers and KV heads (None: all); UsageError for an absent one."""
        return select_heads(self.path, self.heads, documents, layers, kv_heads)

    def load(self, name: HeadName | tuple[str, int, int], allocate: Allocate = np.empty) -> HeadVectors:
        """Reads and checks all vectors of one head; UsageError where a file is not what it should be.

        Vectors lie in arrays that `allocate` makes.
        """
        from ra_bench.head_file import HeadFiles

        name = HeadName(*name)
        if name not in self.heads:
            raise UsageError(f"data set '{self.path}' has no {name}; it has {_list(map(str, self.heads))}")
        listed = {kind: self._files[name, kind] for kind in KINDS if (name, kind) in self._files}
        for file in listed.values():
            self._fetch(file)
        return HeadFiles(self.path, name, listed, allocate).load()

    def verify(self, progress: Callable[[str], None] = lambda _: None) -> list[str]:
        """Reads every file against its checksum and all rules; what was checked, a line each."""
        lines = []
        for name in self.heads:
            progress(str(name))
            head = self.load(name)
            queries = len(head.prefill_queries) + len(head.decode_queries)
            lines.append(f"{name}: {len(head.keys)} keys, {queries} queries: whole, finite, as their SHA-256")
        return lines

    def _fetch(self, listed: Listed) -> None:
        """Fetches a file of a data set at a URL, unless it is here and as large as it should be."""
        path = self.path / listed.name
        if remote.is_url(self.source) and not (path.is_file() and path.stat().st_size == listed.bytes):
            try:
                remote.fetch(self.source, listed.name)
            except FileNotFoundError:
                raise UsageError(f"data set '{self.source}': {listed.name} is missing") from None


def file_name(name: HeadName, kind: Kind) -> str:
    """The name of the file that holds `kind` of head `name`."""
    return f"{name.document}_layer{name.layer}_head{name.kv_head}_{kind}.parquet"


def is_dump_file(file: str) -> bool:
    """Whether `file` is named as a dump names its Parquet files."""
    return _FILE_NAME.fullmatch(file) is not None


def fingerprint(path: Path) -> dict[str, Any]:
    """The size in bytes and the SHA-256 of a file, as the manifest keeps them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def place_of(file: str) -> tuple[HeadName, Kind]:
    """The head and kind in a file's name. The pattern also keeps a manifest from naming files elsewhere."""
    match = _FILE_NAME.fullmatch(file)
    if match is None:
        raise ValueError(f"{file!r} is not the name of a dump's file")
    document, layer, kv_head, kind = match.groups()
    return HeadName(document, int(layer), int(kv_head)), kind  # type: ignore[return-value]


def check_size(path: Path, listed: Listed) -> None:
    """Raises UsageError where a file is not there or not whole."""
    if not path.is_file():
        raise UsageError(f"{path} is missing: {MANIFEST} lists it")
    size_bytes = path.stat().st_size
    if size_bytes != listed.bytes:
        raise UsageError(f"{path} holds {size_bytes} bytes, {MANIFEST} lists {listed.bytes}: not whole")


def check_version(version: object) -> None:
    """Raises ValueError for a schema version that is not known."""
    if version not in READABLE_VERSIONS:
        raise ValueError(f"schema version {version!r}, this ra-bench reads {_list(READABLE_VERSIONS)}")


def scaled(queries: np.ndarray, softmax_scale: float | None, allocate: Allocate = np.empty) -> np.ndarray:
    """`queries` as an index gets them: float32, multiplied by the softmax scale, read-only."""
    scaled = allocate(queries.shape, np.dtype(np.float32))
    factor = np.float32(1.0 if softmax_scale is None else softmax_scale)
    for start in range(0, len(queries), 1 << 16):
        block = slice(start, start + (1 << 16))
        scaled[block] = queries[block]
        scaled[block] *= factor
    scaled.flags.writeable = False
    return scaled


def select_heads(
    path: Path,
    heads: Sequence[HeadName],
    documents: Sequence[str] | None,
    layers: Sequence[int] | None,
    kv_heads: Sequence[int] | None,
) -> list[HeadName]:
    """Those of `heads` in these documents, layers and KV heads (None: all); UsageError for an absent one."""
    chosen = list(heads)
    for part, wanted in (("document", documents), ("layer", layers), ("kv_head", kv_heads)):
        if wanted is None:
            continue
        present = sorted({getattr(head, part) for head in chosen})
        if absent := [item for item in wanted if item not in present]:
            raise UsageError(f"data set '{path}' has no {part} {absent[0]}; it has {_list(present)}")
        chosen = [head for head in chosen if getattr(head, part) in wanted]
    return chosen


def _list(items: Iterable[Any], most: int = 16) -> str:
    """Names for an error message, in full while they are few."""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
