#include "answers.hpp"

#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "arrays.hpp"
#include "attention.hpp"
#include "built.hpp"
#include "pool.hpp"
#include "walk.hpp"

namespace ra_bench {
namespace {

// The graphs of one head, of which query g uses number g % size, and its keys.
struct HeadGraphs {
  HeadGraphs(const std::vector<Built*>& all, const Rows& rows) : graphs(all), keys(rows) {
    if (graphs.empty()) refuse("graphs must not be empty");
    for (const Built* built : graphs)
      if (!built || built->graph.n != keys.n || built->graph.dim != keys.d)
        refuse("keys must be those of the graph");
  }

  const Built& of_query(size_t g) const { return *graphs[g % graphs.size()]; }

  // The search of a query row, and of those that walk with it.
  Tasks tasks(size_t g, const Effort& effort) const {
    const Built& built = of_query(g);
    return {&keys, &built.graph, &built.codes, effort, {}, 0};
  }

  // What query row g read, number i of a walk for `count`: its share of what the walk went by and of links, the rows that
  // were scored for it, and what it found its starts by.
  int64_t bytes_read(size_t g, const Walk& walk, size_t i, size_t count) const {
    const auto share = [&](int64_t read) { return (read + static_cast<int64_t>(i)) / static_cast<int64_t>(count); };
    const Built& built = of_query(g);
    const auto row_bytes = static_cast<int64_t>(keys.row_bytes()), stride = static_cast<int64_t>(built.codes.stride);
    const int64_t rows = built.codes.empty() ? 0 : walk.of_query[i].exact * row_bytes;
    return share(walk.dots) * (built.codes.empty() ? row_bytes : stride) + rows +
           share(walk.expansions) * static_cast<int64_t>(built.graph.degree * 4) + static_cast<int64_t>(built.start_bytes());
  }

  const std::vector<Built*>& graphs;
  Rows keys;
};

// How the query rows of heads, `token_rows` a token, are divided among walks of at most `most` rows (0: as many as can
// walk together): as equally as can be.
struct Division {
  Division(size_t heads, size_t head_rows, size_t token_rows, size_t most)
      : rows(head_rows), group(std::max<size_t>(token_rows, 1)) {
    most = most ? std::min(most, kMostTogether) : kMostTogether;
    parts = (group + most - 1) / most;
    together = (group + parts - 1) / parts;
    walks = (rows + group - 1) / group * parts;
    count = heads * walks;
  }

  // The rows of walk i: [begin, end), none where a head's last token is not whole.
  size_t begin(size_t i) const {
    const size_t walk = i % walks;
    return i / walks * rows + std::min(rows, walk / parts * group + walk % parts * together);
  }
  size_t end(size_t i) const { return std::min(begin(i + 1), begin(i) + together); }

