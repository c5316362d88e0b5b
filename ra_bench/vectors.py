"""The dump: real keys, values and queries of attention heads, as a folder of Parquet files.

    data = DataSet.open("dump/")           # checks that the dump is whole; reads no vectors
    data.heads                             # [HeadName("doc000", 12, 0), ...]
    data.select(layers=[12])               # those of them; an absent layer or head is an error
    head = data.load(data.heads[0])        # HeadVectors: keys, values, queries, and `about`, a Head
    data.hash                              # names the content, for result rows

One file a document, layer, KV head and kind (`doc000_layer12_head0_keys.parquet`), zstd, with the columns
`position` int32, `query_head` int16 (null for keys and values), `step` int32 (null for the prefill) and
`vector` fixed_size_list<float16 | float32>[d]. Keys and values hold one row a token, decoded tokens included.
Query rows are ordered by token, then by query head: blocks of G, one block a token. Files hold queries as the
model made them; `load` gives them multiplied by the softmax scale, so that q·k is the attention logit.

What is known of the head is JSON in each file's metadata (`HeadMetadata`). The manifest `dump.json` lists the
files with their sizes and hashes and is written last: a folder without it is not a finished dump. What writes
all this is `ra_bench.writer`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ra_bench import remote
from ra_bench.errors import UsageError
from ra_bench.head import Head, Rope
from ra_bench.index import all_finite

SCHEMA_VERSION = 1
MANIFEST = "dump.json"
METADATA_KEY = b"ra_bench"

Kind = Literal["keys", "values", "prefill_queries", "decode_queries"]
KINDS: tuple[Kind, ...] = ("keys", "values", "prefill_queries", "decode_queries")

_FILE_NAME = re.compile(rf"(doc\d{{3,}})_layer(\d+)_head(\d+)_({'|'.join(KINDS)})\.parquet")
ARROW_TYPES = {np.dtype(np.float16): pa.float16(), np.dtype(np.float32): pa.float32()}
COLUMN_TYPES = {"position": pa.int32(), "query_head": pa.int16(), "step": pa.int32()}


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

    `rope` is None where the rotation is unknown or there is none; `rope_note` then tells why. `window` is
    that of a sliding layer, in tokens. `token_hash` is the SHA-256 of the document's token ids, int64
    little-endian: the prompt's only. `prompt` tells where the text came from.
    """

    model: str
    revision: str
    group: int
    softmax_scale: float
    layer_kind: str
    window: int | None
    rope: Rope | None
    rope_note: str
    context_tokens: int
    token_hash: str
    prompt: str
    random_weights: bool
    versions: dict[str, str]

    def head(self, name: HeadName, key_positions: np.ndarray) -> Head:
        """What an index may know of the head, before there are learn queries."""
        return Head(
            model=self.model,
            document=name.document,
            layer=name.layer,
            kv_head=name.kv_head,
            group=self.group,
            softmax_scale=self.softmax_scale,
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
        if about["schema_version"] != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {about['schema_version']!r}, this ra-bench reads {SCHEMA_VERSION}"
            )
        known = {f.name: about[f.name] for f in fields(cls)}
        if known["rope"] is not None:
            frequencies = np.array(known["rope"]["inverse_frequencies"], np.float32)
            known["rope"] = Rope(**known["rope"] | {"inverse_frequencies": frequencies})
        if known["group"] < 1 or not np.isfinite(known["softmax_scale"]):
            raise ValueError(f"group {known['group']!r}, softmax_scale {known['softmax_scale']!r}")
        return cls(**known), about


