// ra_bench.indexes.ra._ra: RetrievalAttention's graph.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "arrays.hpp"
#include "attention.hpp"
#include "build.hpp"
#include "built.hpp"
#include "pool.hpp"
#include "prune.hpp"
#include "search.hpp"
#include "walk.hpp"

namespace ra_bench {
namespace {

constexpr size_t kKeptWidth = 100;  // nearest keys of each kept query

// Every so-manieth learn query, with its nearest keys.
void keep_sample(const Kernels& table, const Rows& keys, const Matrix<float>& learn, const Neighbors& near,
                 size_t count, KeptQueries& sample) {
  sample.count = std::min(count, learn.m);
  sample.width = std::min(kKeptWidth, near.width);
  sample.scores.assign(sample.count * sample.width, -std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < sample.count; ++i) {
    const size_t q = i * learn.m / sample.count;
    const int32_t* ids = near.row(q);
    sample.vectors.insert(sample.vectors.end(), learn.row(q), learn.row(q) + learn.columns);
    sample.ids.insert(sample.ids.end(), ids, ids + sample.width);
    const size_t real = static_cast<size_t>(std::find(ids, ids + sample.width, -1) - ids);
    table.dot(learn.row(q), keys, ids, real, sample.scores.data() + i * sample.width);
  }
}

Built* build(const Array& keys, const Array& queries, const Array& neighbors, float radius, size_t degree,
             size_t query_degree, size_t pivots, size_t lists, size_t candidates, size_t beam,
             size_t num_centroids, size_t seeds_each, size_t kept_queries, uint64_t seed, int threads) {
  const Rows rows = rows_of("keys", keys);
  const Matrix<float> learn("queries", queries);
  const Matrix<int32_t> near("neighbors", neighbors);
  if (learn.columns != rows.d || learn.m != near.m)
    refuse("queries must be (" + std::to_string(near.m) + ", " + std::to_string(rows.d) +
           "): a row for each row of neighbors");
  if (degree < 1 || degree > 65535) refuse("degree must be in [1, 65535], got " + std::to_string(degree));
  check_ids("neighbors", near.data, near.m * near.columns, rows.n);
  auto built = std::make_unique<Built>();
  built->settings = settings_from(degree, query_degree, pivots, lists, candidates, beam, threads);
  built->radius = radius;
  built->graph.degree = degree;
  nb::gil_scoped_release release;
  built->lift(rows);
  const Kernels& table = kernels();
  grow(built->graph, rows.n);
  const Geometry geometry = built->geometry(rows);
  const Neighbors lists_of_queries{near.data, near.m, near.columns};
  choose_seeds(table, learn.data, lists_of_queries, rows.d, num_centroids, seeds_each, seed,
               built->settings.threads, built->graph);
  project(table, geometry, lists_of_queries, 0, built->settings, built->graph);
  keep_sample(table, rows, learn, lists_of_queries, kept_queries, built->graph.sample);
  if (beam) enhance(table, geometry, 0, built->settings, built->graph);
  connect(table, geometry, built->settings, built->graph);
  built->extra = {};
  return built.release();  // Python owns it
}

void insert(Built& built, const Array& keys, int threads) {
  const Rows rows = rows_of("keys", keys);
  if (rows.n < built.graph.n) refuse("keys must hold the old keys and the new ones");
  nb::gil_scoped_release release;
  built.settings.threads = std::max(threads, 1);
  built.own_links();
  built.lift(rows);
  BuildSettings settings = built.settings;
  settings.beam = std::max<size_t>(settings.beam, 16);
  settings.fill = true;  // a new key has few links from queries, or none
  insert_keys(kernels(), built.geometry(rows), settings, built.graph);
}

// The graphs of one head, of which query g uses number g % size, and its keys.
struct HeadGraphs {
  HeadGraphs(const std::vector<Built*>& all, const Rows& rows) : graphs(all), keys(rows) {
    if (graphs.empty()) refuse("graphs must not be empty");
    for (const Built* built : graphs)
      if (!built || built->graph.n != keys.n || built->graph.dim != keys.d)
        refuse("keys must be those of the graph");
  }
  const std::vector<Built*>& graphs;
  Rows keys;
};

struct Counts {
  int64_t dots, expansions;
};

// Writes the k best ids that query number g of a head finds, -1 after the last.
Counts search_query(const Kernels& table, const HeadGraphs& head, size_t g, const float* query, size_t k,
                    size_t ef, int32_t* ids) {
  thread_local Walk walk;  // kept from call to call
  const Graph& graph = head.graphs[g % head.graphs.size()]->graph;
  walk_graph(table, head.keys, graph, query, {k, std::max<size_t>(ef, 1)}, walk, ids);
  return {walk.dots, walk.expansions};
}

nb::tuple search(const std::vector<Built*>& graphs, const Array& keys, const Array& queries, size_t k,
                 size_t ef, int threads) {
  const HeadGraphs head(graphs, rows_of("keys", keys));
  const Matrix<float> asked("queries", queries);
  if (asked.columns != head.keys.d)
    refuse("queries must be (m, " + std::to_string(head.keys.d) + ") as the keys are, got d " +
           std::to_string(asked.columns));
  int32_t* ids;
  int64_t *dots, *expansions;
  auto ids_array = new_array<int32_t>(ids, asked.m, k);
  auto dots_array = new_array<int64_t>(dots, asked.m);
  auto expansions_array = new_array<int64_t>(expansions, asked.m);
  {
    nb::gil_scoped_release release;
    const Kernels& table = kernels();
    parallel_for(threads, static_cast<int64_t>(asked.m), 1, [&](int64_t begin, int64_t end, int) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        const Counts counts = search_query(table, head, i, asked.row(i), k, ef, ids + i * k);
        dots[i] = counts.dots;
        expansions[i] = counts.expansions;
      }
    });
  }
  return nb::make_tuple(ids_array, dots_array, expansions_array);
}

