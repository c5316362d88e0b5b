"""The dump's files: what is written is read back, and nothing damaged is taken for whole."""

import contextlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ra_bench.errors import RunError, UsageError
from ra_bench.head import Rope
from ra_bench.head_file import METADATA_KEY
from ra_bench.vectors import (
    KINDS,
    MANIFEST,
    DataSet,
    HeadMetadata,
    HeadName,
    file_name,
    fingerprint,
)
from ra_bench.writer import DumpWriter

N, D, G, STEPS, SCALE = 40, 8, 3, 5, 0.25
HEAD = HeadName("doc000", 2, 1)


def metadata(**changes):
    about = {
        "model": "tiny",
        "revision": "main",
        "group": G,
        "softmax_scale": SCALE,
        "layer_kind": "sliding_attention",
        "window": 16,
        "rope": Rope(np.array([1.0, 0.1, 0.003], np.float32), 6, "interleaved", "yarn", 1.25),
        "rope_note": "",
        "context_tokens": N,
        "token_hash": "0" * 64,
        "prompt": "a test",
        "random_weights": True,
        "versions": {"ra_bench": "0"},
    }
    return HeadMetadata(**about | changes)


def rows(count, seed):
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)


def write_head(dump, name, about=None, kinds=KINDS):
    """One head as `dump` writes it: the prefill in one block, then a token a time."""
    about = about or metadata()
    heads = name.kv_head * G + np.arange(G)
    for kind in kinds:
        file = dump.open(name, kind, D, about)
        if kind == "prefill_queries":
            positions = np.repeat(np.arange(0, N, 4), G)
            file.append(rows(len(positions), 3), positions, np.tile(heads, N // 4))
        elif kind == "decode_queries":
            for step in range(STEPS):
                file.append(rows(G, 100 + step), np.full(G, N + step), heads, np.full(G, step))
        elif kind.startswith("decoded"):
            for step in range(STEPS):
                file.append(rows(1, 200 + step), np.array([N + step]))
        else:
            file.append(rows(N, KINDS.index(kind)), np.arange(N))


def write(folder, names=(HEAD,), dtype="float16", **kwargs):
    with DumpWriter(folder, dtype) as dump:
        for name in names:
            write_head(dump, name, **kwargs)
        dump.finish({"context": N})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "dump")


def relist(folder, name):
    """Makes the manifest agree with a file that a test changed, so that later checks are reached."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for file in manifest["files"]:
        if file["name"] == name:
            file.update(fingerprint(folder / name))
    (folder / MANIFEST).write_text(json.dumps(manifest))


def rewrite(folder, kind, change):
    """Replaces a head's file by what `change` makes of its table."""
    name = file_name(HEAD, kind)
    pq.write_table(change(pq.read_table(folder / name)), folder / name)
    relist(folder, name)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_round_trip(tmp_path, dtype):
    data = DataSet.open(write(tmp_path / "dump", dtype=dtype))
    assert data.heads == [HEAD]
    assert data.settings == {"context": N}
    head = data.load(data.heads[0])
    decoded = np.concatenate([rows(1, 200 + step) for step in range(STEPS)])
    assert head.keys.dtype == head.values.dtype == dtype
    np.testing.assert_array_equal(head.keys, np.concatenate([rows(N, 0), decoded]).astype(dtype))
    np.testing.assert_array_equal(head.values, np.concatenate([rows(N, 1), decoded]).astype(dtype))
    np.testing.assert_array_equal(head.key_positions, np.arange(N + STEPS))
    assert head.prefill_queries.dtype == head.decode_queries.dtype == np.float32
    stored = rows(N // 4 * G, 3).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(head.prefill_queries, stored * np.float32(SCALE))
    np.testing.assert_array_equal(head.prefill_query_positions, np.repeat(np.arange(0, N, 4), G))
    np.testing.assert_array_equal(head.prefill_query_heads[: 2 * G], [3, 4, 5, 3, 4, 5])
    stored = np.concatenate([rows(G, 100 + step) for step in range(STEPS)]).astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(head.decode_queries, stored * np.float32(SCALE))
    np.testing.assert_array_equal(head.decode_steps, np.repeat(np.arange(STEPS), G))
    np.testing.assert_array_equal(head.decode_query_positions, N + np.repeat(np.arange(STEPS), G))


def test_metadata_and_rope_come_back_whole(folder):
    head = DataSet.open(folder).load(HEAD)
    expected = metadata()
    np.testing.assert_array_equal(head.about.rope.inverse_frequencies, expected.rope.inverse_frequencies)
    assert head.about.rope.inverse_frequencies.dtype == np.float32
    assert (head.about.rope.layout, head.about.rope.attention_factor) == ("interleaved", 1.25)
    assert (head.metadata.window, head.about.layer_kind) == (16, "sliding_attention")
    assert (head.about.group, head.about.softmax_scale, head.about.name) == (G, SCALE, "doc000/layer2/head1")
    assert head.metadata.versions == {"ra_bench": "0"}
    assert len(head.about.key_positions) == N + STEPS


def test_arrays_are_read_only(folder):
    head = DataSet.open(folder).load(HEAD)
    for array in (head.keys, head.values, head.prefill_queries):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_several_documents_are_one_data_set(tmp_path):
    names = [HeadName(f"doc{i:03}", layer, 1) for i in (1, 0) for layer in (10, 2)]
    data = DataSet.open(write(tmp_path / "dump", names))
    assert data.heads == sorted(names)
    assert data.select(documents=["doc001"], layers=[2]) == [("doc001", 2, 1)]
    assert [data.load(head).about.document for head in data.heads] == ["doc000"] * 2 + ["doc001"] * 2


def test_a_dump_without_decode_queries_has_none(tmp_path):
    head = DataSet.open(write(tmp_path / "d", kinds=KINDS[:3])).load(HEAD)
    assert head.decode_queries.shape == (0, D)
    assert len(head.decode_steps) == len(head.decode_query_heads) == 0


def test_the_hash_names_the_content(tmp_path, folder):
    same = DataSet.open(write(tmp_path / "same"))
    assert same.hash == DataSet.open(folder).hash
    other = write(tmp_path / "other", about=metadata(model="another"))
    assert same.hash != DataSet.open(other).hash


def test_rope_none_keeps_its_reason(tmp_path):
    about = metadata(rope=None, rope_note="no layout fits", window=None)
    head = DataSet.open(write(tmp_path / "d", about=about)).load(HEAD)
    assert head.about.rope is None
    assert head.metadata.rope_note == "no layout fits"


def test_an_absent_head_is_named_with_those_present(folder):
    data = DataSet.open(folder)
    with pytest.raises(UsageError, match="no layer 7; it has 2"):
        data.select(layers=[2, 7])
    with pytest.raises(UsageError, match="no kv_head 0; it has 1"):
        data.select(kv_heads=[0])
    with pytest.raises(UsageError, match="no doc000/layer7/head1; it has doc000/layer2/head1"):
        data.load(("doc000", 7, 1))


def test_a_path_that_is_no_dump_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        DataSet.open(tmp_path / "absent")
    with pytest.raises(UsageError, match="not a finished dump"):
        DataSet.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 99}', "\x00"])
def test_a_foreign_manifest_is_refused(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(UsageError, match=r"dump\.json"):
        DataSet.open(folder)


@pytest.mark.parametrize(
    "name", ["../secret.parquet", "/etc/passwd", "doc000_layer2_head1_keys.parquet/../x"]
)
def test_a_manifest_cannot_name_files_elsewhere(folder, name):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["name"] = name
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="not the name of a dump's file"):
        DataSet.open(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_file_is_named(folder, kind):
    (folder / file_name(HEAD, kind)).unlink()
    with pytest.raises(UsageError, match=rf"{kind}.parquet is missing"):
        DataSet.open(folder)


def test_a_file_cut_anywhere_is_refused_by_its_size(folder):
    path = folder / file_name(HEAD, "keys")
    whole = path.read_bytes()
    for size in np.random.default_rng(0).integers(0, len(whole), 30):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="not whole"):
            DataSet.open(folder)


def test_a_cut_file_that_the_manifest_agrees_with_never_crashes(folder):
    rng = np.random.default_rng(1)
    path = folder / file_name(HEAD, "prefill_queries")
    whole = path.read_bytes()
    for size in rng.integers(0, len(whole), 40):
        path.write_bytes(whole[:size])
        relist(folder, path.name)
        with pytest.raises(UsageError, match="is not a file of a dump") as error:
            DataSet.open(folder).load(HEAD)
        assert "\n" not in str(error.value)


def test_a_changed_byte_is_found_by_the_hash(folder):
    path = folder / file_name(HEAD, "values")
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    path.write_bytes(spoilt)
    with pytest.raises(UsageError, match="SHA-256 differs"):
        DataSet.open(folder).load(HEAD)


def with_metadata(table, **changes):
    about = json.loads(table.schema.metadata[METADATA_KEY]) | changes
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(about)})


