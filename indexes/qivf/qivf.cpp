// ra_bench.indexes.qivf._qivf: inverted lists of 4-bit codes, routed by what queries were seen to find.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "arrays.hpp"
#include "attention.hpp"
#include "four_bits.hpp"
#include "pool.hpp"
#include "search.hpp"

namespace ra_bench {
namespace {

constexpr size_t kLaterListKeys = 256;

// An index as Python holds it; immutable but for insert(). Trap: nanobind tells types apart by name across
// modules, even in anonymous namespaces, so the name must be used by no other module.
struct RoutedLists {
  Routed routed;
  std::vector<Array> mapped;  // keeps the built lists alive where they are files
};

const float* floats(const char* name, const Array& a, size_t rows, size_t columns) {
  if (a.ndim() != 2 || !is_float(a, 32) || !is_contiguous(a) || a.shape(0) != rows || a.shape(1) != columns)
    refuse(std::string(name) + " must be (" + std::to_string(rows) + ", " + std::to_string(columns) +
           ") float32, C-contiguous");
  return static_cast<const float*>(a.data());
}

// (rows, d) numbers as panels (any, d, 16): 16 rows side by side; zeros after the last row.
template <class Number>
std::vector<float> panels_of(size_t rows, size_t d, const Number& number) {
  std::vector<float> panels((rows + 15) / 16 * d * 16, 0.0f);
  for (size_t r = 0; r < rows; ++r)
    for (size_t j = 0; j < d; ++j) panels[(r / 16 * d + j) * 16 + r % 16] = number(r, j);
  return panels;
}

// Takes what routing needs: centroids (nlist, d), of the routed lists weights (any, d) and bias (1, any), and
// key_map and query_map (d, d).
void set_router(const Array& centroids, const Array& weights, const Array& bias, const Array& key_map, const Array& query_map,
                Routed& routed) {
  const size_t all = routed.lists.nlist(), d = routed.lists.d;
  const float* c = floats("centroids", centroids, all, d);
  routed.centroids.assign(c, c + all * d);
  if (weights.ndim() != 2 || weights.shape(0) > all) refuse("weights must have no more rows than centroids");
  const size_t nlist = routed.num_routed = weights.shape(0);
  const float* w = floats("weights", weights, nlist, d);
  const float* b = floats("bias", bias, 1, nlist);
  const float* r = floats("key_map", key_map, d, d);
  const float* t = floats("query_map", query_map, d, d);
  routed.key_map.assign(r, r + d * d);
  routed.turner = panels_of(d, d, [&](size_t column, size_t j) { return t[j * d + column]; });
  routed.panels = panels_of(nlist, d, [&](size_t list, size_t j) { return w[list * d + j]; });
  routed.bias.assign(routed.panels.size() / d, -1e30f);  // a list that is none: no neighbours
  std::copy(b, b + nlist, routed.bias.begin());
  routed.measure_lists();
}

// The code of key `id` for `list` into `code`; returns its step.
float encode_key(const Kernels& table, const Routed& routed, const Rows& keys, size_t id, size_t list,
                 std::vector<float>& key, std::vector<float>& turned, uint8_t* code) {
  const size_t d = routed.lists.d;
  key.resize(d);
  turned.assign(d, 0.0f);
  table.widen_row(keys, id, key.data());
  for (size_t i = 0; i < d; ++i) {
    const float x = key[i] - routed.centroids[list * d + i];
    const float* row = routed.key_map.data() + i * d;
    for (size_t j = 0; j < d; ++j) turned[j] += x * row[j];
  }
  return encode_four_bits(turned.data(), d, code);
}

void fill_lists(const Rows& keys, const std::vector<std::vector<int32_t>>& members, int threads, Routed& routed) {
  Lists& lists = routed.lists;
  const Kernels& table = kernels();
  parallel_for(threads, static_cast<int64_t>(members.size()), 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> key, turned;
    std::vector<uint8_t> code(lists.d);
    for (int64_t l = begin; l < end; ++l) {
      const std::vector<int32_t>& ids = members[static_cast<size_t>(l)];
      for (size_t i = 0; i < ids.size(); ++i) {
        const size_t block = lists.first_block[static_cast<size_t>(l)] + i / kBlockKeys, place = i % kBlockKeys;
        lists.owned_ids[block * kBlockKeys + place] = ids[i];
        lists.owned_steps[block * kBlockKeys + place] =
            encode_key(table, routed, keys, static_cast<size_t>(ids[i]), static_cast<size_t>(l), key, turned,
                       code.data());
        store_code(code.data(), lists.d, place, lists.owned_codes.data() + block * lists.block_bytes());
      }
    }
  });
}

void own(Lists& lists, size_t blocks) {
  lists.owned_codes.assign(blocks * lists.block_bytes(), 0);
  lists.owned_steps.assign(blocks * kBlockKeys, 0.0f);
  lists.owned_ids.assign(blocks * kBlockKeys, -1);
  lists.codes = lists.owned_codes.data();
  lists.steps = lists.owned_steps.data();
  lists.ids = lists.owned_ids.data();
}

RoutedLists* build(const Array& keys, const Array& assigned, const Array& centroids, const Array& weights,
             const Array& bias, const Array& key_map, const Array& query_map, int threads) {
  const Rows rows = rows_of("keys", keys);
  const Matrix<int32_t> list_of("assigned", assigned);
  if (list_of.m != rows.n || list_of.columns != 1) refuse("assigned must be (n, 1)");
  if (centroids.ndim() != 2) refuse("centroids must be (nlist, d)");
  const size_t nlist = centroids.shape(0);
  std::vector<std::vector<int32_t>> members(nlist);
  for (size_t i = 0; i < rows.n; ++i) {
    const int32_t l = list_of.data[i];
    if (l < 0 || static_cast<size_t>(l) >= nlist)
      refuse("assigned must hold lists from 0 to " + std::to_string(nlist - 1) + ", got " + std::to_string(l));
    members[static_cast<size_t>(l)].push_back(static_cast<int32_t>(i));
  }
  auto built = std::make_unique<RoutedLists>();
  Lists& lists = built->routed.lists;
  lists.n = rows.n;
  lists.d = rows.d;
  std::vector<int32_t> sizes;
  for (const auto& ids : members) sizes.push_back(static_cast<int32_t>(ids.size()));
  own(lists, lists.lay_out(sizes));
  set_router(centroids, weights, bias, key_map, query_map, built->routed);
  nb::gil_scoped_release release;
  fill_lists(rows, members, std::max(threads, 1), built->routed);
  return built.release();  // Python owns it
}

RoutedLists* restore(const Array& codes, const Array& steps, const Array& ids, const Array& counts, const Array& centroids,
               const Array& weights, const Array& bias, const Array& key_map, const Array& query_map, size_t n) {
  const Matrix<int32_t> sizes("counts", counts), names("ids", ids);
  auto built = std::make_unique<RoutedLists>();
  Lists& lists = built->routed.lists;
  if (key_map.ndim() != 2 || sizes.columns != 1) refuse("key_map must be (d, d) and counts (nlist, 1)");
  lists.n = n;
  lists.d = key_map.shape(0);
  std::vector<int32_t> all(sizes.data, sizes.data + sizes.m);
  for (int32_t size : all)
    if (size < 0 || static_cast<size_t>(size) > n) refuse("counts must lie between 0 and n");
  const size_t blocks = lists.lay_out(all);
  if (names.m != blocks || names.columns != kBlockKeys || !is_contiguous(ids)) refuse("ids must be (blocks, 16)");
  const bool bytes = codes.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) && codes.dtype().bits == 8;
  if (!bytes || !is_contiguous(codes) || codes.size() != blocks * lists.block_bytes())
    refuse("codes must be " + std::to_string(blocks * lists.block_bytes()) + " bytes");
  lists.steps = floats("steps", steps, blocks, kBlockKeys);
  lists.codes = static_cast<const uint8_t*>(codes.data());
  lists.ids = names.data;
  std::vector<char> seen(n, 0);
  size_t real = 0;
  for (size_t l = 0; l < lists.nlist(); ++l) {
    const Segment segment = lists.built(l);
    for (size_t i = 0; i < segment.count; ++i, ++real) {
      const int32_t id = segment.ids[i];
      if (id < 0 || static_cast<size_t>(id) >= n || seen[static_cast<size_t>(id)]++)
        refuse("ids must name each key once");
    }
  }
  if (real != n) refuse("lists must hold all " + std::to_string(n) + " keys, got " + std::to_string(real));
  built->mapped = {codes, steps, ids};
  set_router(centroids, weights, bias, key_map, query_map, built->routed);
  return built.release();  // Python owns it
}