nb::tuple attend_layer(const std::vector<std::vector<Built*>>& graphs, const std::vector<Array>& keys,
                       const std::vector<Array>& values, const Array& queries, size_t k,
                       const std::vector<size_t>& efs, const Writable& output, const Writable& lse,
                       int threads) {
  const LayerQueries layer(queries, output, lse);
  if (graphs.size() != layer.heads || keys.size() != layer.heads || values.size() != layer.heads ||
      efs.size() != layer.heads)
    refuse("graphs, keys, values and efs must be one each for " + std::to_string(layer.heads) + " heads");
  std::vector<HeadGraphs> heads;
  std::vector<Rows> value_rows;
  for (size_t h = 0; h < layer.heads; ++h) {
    heads.emplace_back(graphs[h], rows_of("keys", keys[h]));
    value_rows.push_back(rows_of("values", values[h]));
    if (heads[h].keys.d != layer.d)
      refuse("queries must be (H, G, " + std::to_string(heads[h].keys.d) + ") as the keys are, got d " +
             std::to_string(layer.d));
    if (value_rows[h].n != heads[h].keys.n || value_rows[h].d != layer.d)
      refuse("values must have the shape of keys");
  }
  int64_t *dots, *expansions, *attended;
  auto dots_array = new_array<int64_t>(dots, layer.heads, layer.m);
  auto expansions_array = new_array<int64_t>(expansions, layer.heads, layer.m);
  auto attended_array = new_array<int64_t>(attended, layer.heads, layer.m);
  {
    nb::gil_scoped_release release;
    const Kernels& table = kernels();
    const auto count = static_cast<int64_t>(layer.heads * layer.m);
    parallel_for(threads, count, 1, [&](int64_t begin, int64_t end, int) {
      thread_local std::vector<int32_t> ids;
      if (ids.size() < k) ids.resize(k);
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
        const size_t h = i / layer.m;
        const float* query = layer.queries + i * layer.d;
        const Counts counts = search_query(table, heads[h], i % layer.m, query, k, efs[h], ids.data());
        dots[i] = counts.dots;
        expansions[i] = counts.expansions;
        attended[i] = static_cast<int64_t>(attend_query(table, query, ids.data(), k, heads[h].keys, value_rows[h],
                                                        layer.output + i * layer.d, layer.lse + i));
      }
    });
  }
  return nb::make_tuple(dots_array, expansions_array, attended_array);
}

template <class T>
nb::ndarray<nb::numpy, T> copied(const T* from, size_t rows, size_t columns) {
  T* data;
  auto out = new_array<T>(data, rows, columns);
  std::copy(from, from + rows * columns, data);
  return out;
}