def with_vector(table, element, change=lambda rows: rows):
    flat = change(table["vector"].combine_chunks().flatten().to_numpy().reshape(-1, D).copy())
    vector = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)).cast(element), D)
    return table.set_column(3, "vector", vector)


def spoilt(value):
    def change(rows):
        rows[4, 3] = value
        return rows

    return lambda table: with_vector(table, pa.float16(), change)


def reversed_rows(table):
    return table.take(np.arange(len(table))[::-1].copy())


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("keys", lambda table: table.replace_schema_metadata(None), "no ra_bench metadata"),
        (
            "keys",
            lambda table: with_metadata(table, schema_version=3),
            "schema version 3, this ra-bench reads 1, 2",
        ),
        ("keys", lambda table: with_metadata(table, layer=9), "its metadata speaks of"),
        ("keys", lambda table: with_metadata(table, group=0), "group 0"),
        ("keys", lambda table: with_metadata(table, rope={"layout": "half"}), "not a file of a dump"),
        ("keys", lambda table: with_vector(table, pa.float64()), "float16 or float32"),
        ("keys", lambda table: table.drop_columns(["vector"]), "float16 or float32"),
        ("keys", lambda table: table.drop_columns(["step"]), "columns beside vector"),
        (
            "keys",
            lambda table: table.set_column(0, "position", table["position"].cast("int64")),
            "columns beside",
        ),
        ("keys", lambda table: table.slice(1), "rows, dump.json lists"),
        ("keys", reversed_rows, "and values .* must agree"),
        ("keys", spoilt(np.nan), "not finite"),
        ("decode_queries", spoilt(np.inf), "not finite"),
        ("prefill_queries", reversed_rows, "ordered by token"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(folder, kind, change, message):
    rewrite(folder, kind, change)
    with pytest.raises(UsageError, match=message) as error:
        DataSet.open(folder).load(HEAD)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1e6, np.nan, -np.inf])