// The list that the next inserted keys join: the last, or a new one around the mean of keys [first, end).
size_t list_for(Routed& routed, const Rows& keys, size_t first, size_t end) {
  Lists& lists = routed.lists;
  const bool open = lists.nlist() > routed.num_routed && lists.size(lists.nlist() - 1) < kLaterListKeys;
  if (open) return lists.nlist() - 1;
  lists.add_empty();
  const size_t d = lists.d;
  std::vector<float> key(d), mean(d, 0.0f);
  for (size_t id = first; id < end; ++id) {
    kernels().widen_row(keys, id, key.data());
    for (size_t j = 0; j < d; ++j) mean[j] += key[j] / static_cast<float>(end - first);
  }
  routed.centroids.insert(routed.centroids.end(), mean.begin(), mean.end());
  return lists.nlist() - 1;
}

// Later keys are what the next queries want most, and neither the clusters nor the router have seen their like:
// they go to lists of their own, in their order, which every search reads.
void insert(RoutedLists& built, const Array& keys) {
  const Rows rows = rows_of("keys", keys);
  Routed& routed = built.routed;
  Lists& lists = routed.lists;
  if (rows.n < lists.n || rows.d != lists.d) refuse("keys must hold the old keys and the new ones");
  nb::gil_scoped_release release;
  const Kernels& table = kernels();
  std::vector<float> key(lists.d), turned;
  std::vector<uint8_t> code(lists.d);
  for (size_t id = lists.n; id < rows.n; ++id) {
    const size_t list = list_for(routed, rows, id, std::min(rows.n, id + kLaterListKeys));
    Grown& grown = lists.grown[list];
    const float step = encode_key(table, routed, rows, id, list, key, turned, code.data());
    const size_t place = grown.ids.size() % kBlockKeys;
    if (!place) {
      grown.codes.resize(grown.codes.size() + lists.block_bytes(), 0);
      grown.steps.resize(grown.steps.size() + kBlockKeys, 0.0f);
      grown.ids.reserve(grown.ids.size() + kBlockKeys);  // a vector load may read past the last
    }
    store_code(code.data(), lists.d, place, grown.codes.data() + grown.ids.size() / kBlockKeys * lists.block_bytes());
    grown.steps[grown.ids.size()] = step;
    grown.ids.push_back(static_cast<int32_t>(id));
  }
  lists.n = rows.n;
}

