// ra_bench.indexes.ra._ra: RetrievalAttention's graph.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>

#include "answers.hpp"
#include "arrays.hpp"
#include "build.hpp"
#include "built.hpp"
#include "probes.hpp"
#include "rounded.hpp"

namespace ra_bench {
namespace {

Built* build(const Array& keys, const Array& shape, const Array& queries, const Array& neighbors,
             const Array& key_neighbors, const Array& sample, const Array& sample_ids, const Array& to_key,
             const Array& to_query, const Array& offset, float shape_radius, float radius, size_t degree,
             size_t query_degree, size_t pivots, size_t lists, size_t candidates, size_t beam,
             size_t num_centroids, size_t seeds_each, uint64_t seed, int threads) {
  const Rows rows = rows_of("keys", keys), shape_rows = rows_of("shape", shape);
  const Matrix<float> learn("queries", queries);
  const Matrix<int32_t> near("neighbors", neighbors), near_keys("key_neighbors", key_neighbors);
  if (learn.columns != rows.d || learn.m != near.m)
    refuse("queries must be (" + std::to_string(near.m) + ", " + std::to_string(rows.d) +
           "): a row for each row of neighbors");
  if (degree < 1 || degree > 65535) refuse("degree must be in [1, 65535], got " + std::to_string(degree));
  if (shape_rows.n != rows.n) refuse("shape must have a row for each key");
  check_ids("neighbors", near.data, near.m * near.columns, rows.n);
  if (near_keys.m && near_keys.m != rows.n) refuse("key_neighbors must have a row for each key, or none");
  check_ids("key_neighbors", near_keys.data, near_keys.m * near_keys.columns, rows.n);
  auto built = std::make_unique<Built>();
  built->settings = settings_from(degree, query_degree, pivots, lists, candidates, beam, threads);
  built->graph.degree = degree;
  built->graph.n = rows.n;
  built->graph.dim = rows.d;
  set_sample(sample, sample_ids, built->graph);
  set_codes(to_key, to_query, offset, rows.d, built->codes);
  nb::gil_scoped_release release;
  built->radius = shape_radius;
  built->lift(shape_rows);
  const Kernels& table = kernels();
  grow(built->graph, rows.n);
  const bool is_balanced = shape_rows.data != rows.data;
  built->codes.encode(table, is_balanced ? shape_rows : rows, is_balanced, 0, built->settings.threads);
  Geometry geometry = built->geometry(shape_rows);
  geometry.is_balanced = is_balanced;
  RoundedKeys rounded;
  if (is_balanced && geometry.extra) {
    rounded.round(table, shape_rows, geometry.extra, built->settings.threads);
    geometry.rounded = &rounded;
  }
  const Neighbors lists_of_queries{near.data, near.m, near.columns};
  choose_seeds(table, learn.data, lists_of_queries, rows.d, num_centroids, seeds_each, seed,
               built->settings.threads, built->graph);
  project(table, geometry, lists_of_queries, 0, built->settings, built->graph);
  if (beam || near_keys.m)
    enhance(table, geometry, {near_keys.data, near_keys.m, near_keys.columns}, 0, built->settings, built->graph);
  connect(table, geometry, built->settings, built->graph);
  built->extra = {};
  built->radius = radius;
  return built.release();  // Python owns it
}

void insert(Built& built, const Array& keys, int threads) {
  const Rows rows = rows_of("keys", keys);
  if (rows.n < built.graph.n || rows.d != built.graph.dim)
    refuse("keys must hold the old keys and the new ones, (n, " + std::to_string(built.graph.dim) + ")");
  nb::gil_scoped_release release;
  built.settings.threads = std::max(threads, 1);
  built.own_tables();
  built.lift(rows);
  BuildSettings settings = built.settings;
  settings.beam = std::max<size_t>(settings.beam, 16);
  settings.fill = true;  // a new key has few links from queries, or none
  built.codes.encode(kernels(), rows, false, built.graph.n, built.settings.threads);
  insert_keys(kernels(), built.geometry(rows), settings, built.graph);
}

template <class T>
nb::ndarray<nb::numpy, T> copied(const T* from, size_t rows, size_t columns) {
  T* data;
  auto out = new_array<T>(data, rows, columns);
  std::copy(from, from + rows * columns, data);
  return out;
}

nb::ndarray<nb::numpy> copied_halves(const uint16_t* from, size_t rows, size_t columns) {
  auto* data = new uint16_t[std::max<size_t>(rows * columns, 1)];
  std::copy(from, from + rows * columns, data);
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<uint16_t*>(p); });
  const size_t shape[] = {rows, columns};
  const nb::dlpack::dtype half{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  return nb::ndarray<nb::numpy>(data, 2, shape, owner, nullptr, half);
}

}  // namespace
}  // namespace ra_bench