def test_a_vector_that_float16_cannot_hold_is_refused_and_leaves_nothing(tmp_path, value):
    vectors = rows(4, 0)
    vectors[2, 2] = value
    with (
        pytest.raises(RunError, match="not finite as float16; dump as float32"),
        DumpWriter(tmp_path / "d") as dump,
    ):
        dump.open(HeadName("doc000", 0, 0), "keys", D, metadata()).append(vectors, np.arange(4))
    assert not (tmp_path / "d").exists()


def test_an_unfinished_dump_leaves_its_folder_as_it_was(tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("mine")
    dump = DumpWriter(tmp_path)
    with contextlib.suppress(KeyboardInterrupt), dump:
        write_head(dump, HeadName("doc000", 0, 0))
        dump.open(HeadName("doc000", 0, 1), "keys", D, metadata()).close()
        assert len(list(tmp_path.iterdir())) == 2 + len(KINDS)
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_version_1_kept_decoded_keys_with_the_others_and_is_read(tmp_path):
    split = DataSet.open(write(tmp_path / "d")).load(HEAD)
    with DumpWriter(tmp_path / "one") as dump:
        for kind in ("keys", "values"):
            dump.open(HEAD, kind, D, metadata()).append(getattr(split, kind), split.key_positions)
        dump.finish({})
    whole = DataSet.open(tmp_path / "one").load(HEAD)
    np.testing.assert_array_equal(whole.keys, split.keys)
    np.testing.assert_array_equal(whole.key_positions, split.key_positions)


def test_values_positions_and_scale_may_be_absent_and_are_never_invented(tmp_path):
    with DumpWriter(tmp_path / "d", "float32") as dump:
        about = metadata(softmax_scale=None, group=1)
        dump.open(HEAD, "keys", D, about).append(rows(N, 0), None)
        dump.open(HEAD, "decode_queries", D, about).append(rows(5, 1), None, np.ones(5), np.arange(5))
        dump.finish({})
    head = DataSet.open(tmp_path / "d").load(HEAD)
    assert head.values is None
    assert head.key_positions is None
    assert len(head.decode_query_positions) == 0
    np.testing.assert_array_equal(head.decode_queries, rows(5, 1))


def test_vectors_lie_where_the_caller_wants_them(folder):
    made = []

    def allocate(shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    head = DataSet.open(folder).load(HEAD, allocate)
    assert any(head.keys is array for array in made)
    assert any(head.prefill_queries is array for array in made)


def test_a_footer_that_speaks_of_too_many_rows_is_refused(folder, monkeypatch):
    def no_room(shape, dtype):
        raise MemoryError("Unable to allocate 1.0 TiB")

    with pytest.raises(UsageError, match="is not a file of a dump: Unable to allocate"):
        DataSet.open(folder).load(HEAD, no_room)


def test_a_dump_can_be_moved(tmp_path, folder):
    moved = shutil.move(folder, tmp_path / "elsewhere")
    DataSet.open(moved).load(HEAD)


def test_closed_files_of_an_open_dump_hold_no_memory(tmp_path):
    vectors = np.ones((20_000, 64), np.float16)
    with DumpWriter(tmp_path / "d") as dump:
        before = pa.total_allocated_bytes()
        for kv_head in range(4):
            file = dump.open(HeadName("doc000", 0, kv_head), "keys", 64, metadata())
            file.append(vectors, np.arange(len(vectors)))
            dump.close(file)
        assert pa.total_allocated_bytes() - before < vectors.nbytes


def test_a_disk_that_fills_up_as_a_file_is_closed_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ra_bench.writer._HashedFile.sync", full)
    with DumpWriter(tmp_path / "d") as dump:
        files = [dump.open(HeadName("doc000", 0, kv_head), "keys", D, metadata()) for kv_head in range(2)]
        files[0].append(rows(N, 0), np.arange(N))
        with pytest.raises(OSError, match="No space"):
            dump.close(files[0])
    assert not (tmp_path / "d").exists()