void check_keys(const RoutedLists* built, const Rows& rows) {
  if (!built || rows.n != built->routed.lists.n || rows.d != built->routed.d()) refuse("keys must be those of the index");
}

nb::tuple search(const RoutedLists& built, const Array& keys, const Array& queries, size_t group, size_t k, float share,
                 size_t candidates, int threads) {
  const Rows rows = rows_of("keys", keys);
  const Matrix<float> asked("queries", queries);
  const Routed& routed = built.routed;
  check_keys(&built, rows);
  check_queries(asked.columns, rows);
  int32_t* ids;
  int64_t *touched, *exact, *bytes;
  auto ids_array = new_array<int32_t>(ids, asked.m, k);
  auto keys_array = new_array<int64_t>(touched, asked.m);
  auto exact_array = new_array<int64_t>(exact, asked.m);
  auto bytes_array = new_array<int64_t>(bytes, asked.m);
  {
    nb::gil_scoped_release release;
    const Settings settings{k, share, std::min(std::max<size_t>({candidates, k, 1}), rows.n)};
    const size_t together = std::min(std::max<size_t>(group, 1), kMaxTogether);
    const int64_t tasks = static_cast<int64_t>((asked.m + together - 1) / together);
    parallel_for(threads, tasks, 1, [&](int64_t begin, int64_t end, int) {
      thread_local Workspace space;
      Cost costs[kMaxTogether];
      for (int64_t t = begin; t < end; ++t) {
        const size_t first = static_cast<size_t>(t) * together, count = std::min(together, asked.m - first);
        search_together(routed, rows, asked.row(first), count, settings, space, ids + first * k, costs);
        for (size_t g = 0; g < count; ++g) {
          touched[first + g] = costs[g].keys;
          exact[first + g] = costs[g].exact;
          bytes[first + g] = static_cast<int64_t>(costs[g].bytes);
        }
      }
    });
  }
  return nb::make_tuple(ids_array, keys_array, exact_array, bytes_array);
}