NB_MODULE(_ra, m) {
  using namespace ra_bench;
  using namespace nb::literals;
  m.doc() = "RetrievalAttention's graph: construction, search, insertion.";
  nb::class_<Built>(m, "Graph", "A graph over n keys. Keys are not kept: pass them to each call.")
      .def_prop_ro(
          "links", [](const Built& b) { return copied(b.graph.links, b.graph.n, b.graph.degree); },
          nb::rv_policy::automatic, "(n, degree) int32, -1 padded.")
      .def_prop_ro(
          "kept",
          [](const Built& b) {
            std::vector<int32_t> kept(b.graph.kept.begin(), b.graph.kept.end());
            return copied(kept.data(), kept.size(), 1);
          },
          nb::rv_policy::automatic, "(n, 1) int32: how many of a key's links come from queries.")
      .def_prop_ro(
          "centroids",
          [](const Built& b) { return copied(b.graph.centroids.data(), b.graph.num_centroids, b.graph.dim); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "seeds",
          [](const Built& b) {
            return copied(b.graph.seeds.data(), b.graph.num_centroids, b.graph.seeds_each);
          },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "sample",
          [](const Built& b) {
            return copied_halves(b.graph.sample.vectors.data(), b.graph.sample.count, b.graph.dim);
          },
          nb::rv_policy::automatic, "(kept queries, d) float16.")
      .def_prop_ro(
          "sample_ids",
          [](const Built& b) {
            return copied(b.graph.sample.ids.data(), b.graph.sample.count, b.graph.sample.width);
          },
          nb::rv_policy::automatic, "(kept queries, width) int32: their nearest keys, -1 padded.")
      .def_prop_ro(
          "codes", [](const Built& b) { return copied(b.codes.rows, b.graph.n, b.codes.stride); },
          nb::rv_policy::automatic, "(n, stride) uint8: see codes.hpp.")
      .def_prop_ro(
          "steps", [](const Built& b) { return copied(b.codes.steps.data(), 1, b.codes.steps.size()); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "to_key", [](const Built& b) { return copied(b.codes.to_key.data(), b.codes.kept, b.graph.dim); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "to_query", [](const Built& b) { return copied(b.codes.to_query.data(), b.codes.kept, b.graph.dim); },
          nb::rv_policy::automatic)
      .def_prop_ro(
          "offset", [](const Built& b) { return copied(b.codes.offset.data(), 1, b.codes.kept); },
          nb::rv_policy::automatic)
      .def_prop_ro("entry", [](const Built& b) { return b.graph.entry; })
      .def_prop_ro("radius", [](const Built& b) { return b.radius; })
      .def_prop_ro("nbytes",
                   [](const Built& b) {
                     return b.graph.n * b.graph.degree * 4 + b.graph.kept.size() * 2 +
                            b.graph.sample.vectors.size() * 2 +
                            (b.graph.centroids.size() + b.graph.seeds.size() + b.graph.sample.ids.size() +
                             b.graph.sample.scores.size() + b.extra.size()) *
                                4 +
                            b.codes.nbytes(b.graph.n);
                   })
      .def_prop_ro(
          "start_bytes", [](const Built& b) { return b.start_bytes(); },
          "What choosing where a search starts reads.")
      .def_prop_ro(
          "is_aligned",
          [](const Built& b) {
            return (reinterpret_cast<uintptr_t>(b.graph.links) | reinterpret_cast<uintptr_t>(b.codes.rows)) % 64 == 0;
          },
          "Whether links and codes begin on cache lines.")
      .def_prop_ro("code_bytes", [](const Built& b) { return b.codes.stride; }, "A key's code; 0 without codes.")
      .def_prop_ro(
          "unreached",
          [](const Built& b) {
            const std::vector<char> seen = reached(b.graph);
            return std::count(seen.begin(), seen.end(), 0);
          },
          "How many keys cannot be reached from the entry.")
      .def("insert", &insert, "keys"_a, "threads"_a,
           "Links the keys that follow those of the graph in `keys` (n, d).");
  m.def("build", &build, "keys"_a, "shape"_a, "queries"_a, "neighbors"_a, "key_neighbors"_a, "sample"_a, "sample_ids"_a,
        "to_key"_a, "to_query"_a, "offset"_a, nb::kw_only(), "shape_radius"_a, "radius"_a, "degree"_a, "query_degree"_a,
        "pivots"_a, "lists"_a, "candidates"_a, "beam"_a, "num_centroids"_a, "seeds_each"_a, "seed"_a, "threads"_a,
        "The graph over keys (n, d) from learn queries (m, d) and their exact neighbours (m, N) int32; the nearest\n"
        "keys of each key (n, N) int32, or (0, 0) to search for them. `shape` (n, any) are the keys as pruning sees\n"
        "them, on a sphere of shape_radius: `keys` themselves, or in the coordinates of their codes.");
  m.def("restore", &restore, "links"_a, "kept"_a, "centroids"_a, "seeds"_a, "sample"_a, "sample_ids"_a,
        "codes"_a, "steps"_a, "to_key"_a, "to_query"_a, "offset"_a, nb::kw_only(),
        "entry"_a, "radius"_a, "query_degree"_a, "lists"_a, "candidates"_a, "beam"_a,
        "copy"_a, "A graph from its parts; raises ValueError where they do not fit each other.");
  m.def("most_kept", &most_kept, "d"_a, "How many dimensions a code of d dimensions can hold.");
  add_answers(m);
  add_probes(m);
  m.def("force_kernel", &force_kernels, "name"_a,
        "Makes every call of this module use the named kernel; '' goes back to the best. For tests.");
}