// For tests: the pruning rule alone.
std::vector<int32_t> prune_one(const Array& keys, int32_t node, const std::vector<int32_t>& ids, float radius,
                               size_t most, bool fill) {
  Built built;
  built.radius = radius;
  const Rows rows = rows_of("keys", keys);
  check_ids("ids", ids.data(), ids.size(), rows.n);
  check_ids("node", &node, 1, rows.n);
  built.lift(rows);
  const Geometry geometry = built.geometry(rows);
  std::vector<float> vector(rows.d), near(ids.size());
  kernels().widen_row(rows, static_cast<size_t>(node), vector.data());
  geometry.nearness(kernels(), vector.data(), geometry.extra_of(static_cast<size_t>(node)), ids.data(),
                    ids.size(), near.data());
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < ids.size(); ++i) candidates.push_back({near[i], ids[i]});
  sort_unique(node, candidates);
  PruneScratch scratch;
  std::vector<int32_t> chosen;
  prune(kernels(), geometry, candidates, most, fill, scratch, chosen);
  return chosen;
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
            return copied(b.graph.sample.vectors.data(), b.graph.sample.count, b.graph.dim);
          },
          nb::rv_policy::automatic, "(kept queries, d) float32.")
      .def_prop_ro(
          "sample_ids",
          [](const Built& b) {
            return copied(b.graph.sample.ids.data(), b.graph.sample.count, b.graph.sample.width);
          },
          nb::rv_policy::automatic, "(kept queries, width) int32: their nearest keys, -1 padded.")
      .def_prop_ro(
          "sample_scores",
          [](const Built& b) {
            return copied(b.graph.sample.scores.data(), b.graph.sample.count, b.graph.sample.width);
          },
          nb::rv_policy::automatic)
      .def_prop_ro("entry", [](const Built& b) { return b.graph.entry; })
      .def_prop_ro("radius", [](const Built& b) { return b.radius; })
      .def_prop_ro("nbytes",
                   [](const Built& b) {
                     return b.graph.n * b.graph.degree * 4 + b.graph.kept.size() * 2 +
                            (b.graph.centroids.size() + b.graph.seeds.size() +
                             b.graph.sample.vectors.size() + 2 * b.graph.sample.ids.size() +
                             b.extra.size()) *
                                4;
                   })
      .def_prop_ro(
          "start_bytes", [](const Built& b) { return b.graph.centroids.size() * 4 + b.graph.seeds_each * 4; },
          "What choosing where a search starts reads.")
      .def_prop_ro(
          "unreached",
          [](const Built& b) {
            const std::vector<char> seen = reached(b.graph);
            return std::count(seen.begin(), seen.end(), 0);
          },
          "How many keys cannot be reached from the entry.")
      .def("insert", &insert, "keys"_a, "threads"_a,
           "Links the keys that follow those of the graph in `keys` (n, d).");
  m.def("build", &build, "keys"_a, "queries"_a, "neighbors"_a, nb::kw_only(), "radius"_a, "degree"_a,
        "query_degree"_a, "pivots"_a, "lists"_a, "candidates"_a, "beam"_a, "num_centroids"_a, "seeds_each"_a,
        "kept_queries"_a, "seed"_a, "threads"_a,
        "The graph over keys (n, d) from learn queries (m, d) and their exact neighbours (m, N) int32.");
  m.def("restore", &restore, "links"_a, "kept"_a, "centroids"_a, "seeds"_a, "sample"_a, "sample_ids"_a,
        "sample_scores"_a, nb::kw_only(),
        "entry"_a, "radius"_a, "query_degree"_a, "lists"_a, "candidates"_a, "beam"_a,
        "A graph from its parts; raises ValueError where they do not fit each other.");
  m.def("search", &search, "graphs"_a, "keys"_a, "queries"_a, nb::kw_only(), "k"_a, "ef"_a, "threads"_a,
        "ids (m, k) int32 best first, dot products (m,) and expanded keys (m,) int64; query row r uses graph "
        "r % G.");
  m.def("attend_layer", &attend_layer, "graphs"_a, "keys"_a, "values"_a, "queries"_a, nb::kw_only(), "k"_a,
        "efs"_a, "output"_a, "lse"_a, "threads"_a,
        "Search and attention for all H heads of a layer: lists of H lists of graphs, H keys and values (n, d)\n"
        "and H efs; queries (H, G, d) into output (H, G, d) and lse (H, G). Returns dot products, expanded "
        "keys\nand attended keys, each (H, G) int64.");
  m.def("prune", &prune_one, "keys"_a, "node"_a, "ids"_a, nb::kw_only(), "radius"_a, "most"_a, "fill"_a,
        "For tests: the ids that pruning keeps.");
  m.def("force_kernel", &force_kernels, "name"_a,
        "Makes every call of this module use the named kernel; '' goes back to the best. For tests.");
}