// A layer's token: a task is a head's queries, or where there are fewer heads than threads a part of them.
nb::tuple attend_layer(const std::vector<RoutedLists*>& lists, const std::vector<Array>& keys,
                       const std::vector<Array>& values, const Array& queries, size_t k,
                       const std::vector<float>& shares, const std::vector<size_t>& candidates, const Writable& output,
                       const Writable& lse, int threads) {
  const LayerQueries layer(queries, output, lse);
  const size_t heads = layer.heads;
  for (size_t given : {lists.size(), keys.size(), values.size(), shares.size(), candidates.size()})
    if (given != heads)
      refuse("lists, keys, values, shares and candidates must be one each for " + std::to_string(heads) + " heads");
  std::vector<Rows> key_rows, value_rows;
  for (size_t h = 0; h < heads; ++h) {
    key_rows.push_back(rows_of("keys", keys[h]));
    value_rows.push_back(rows_of("values", values[h]));
    check_keys(lists[h], key_rows[h]);
    layer.check_head(key_rows[h], value_rows[h]);
  }
  int64_t *touched, *exact, *bytes, *attended;
  auto touched_array = new_array<int64_t>(touched, heads, layer.m);
  auto exact_array = new_array<int64_t>(exact, heads, layer.m);
  auto bytes_array = new_array<int64_t>(bytes, heads, layer.m);
  auto attended_array = new_array<int64_t>(attended, heads, layer.m);
  if (heads && layer.m) {
    nb::gil_scoped_release release;
    const Kernels& table = kernels();
    const size_t wanted = (static_cast<size_t>(std::max(threads, 1)) + heads - 1) / heads;
    const size_t parts = std::max((layer.m + kMaxTogether - 1) / kMaxTogether, std::min(wanted, layer.m));
    parallel_for(threads, static_cast<int64_t>(heads * parts), 1, [&](int64_t begin, int64_t end, int) {
      thread_local Workspace space;
      thread_local std::vector<int32_t> ids;
      Cost costs[kMaxTogether];
      if (ids.size() < kMaxTogether * k) ids.resize(kMaxTogether * k);
      for (auto task = static_cast<size_t>(begin); task < static_cast<size_t>(end); ++task) {
        const size_t h = task / parts, part = task % parts;
        const size_t first = h * layer.m + part * layer.m / parts;
        const size_t count = h * layer.m + (part + 1) * layer.m / parts - first;
        const Rows& rows = key_rows[h];
        const Settings settings{k, shares[h], std::min(std::max<size_t>({candidates[h], k, 1}), rows.n)};
        search_together(lists[h]->routed, rows, layer.queries + first * layer.d, count, settings, space, ids.data(), costs);
        for (size_t g = 0; g < count; ++g) {
          const size_t i = first + g;
          touched[i] = costs[g].keys;
          exact[i] = costs[g].exact;
          bytes[i] = static_cast<int64_t>(costs[g].bytes);
          attended[i] = static_cast<int64_t>(attend_query(table, layer.queries + i * layer.d, ids.data() + g * k, k, rows,
                                                          value_rows[h], layer.output + i * layer.d, layer.lse + i));
        }
      }
    });
  }
  return nb::make_tuple(touched_array, exact_array, bytes_array, attended_array);
}