  size_t rows, group, parts, together, walks, count;
};

// Kept from call to call.
Walk& walk_of_thread() {
  thread_local Walk walk;
  return walk;
}

// Walks for the rows of number `i` of a division, `tasks_of(row)` with `query_of(row)` and `ids_of(row)`, and shows
// `done(row, walk, place, count)` of each.
template <class TasksOf, class QueryOf, class IdsOf, class Done>
void search_rows(const Kernels& table, const Division& division, size_t i, const TasksOf& tasks_of,
                 const QueryOf& query_of, const IdsOf& ids_of, const Done& done) {
  const size_t begin = division.begin(i), end = division.end(i);
  if (begin == end) return;
  Walk& walk = walk_of_thread();
  Tasks tasks = tasks_of(begin);
  for (size_t row = begin; row < end; ++row) tasks.each[tasks.count++] = {query_of(row), ids_of(row)};
  walk_graph(table, tasks, walk);
  for (size_t row = begin; row < end; ++row) done(row, walk, row - begin, tasks.count);
}

nb::tuple search(const std::vector<Built*>& graphs, const Array& keys, const Array& queries, size_t k,
                 size_t ef, size_t group, size_t together, int threads) {
  const HeadGraphs head(graphs, rows_of("keys", keys));
  const Matrix<float> asked("queries", queries);
  check_queries(asked.columns, head.keys);
  int32_t* ids;
  int64_t *read, *exact, *bytes;
  auto ids_array = new_array<int32_t>(ids, asked.m, k);
  auto read_array = new_array<int64_t>(read, asked.m);
  auto exact_array = new_array<int64_t>(exact, asked.m);
  auto bytes_array = new_array<int64_t>(bytes, asked.m);
  {
    nb::gil_scoped_release release;
    const Kernels& table = kernels();
    const Division division(1, asked.m, group, graphs.size() > 1 ? 1 : together);
    const Effort effort{k, std::max<size_t>(ef, 1)};
    parallel_for(threads, static_cast<int64_t>(division.count), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        search_rows(
            table, division, static_cast<size_t>(i), [&](size_t row) { return head.tasks(row, effort); },
            [&](size_t row) { return asked.row(row); }, [&](size_t row) { return ids + row * k; },
            [&](size_t row, const Walk& walk, size_t place, size_t queries) {
              read[row] = walk.dots;
              exact[row] = walk.of_query[place].exact;
              bytes[row] = head.bytes_read(row, walk, place, queries);
            });
    });
  }
  return nb::make_tuple(ids_array, read_array, exact_array, bytes_array);
}

nb::tuple attend_layer(const std::vector<std::vector<Built*>>& graphs, const std::vector<Array>& keys,
                       const std::vector<Array>& values, const Array& queries, size_t k,
                       const std::vector<size_t>& efs, size_t group, size_t together, const Writable& output,
                       const Writable& lse, int threads) {
  const LayerQueries layer(queries, output, lse);
  if (graphs.size() != layer.heads || keys.size() != layer.heads || values.size() != layer.heads ||
      efs.size() != layer.heads)
    refuse("graphs, keys, values and efs must be one each for " + std::to_string(layer.heads) + " heads");
  std::vector<HeadGraphs> heads;
  std::vector<Rows> value_rows;
  for (size_t h = 0; h < layer.heads; ++h) {
    heads.emplace_back(graphs[h], rows_of("keys", keys[h]));
    value_rows.push_back(rows_of("values", values[h]));
    layer.check_head(heads[h].keys, value_rows[h]);
    if (graphs[h].size() != graphs[0].size()) refuse("all heads of a layer must have as many graphs");
  }
  int64_t *read, *exact, *bytes, *attended;
  auto read_array = new_array<int64_t>(read, layer.heads, layer.m);
  auto exact_array = new_array<int64_t>(exact, layer.heads, layer.m);
  auto bytes_array = new_array<int64_t>(bytes, layer.heads, layer.m);
  auto attended_array = new_array<int64_t>(attended, layer.heads, layer.m);
  {
    nb::gil_scoped_release release;
    const Kernels& table = kernels();
    const Division division(layer.heads, layer.m, group, layer.heads && graphs[0].size() > 1 ? 1 : together);
    parallel_for(threads, static_cast<int64_t>(division.count), 1, [&](int64_t begin, int64_t end, int) {
      thread_local std::vector<int32_t> ids;
      if (ids.size() < kMostTogether * k) ids.resize(kMostTogether * k);
      const auto query_of = [&](size_t row) { return layer.queries + row * layer.d; };
      for (int64_t i = begin; i < end; ++i) {
        const size_t first = division.begin(static_cast<size_t>(i)), h = static_cast<size_t>(i) / division.walks;
        const auto ids_of = [&](size_t row) { return ids.data() + (row - first) * k; };
        const Effort effort{k, std::max<size_t>(efs[h], 1)};
        search_rows(
            table, division, static_cast<size_t>(i), [&](size_t row) { return heads[h].tasks(row % layer.m, effort); },
            query_of, ids_of, [&](size_t row, const Walk& walk, size_t place, size_t queries) {
              read[row] = walk.dots;
              exact[row] = walk.of_query[place].exact;
              bytes[row] = heads[h].bytes_read(row % layer.m, walk, place, queries);
              attended[row] = static_cast<int64_t>(attend_query(table, query_of(row), ids_of(row), k, heads[h].keys,
                                                                value_rows[h], layer.output + row * layer.d,
                                                                layer.lse + row));
            });
      }
    });
  }
  return nb::make_tuple(read_array, exact_array, bytes_array, attended_array);
}

}  // namespace

void add_answers(nb::module_& m) {
  using namespace nb::literals;
  m.def("search", &search, "graphs"_a, "keys"_a, "queries"_a, nb::kw_only(), "k"_a, "ef"_a, "group"_a,
        "together"_a, "threads"_a,
        "ids (m, k) int32 best first; keys read, those scored by their rows, and bytes read, each (m,) int64. Query\n"
        "row r uses graph r % G. Of the `group` rows of a token up to `together` walk together, at most 8, and as\n"
        "many for 0.");
  m.def("attend_layer", &attend_layer, "graphs"_a, "keys"_a, "values"_a, "queries"_a, nb::kw_only(), "k"_a,
        "efs"_a, "group"_a, "together"_a, "output"_a, "lse"_a, "threads"_a,
        "Search and attention for all H heads of a layer: lists of H lists of graphs, H keys and values (n, d)\n"
        "and H efs; queries (H, G, d) into output (H, G, d) and lse (H, G). Returns keys read,\n"
        "those scored by their rows, bytes read, and keys attended, each (H, G) int64. Rows walk together as in search.");
}

}  // namespace ra_bench