@dataclass(frozen=True)
class HeadVectors:
    """All vectors of one KV head.

    `keys` and `values` (n, d) are in the stored type, `key_positions` (n,) int32 rises; the decoded tokens
    are the last rows. Queries (m, d) are float32 and multiplied by the softmax scale; `*_query_positions`
    (m,) int32 and `*_query_heads` (m,) int16 belong to their rows, `decode_steps` (m,) int32 counts from 0.
    Arrays are read-only. Where the dump has no such queries they are empty.
    """

    name: HeadName
    keys: np.ndarray
    values: np.ndarray
    key_positions: np.ndarray
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
class _Listed:
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
    _files: dict[tuple[HeadName, Kind], _Listed] = field(repr=False)

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
            if manifest["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {manifest['schema_version']!r}, not {SCHEMA_VERSION}")
            listed = [_Listed(**file) for file in manifest["files"]]
            settings = dict(manifest["settings"])
            places = {_place(file.name): file for file in listed}
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"data set '{path}': {MANIFEST} is not a dump's manifest: {error}") from error
        for file in () if url else listed:
            _check_size(folder / file.name, file)
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

    def select(
        self,
        documents: Sequence[str] | None = None,
        layers: Sequence[int] | None = None,
        kv_heads: Sequence[int] | None = None,
    ) -> list[HeadName]:
        """The heads in these documents, layers and KV heads (None: all); UsageError for an absent one."""
        chosen = self.heads
        for part, wanted in (("document", documents), ("layer", layers), ("kv_head", kv_heads)):
            if wanted is None:
                continue
            present = sorted({getattr(head, part) for head in chosen})
            if absent := [item for item in wanted if item not in present]:
                raise UsageError(f"data set '{self.path}' has no {part} {absent[0]}; it has {_list(present)}")
            chosen = [head for head in chosen if getattr(head, part) in wanted]
        return chosen

    def load(self, name: HeadName | tuple[str, int, int]) -> HeadVectors:
        """Reads and checks all vectors of one head; UsageError where a file is not what it should be."""
        name = HeadName(*name)
        if name not in self.heads:
            raise UsageError(f"data set '{self.path}' has no {name}; it has {_list(map(str, self.heads))}")
        read = {kind: self._read(name, kind) for kind in KINDS if (name, kind) in self._files}
        for kind in ("keys", "values"):
            if kind not in read:
                raise UsageError(f"data set '{self.path}' has no {kind} of {name}")
        keys, values = read["keys"], read["values"]
        nothing = np.empty(0, np.int32)
        empty = _Rows(keys.vectors[:0], nothing, nothing.astype(np.int16), nothing, keys.metadata)
        prefill, decode = read.get("prefill_queries", empty), read.get("decode_queries", empty)
        metadata = keys.metadata
        where = f"data set '{self.path}', {name}"
        if keys.vectors.shape != values.vectors.shape or not np.array_equal(keys.positions, values.positions):
            raise UsageError(
                f"{where}: keys {keys.vectors.shape} and values {values.vectors.shape} must agree"
            )
        if (np.diff(keys.positions) <= 0).any():
            raise UsageError(f"{where}: key positions must rise")
        for rows in (prefill, decode):
            _check_queries(where, rows, keys.vectors.shape[1], name.kv_head, metadata.group)
        return HeadVectors(
            name=name,
            keys=keys.vectors,
            values=values.vectors,
            key_positions=keys.positions,
            prefill_queries=scaled(prefill.vectors, metadata.softmax_scale),
            prefill_query_positions=prefill.positions,
            prefill_query_heads=prefill.query_heads,
            decode_queries=scaled(decode.vectors, metadata.softmax_scale),
            decode_query_positions=decode.positions,
            decode_query_heads=decode.query_heads,
            decode_steps=decode.steps,
            about=metadata.head(name, keys.positions),
            metadata=metadata,
        )

    def _read(self, name: HeadName, kind: Kind) -> _Rows:
        listed = self._files[name, kind]
        path = self.path / listed.name
        if remote.is_url(self.source) and not (path.is_file() and path.stat().st_size == listed.bytes):
            try:
                remote.fetch(self.source, listed.name)
            except FileNotFoundError:
                raise UsageError(f"data set '{self.source}': {listed.name} is missing") from None
        _check_size(path, listed)
        if fingerprint(path)["sha256"] != listed.sha256:
            raise UsageError(f"{path} is not the file that {MANIFEST} lists: its SHA-256 differs")
        try:
            rows = _read_rows(path)
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not a file of a dump: {_one_line(error)}") from error
        if len(rows.vectors) != listed.rows:
            raise UsageError(f"{path} holds {len(rows.vectors)} rows, {MANIFEST} lists {listed.rows}")
        if not all_finite(rows.vectors):
            raise UsageError(f"{path} holds a vector that is not finite")
        return rows