// The lists as one set of arrays, those of inserted keys too: codes, steps, ids, counts, centroids.
nb::tuple flattened(const RoutedLists& built) {
  const Lists& lists = built.routed.lists;
  Lists flat;
  flat.d = lists.d;
  std::vector<int32_t> sizes;
  for (size_t l = 0; l < lists.nlist(); ++l) sizes.push_back(static_cast<int32_t>(lists.size(l)));
  const size_t blocks = flat.lay_out(sizes);
  own(flat, blocks);
  std::vector<uint8_t> code(lists.d);
  for (size_t l = 0; l < lists.nlist(); ++l) {
    size_t to = flat.first_block[l] * kBlockKeys;
    for (const Segment& from : {lists.built(l), lists.inserted(l)})
      for (size_t i = 0; i < from.count; ++i, ++to) {
        read_code(from.codes + i / kBlockKeys * lists.block_bytes(), lists.d, i % kBlockKeys, code.data());
        store_code(code.data(), lists.d, to % kBlockKeys,
                   flat.owned_codes.data() + to / kBlockKeys * lists.block_bytes());
        flat.owned_steps[to] = from.steps[i];
        flat.owned_ids[to] = from.ids[i];
      }
  }
  uint8_t* codes;
  float* steps;
  int32_t *ids, *counts;
  auto codes_array = new_array<uint8_t>(codes, blocks, lists.block_bytes());
  auto steps_array = new_array<float>(steps, blocks, kBlockKeys);
  auto ids_array = new_array<int32_t>(ids, blocks, kBlockKeys);
  auto counts_array = new_array<int32_t>(counts, sizes.size(), size_t{1});
  std::copy(flat.owned_codes.begin(), flat.owned_codes.end(), codes);
  std::copy(flat.owned_steps.begin(), flat.owned_steps.end(), steps);
  std::copy(flat.owned_ids.begin(), flat.owned_ids.end(), ids);
  std::copy(sizes.begin(), sizes.end(), counts);
  float* centroids;
  auto centroids_array = new_array<float>(centroids, lists.nlist(), lists.d);
  std::copy(built.routed.centroids.begin(), built.routed.centroids.end(), centroids);
  return nb::make_tuple(codes_array, steps_array, ids_array, counts_array, centroids_array);
}

size_t nbytes(const RoutedLists& built) {
  const Routed& routed = built.routed;
  const Lists& lists = routed.lists;
  size_t keys = 0, total = 4 * (routed.key_map.size() + routed.centroids.size() + routed.panels.size() +
                                2 * routed.bias.size()) + lists.nlist() * 12;
  for (size_t l = 0; l < lists.nlist(); ++l)
    keys += kBlockKeys * (blocks_of(static_cast<size_t>(lists.counts[l])) + blocks_of(lists.grown[l].ids.size()));
  return total + keys / kBlockKeys * lists.block_bytes() + keys * 8;
}

}  // namespace
}  // namespace ra_bench

NB_MODULE(_qivf, m) {
  using namespace ra_bench;
  using namespace nb::literals;
  m.doc() = "Inverted lists of 4-bit codes, routed by what queries were seen to find.";
  nb::class_<RoutedLists>(m, "Lists", "Lists over n keys. Keys are not kept: pass them to each call.")
      .def_prop_ro("nbytes", &nbytes)
      .def("flattened", &flattened,
           "codes (blocks, bytes) uint8, steps and ids (blocks, 16), counts (nlist, 1), centroids (nlist, d): what\n"
           "restore() takes.")
      .def("insert", &insert, "keys"_a, "Adds the keys that follow those of the lists in `keys` (n, d).");
  m.def("build", &build, "keys"_a, "assigned"_a, "centroids"_a, "weights"_a, "bias"_a, "key_map"_a, "query_map"_a, "threads"_a,
        "Encodes keys (n, d) into the lists that assigned (n, 1) int32 names.");
  m.def("restore", &restore, "codes"_a, "steps"_a, "ids"_a, "counts"_a, "centroids"_a, "weights"_a, "bias"_a,
        "key_map"_a, "query_map"_a, "n"_a, "Lists from their parts; raises ValueError where they do not fit each other.");
  m.def("search", &search, "lists"_a, "keys"_a, "queries"_a, nb::kw_only(), "group"_a, "k"_a, "share"_a,
        "candidates"_a, "threads"_a,
        "ids (m, k) int32 best first, and keys touched, exact products, bytes read (m,) int64. `group` rows that\n"
        "follow each other are searched together.");
  m.def("attend_layer", &attend_layer, "lists"_a, "keys"_a, "values"_a, "queries"_a, nb::kw_only(), "k"_a, "shares"_a,
        "candidates"_a, "output"_a, "lse"_a, "threads"_a,
        "Search and attention for all H heads of a layer: H lists, keys and values (n, d), shares and candidates;\n"
        "queries (H, G, d) into output (H, G, d) and lse (H, G). Returns keys touched, exact products, bytes read and\n"
        "attended keys, each (H, G) int64.");
  m.def("force_kernel", &force_kernels, "name"_a,
        "Makes every call of this module use the named kernel; '' goes back to the best. For tests.");
}
