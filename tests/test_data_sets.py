"""Every family of data sets is read as heads; what it lacks stays empty, what lies is refused in one line."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ra_bench.compare import Settings, make_plan, run_plan
from ra_bench.data import families, known, open_data
from ra_bench.data_import import import_into
from ra_bench.data_info import describe, difficulty_file
from ra_bench.errors import UsageError
from ra_bench.results import ResultFolder
from ra_bench.split import divide
from ra_bench.vectors import DataSet

h5py = pytest.importorskip("h5py")  # the extra `data`

N, D, M, L = 3000, 16, 50, 600


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(count, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(0.3, 1.0, (count, D)).astype(dtype)


def neighbors_by(keys, queries, distance, k=10):
    keys, queries = keys.astype(np.float64), queries.astype(np.float64)
    if distance == "euclidean":
        far = ((queries[:, None] - keys[None]) ** 2).sum(axis=2)
    else:
        far = -(queries @ (keys / (np.linalg.norm(keys, axis=1)[:, None] if distance == "angular" else 1)).T)
    return np.argsort(far, axis=1)[:, :k]


def write_hdf5(path, distance="ip", learn=True, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    keys, test = rows(N, 0), rows(M, 1)
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = distance
        file["train"], file["test"] = keys, test
        file["neighbors"] = neighbors_by(keys, test, distance)
        if learn:
            file["learn"] = rows(L, 2)
        for name, value in more.items():
            if name in file:
                del file[name]
            file[name] = value
    return path


def write_bin(path, array):
    path.write_bytes(struct.pack("<II", *array.shape) + array.tobytes())


def write_big_ann(folder, dtype=np.float32, suffix="fbin"):
    folder.mkdir()
    scale = 1 if dtype == np.float32 else 40
    keys, test = ((rows(count, seed) * scale).astype(dtype) for count, seed in ((N, 0), (M, 1)))
    write_bin(folder / f"base.3K.{suffix}", keys)
    write_bin(folder / f"query.public.{suffix}", test)
    write_bin(folder / f"query.learn.{suffix}", (rows(L, 2) * scale).astype(dtype))
    write_bin(folder / "groundtruth.ibin", neighbors_by(keys, test, "ip").astype(np.uint32))
    return folder


def write_numpy(folder, **arrays):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_hdf5_is_read_with_its_learn_queries_and_its_truth_is_checked(tmp_path):
    data = open_data(write_hdf5(tmp_path / "made.hdf5"))
    head = data.load(data.heads[0])

    np.testing.assert_array_equal(head.keys, rows(N, 0))
    np.testing.assert_array_equal(head.decode_queries, rows(M, 1))
    np.testing.assert_array_equal(head.prefill_queries, rows(L, 2))
    assert head.values is None
    assert head.key_positions is None
    assert head.metadata.softmax_scale is None
    assert any("are the exact top-10 of 50 test queries" in line for line in data.verify())


@pytest.mark.parametrize("distance", ["ip", "angular", "euclidean"])
def test_inner_product_orders_keys_as_the_data_sets_own_distance_does(tmp_path, distance):
    data = open_data(write_hdf5(tmp_path / "made.hdf5", distance))
    head = data.load(data.heads[0])

    found = np.argsort(-(head.decode_queries.astype(np.float64) @ head.keys.astype(np.float64).T), axis=1)[
        :, :10
    ]

    np.testing.assert_array_equal(found, neighbors_by(rows(N, 0), rows(M, 1), distance))


def test_wrong_neighbors_are_found_by_verify(tmp_path):
    data = open_data(write_hdf5(tmp_path / "made.hdf5", neighbors=np.tile(np.arange(10), (M, 1))))
    with pytest.raises(UsageError, match=r"its neighbors are 0\.0.. of the exact top-10"):
        data.verify()


def test_a_vibe_head_has_a_softmax_scale_and_no_layer_of_its_own(tmp_path):
    data = open_data(write_hdf5(tmp_path / "llama-128-ip.hdf5"))
    head = data.load(data.heads[0])

    assert head.metadata.softmax_scale == 128**-0.5
    np.testing.assert_allclose(head.decode_queries, rows(M, 1) * 128**-0.5, rtol=1e-6)
    assert not data.has_layers


@pytest.mark.parametrize(("dtype", "suffix"), [(np.float32, "fbin"), (np.uint8, "u8bin"), (np.int8, "i8bin")])
def test_big_ann_files_are_read_exactly(tmp_path, dtype, suffix):
    data = open_data(write_big_ann(tmp_path / "set", dtype, suffix))
    head = data.load(data.heads[0])

    scale = 1 if dtype == np.float32 else 40
    np.testing.assert_array_equal(head.keys.astype(np.float32), (rows(N, 0) * scale).astype(dtype))
    assert head.keys.dtype == (np.float32 if dtype == np.float32 else np.float16)
    assert len(head.prefill_queries) == L
    assert any("exact top-10" in line for line in data.verify())


def test_keys_of_a_binary_file_stay_in_it(tmp_path):
    data = open_data(write_big_ann(tmp_path / "set"))

    keys = data.load(data.heads[0]).keys

    assert not keys.flags.owndata
    assert not keys.flags.writeable


def test_a_numpy_folder_of_heads_is_split_in_the_order_of_its_rows(tmp_path):
    keys, queries = rows(N, 0, np.float16), rows(N, 1, np.float16)
    folder = write_numpy(tmp_path / "heads", K_12_3=keys, Q_12_3=queries, K_13_0=keys, Q_13_0=queries)
    (folder / "about.json").write_text(json.dumps({"softmax_scale": 0.25}))
    data = open_data(folder)

    head = data.load(data.heads[0])

    assert [(name.layer, name.kv_head) for name in data.heads] == [(12, 3), (13, 0)]
    np.testing.assert_array_equal(head.decode_queries, queries[2700:].astype(np.float32) * 0.25)
    np.testing.assert_array_equal(head.prefill_queries, queries[: 2700 - 1024].astype(np.float32) * 0.25)
    assert len(divide(head).test.vectors) == 300


def test_an_import_is_the_same_head_as_a_dump(tmp_path):
    source = open_data(write_hdf5(tmp_path / "llama-128-ip.hdf5"))
    made = import_into(source, tmp_path / "dump")

    before, after = source.load(source.heads[0]), made.load(made.heads[0])

    assert isinstance(open_data(tmp_path / "dump"), DataSet)
    assert after.values is None
    assert after.key_positions is None
    assert not made.has_layers
    for part in ("keys", "prefill_queries", "decode_queries"):
        np.testing.assert_allclose(getattr(after, part), getattr(before, part), rtol=1e-6)
    with pytest.raises(UsageError, match="is a dump already"):
        import_into(made, tmp_path / "again")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared")
    found = {}
    for name, options in {"made": {"learn": False}, "llama-128-ip": {}}.items():
        plan = make_plan(
            Settings(
                ("ra:learn_queries=512", "ivf"),
                str(write_hdf5(folder / f"{name}.hdf5", **options)),
                (10,),
                repeats=1,
            )
        )
        found[name] = run_plan(plan, ResultFolder(folder / f"rows-{name}", plan.identity), Quiet())
    return found


class Quiet:
    def start(self, name):
        pass

    def end(self, name, status, reason):
        assert status == "ok", (name, reason)


def test_compare_takes_a_foreign_set_and_leaves_what_it_lacks_empty(compared):
    row = next(row for row in compared["made"] if row["index"] == "flat")

    assert row["recall"] == 1.0
    assert row["search_p50_us"] > 0
    assert row["n"] == N
    for column in (
        "mass_total",
        "mass_of_indexed",
        "output_error",
        "attend_p50_us",
        "layer",
        "kv_head",
        "static_mass",
    ):
        assert row[column] is None, column
    assert row["difficulty_effective_keys"] is None
    assert row["difficulty_norm_cv"] > 0


def test_attention_without_values_and_positions_still_has_the_mass_of_its_index(compared):
    row = next(row for row in compared["llama-128-ip"] if row["index"] == "flat")

    assert 0 < row["mass_of_indexed"] < 1
    assert row["mass_total"] is None
    assert row["output_error"] is None
    assert row["difficulty_effective_keys"] > 1


def test_ra_without_learn_queries_learns_from_keys_and_the_row_says_so(compared):
    without = [row for row in compared["made"] if row["index"].startswith("ra:")]
    with_them = [row for row in compared["llama-128-ip"] if row["index"].startswith("ra:")]

    assert {(row["learn_source"], row["learn_queries"]) for row in without} == {("keys", 512)}
    assert {(row["learn_source"], row["learn_queries"]) for row in with_them} == {("queries", 512)}
    assert max(row["recall"] for row in without) > 0.9
    assert {row["learn_source"] for row in compared["made"] if row["index"] == "ivf"} == {None}


def test_info_is_measured_once_and_kept_beside_the_data(tmp_path):
    data = open_data(write_hdf5(tmp_path / "llama-128-ip.hdf5"))
    seen = []
    first = describe(data, data.heads, seen.append)
    again = describe(data, data.heads, seen.append)

    assert first == again
    assert len(seen) == 1
    assert difficulty_file(data).exists()


def test_a_known_data_set_that_is_absent_says_where_to_get_it_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RA_BENCH_DATA", str(tmp_path / "there"))
    with pytest.raises(
        UsageError, match=r"get it from https://.*yi-128-ip.hdf5 and put it at .*there/vibe/yi-128-ip.hdf5"
    ):
        open_data("yi-128-ip")
    write_hdf5(tmp_path / "there" / "vibe" / "yi-128-ip.hdf5")
    assert open_data("yi-128-ip").heads[0].document == "yi-128-ip"
    assert {"llama-128-ip", "yi-128-ip"} <= set(known())


def test_the_checksum_beside_a_file_is_kept_and_compared(tmp_path):
    path = write_hdf5(tmp_path / "made.hdf5")
    assert "now kept in made.hdf5.sha256" in open_data(path).verify()[0]
    assert "as made.hdf5.sha256 says" in open_data(path).verify()[0]
    (tmp_path / "made.hdf5.sha256").write_text("0" * 64 + "  made.hdf5\n")
    with pytest.raises(UsageError, match=r"is not the file that made\.hdf5\.sha256 names"):
        open_data(path).verify()


def test_dumps_are_asked_first_and_every_family_says_its_layout():
    assert families()[0].name == "dump"
    assert {family.name for family in families()} == {"dump", "vibe", "ann-benchmarks", "big-ann", "numpy"}
    assert all(family.layout for family in families())


# --- bad input ---------------------------------------------------------------------------------------------


def refusal(path):
    """The one line that opening and loading all heads of `path` ends in, or an empty string."""
    try:
        data = open_data(path)
        for name in data.heads:
            data.load(name)
    except UsageError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"train": np.full((9, D), np.nan, np.float32)}, "keys hold a vector that is not finite"),
        ({"test": rows(5, 0)[:, :3]}, "test queries have 3 dimensions, keys 16"),
        ({"train": np.zeros(5, np.float32)}, "train must be an array"),
        ({"train": np.zeros((0, 4), np.float32)}, "says that it is"),
        ({"train": np.array([[b"a"]])}, "train must be an array"),
    ],
)
def test_an_hdf5_file_of_another_shape_is_refused(tmp_path, more, message):
    assert message in refusal(write_hdf5(tmp_path / "made.hdf5", **more))


def test_an_hdf5_file_without_its_parts_is_refused(tmp_path):
    path = tmp_path / "made.hdf5"
    with h5py.File(path, "w") as file:
        file["train"] = rows(5, 0)
    assert "does not tell its distance" in refusal(path)
    with h5py.File(path, "a") as file:
        file.attrs["distance"] = "hamming"
    assert "has no test" in refusal(path)
    with h5py.File(path, "a") as file:
        file["test"] = rows(5, 0)
    assert "distance must be one of ip" in refusal(path)


def test_a_billion_rows_in_a_small_file_are_refused_without_taking_their_memory(tmp_path):
    path = tmp_path / "made.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["distance"] = "ip"
        file["test"] = rows(5, 0)
        file.create_dataset("train", (10**9, 128), np.float32, chunks=(1024, 128))
    assert "says that it is (1000000000, 128), but takes 0 bytes" in refusal(path)
    folder = write_big_ann(tmp_path / "set")
    (folder / "base.3K.fbin").write_bytes(struct.pack("<II", 10**9, 128) + bytes(1016))
    assert "its header says 1000000000 rows of 128 float32, 512000000008 bytes; it has 1024" in refusal(
        folder
    )


def test_a_numpy_array_that_lies_is_refused(tmp_path):
    folder = write_numpy(tmp_path / "set", keys=rows(9, 0), queries=rows(9, 1))
    whole = (folder / "keys.npy").read_bytes()
    (folder / "keys.npy").write_bytes(
        whole.replace(b"(9, 16)", b"(99999999, 16)"[:7]).replace(b"(9, 16)", b"(8, 99)")
    )
    assert refusal(folder)
    (folder / "keys.npy").write_bytes(whole[:-3])
    assert "is not a whole NumPy array" in refusal(folder)
    np.save(folder / "keys.npy", np.array([{}], object), allow_pickle=True)
    assert "is not a whole NumPy array" in refusal(folder)


def test_a_file_of_no_family_is_refused_with_the_families(tmp_path):
    (tmp_path / "note.txt").write_text("x")
    assert "is of no family that ra-bench reads. dump: a folder" in refusal(tmp_path / "note.txt")
    assert "is not a finished dump" in refusal(tmp_path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """A small data set of each foreign family, as bytes by file name."""
    folder = tmp_path_factory.mktemp("whole")
    with h5py.File(folder / "a.hdf5", "w") as file:
        file.attrs["distance"] = "ip"
        file["train"], file["test"] = rows(20, 0), rows(4, 1)
    write_bin(folder / "base.fbin", rows(20, 0))
    np.save(folder / "keys.npy", rows(20, 0))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["a.hdf5", "base.fbin", "keys.npy"]),
    cut=st.none() | st.integers(0, 4000),
    changes=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), max_size=6),
)
def test_a_spoilt_file_is_read_or_refused_in_one_line_and_never_crashes(whole_files, name, cut, changes):
    content = bytearray(whole_files[name])
    for place, value in changes:
        content[place % len(content)] = value
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "set")
        folder.mkdir()
        (folder / name).write_bytes(content[:cut] if cut is not None else content)
        if name == "base.fbin":
            write_bin(folder / "query.fbin", rows(4, 1))
        elif name == "keys.npy":
            np.save(folder / "test.npy", rows(4, 1))
        refusal(folder / name if name == "a.hdf5" else folder)