class _Rows(NamedTuple):
    """One file's columns; `query_heads` and `steps` are empty where they are null."""

    vectors: np.ndarray
    positions: np.ndarray
    query_heads: np.ndarray
    steps: np.ndarray
    metadata: HeadMetadata


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


def _place(file: str) -> tuple[HeadName, Kind]:
    """The head and kind in a file's name. The pattern also keeps a manifest from naming files elsewhere."""
    match = _FILE_NAME.fullmatch(file)
    if match is None:
        raise ValueError(f"{file!r} is not the name of a dump's file")
    document, layer, kv_head, kind = match.groups()
    return HeadName(document, int(layer), int(kv_head)), kind  # type: ignore[return-value]


def _check_size(path: Path, listed: _Listed) -> None:
    if not path.is_file():
        raise UsageError(f"{path} is missing: {MANIFEST} lists it")
    size_bytes = path.stat().st_size
    if size_bytes != listed.bytes:
        raise UsageError(f"{path} holds {size_bytes} bytes, {MANIFEST} lists {listed.bytes}: not whole")


def _read_rows(path: Path) -> _Rows:
    place = _place(path.name)
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        text = (schema.metadata or {}).get(METADATA_KEY)
        if text is None:
            raise ValueError("it has no ra_bench metadata")
        metadata, about = HeadMetadata.from_json(text)
        if (HeadName(about["document"], about["layer"], about["kv_head"]), about["kind"]) != place:
            raise ValueError(f"its metadata speaks of {about['kind']} of {about['document']}")
        _check_types(schema)
        table = file.read()
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    vectors = columns["vector"]
    empty = {"keys": ("query_head", "step"), "values": ("query_head", "step"), "prefill_queries": ("step",)}
    for name, column in columns.items():
        expected = len(column) if name in empty.get(place[1], ()) else 0
        if column.null_count != expected:
            raise ValueError(f"column {name} must have {expected} empty cells, it has {column.null_count}")
    flat = vectors.flatten()
    if flat.null_count:
        raise ValueError("column vector has empty cells")
    rows = flat.to_numpy(zero_copy_only=True).reshape(len(vectors), vectors.type.list_size)

    def numbers(name: str) -> np.ndarray:
        return columns[name].drop_null().to_numpy(zero_copy_only=True)

    return _Rows(rows, numbers("position"), numbers("query_head"), numbers("step"), metadata)


def _check_types(schema: pa.Schema) -> None:
    found = {name: schema.field(name).type for name in schema.names}
    vector = found.pop("vector", None)
    if found != COLUMN_TYPES:
        raise ValueError(f"its columns beside vector must be {_types(COLUMN_TYPES)}, not {_types(found)}")
    whole = vector is not None and pa.types.is_fixed_size_list(vector) and vector.list_size > 0
    if not whole or vector.value_type not in ARROW_TYPES.values():
        raise ValueError(f"column vector must be fixed_size_list<float16 or float32>, not {vector}")


def _check_queries(where: str, rows: _Rows, dim: int, kv_head: int, group: int) -> None:
    if rows.vectors.shape[1] != dim:
        raise UsageError(f"{where}: queries have {rows.vectors.shape[1]} dimensions, keys {dim}")
    if len(rows.vectors) % group:
        raise UsageError(f"{where}: queries must come in blocks of {group}, there are {len(rows.vectors)}")
    heads = rows.query_heads.reshape(-1, group)
    positions = rows.positions.reshape(-1, group)
    in_order = (heads == kv_head * group + np.arange(group)).all() and (np.diff(positions[:, 0]) > 0).all()
    if not in_order or (positions != positions[:, :1]).any():
        raise UsageError(f"{where}: query rows must be ordered by token, then by query head")


def scaled(queries: np.ndarray, softmax_scale: float) -> np.ndarray:
    """`queries` as an index gets them: float32, multiplied by the softmax scale, read-only."""
    scaled = queries.astype(np.float32)
    scaled *= np.float32(softmax_scale)
    scaled.flags.writeable = False
    return scaled


def _types(columns: dict[str, Any]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items()) or "none"


def _list(items: Iterable[Any], most: int = 16) -> str:
    """Names for an error message, in full while they are few."""
    names = [str(item) for item in items]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
