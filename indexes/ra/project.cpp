#include <algorithm>
#include <numeric>

#include "build.hpp"
#include "pool.hpp"
#include "prune.hpp"

namespace ra_bench {
namespace {

constexpr size_t kParts = 64;  // of all ids

struct Scratch {
  std::vector<uint16_t> times;  // (n): how many of the key's queries name this key
  std::vector<uint32_t> in_place;  // how many keys have each place in the order of keep_most_named
  std::vector<int32_t> named, current, equals, chosen;
  PruneScratch prune;
};

// For each key the queries that have it among their first `pivots` neighbours, lower ranks first.
struct Lists {
  std::vector<size_t> begin;
  std::vector<int32_t> queries;
};

Lists lists_of_keys(const Neighbors& neighbors, size_t n, size_t pivots) {
  Lists lists;
  lists.begin.assign(n + 1, 0);
  const size_t width = std::min(pivots, neighbors.width);
  for (size_t q = 0; q < neighbors.m; ++q)
    for (size_t r = 0; r < width && neighbors.row(q)[r] >= 0; ++r)
      ++lists.begin[static_cast<size_t>(neighbors.row(q)[r]) + 1];
  std::partial_sum(lists.begin.begin(), lists.begin.end(), lists.begin.begin());
  lists.queries.resize(lists.begin.back());
  std::vector<size_t> next(lists.begin.begin(), lists.begin.end() - 1);
  for (size_t r = 0; r < width; ++r)
    for (size_t q = 0; q < neighbors.m; ++q)
      if (neighbors.row(q)[r] >= 0)
        lists.queries[next[static_cast<size_t>(neighbors.row(q)[r])]++] = static_cast<int32_t>(q);
  return lists;
}

// Leaves in scratch.named the `most` of them that are named most often, the smaller ids among equals; all times become
// 0. Keys are counted by how often they are named, at most `largest` times, and by a few bits of their ids: cheaper
// than to compare them.
void keep_most_named(size_t most, size_t n, uint16_t largest, Scratch& scratch) {
  std::vector<int32_t>& named = scratch.named;
  size_t shift = 0;
  while ((n - 1) >> shift >= kParts) ++shift;
  const auto place_of = [&](int32_t id) {
    return (largest - scratch.times[static_cast<size_t>(id)]) * kParts + (static_cast<size_t>(id) >> shift);
  };
  scratch.in_place.assign((largest + size_t{1}) * kParts, 0);
  for (int32_t id : named) ++scratch.in_place[place_of(id)];
  size_t last = 0, before = 0;  // the place of which some keys stay; `before` keys have better ones
  while (last < scratch.in_place.size() && before + scratch.in_place[last] <= most) before += scratch.in_place[last++];
  scratch.equals.resize(named.size());
  size_t kept = 0, equal = 0;
  for (size_t i = 0; i < named.size(); ++i) {  // every key is written to both: no jump depends on which
    const int32_t id = named[i];
    const size_t place = place_of(id);
    named[kept] = scratch.equals[equal] = id;
    kept += place < last;
    equal += place == last;
    scratch.times[static_cast<size_t>(id)] = 0;
  }
  named.resize(kept);
  const auto first = scratch.equals.begin(), end = first + static_cast<std::ptrdiff_t>(equal);
  const auto wanted = first + static_cast<std::ptrdiff_t>(std::min(most - before, equal));
  std::partial_sort(first, wanted, end);  // in order: of keys as near, pruning takes the first
  named.insert(named.end(), first, wanted);
}

// The keys that the key's queries name most often, at most settings.candidates of them, into scratch.named, and has
// them fetched for pruning.
void collect(const Geometry& geometry, const Neighbors& neighbors, const Lists& lists, int32_t key,
             const BuildSettings& settings, size_t n, Scratch& scratch) {
  scratch.times.resize(n);
  const size_t begin = lists.begin[static_cast<size_t>(key)];
  const size_t all = lists.begin[static_cast<size_t>(key) + 1] - begin;
  const size_t used = std::min(all, settings.lists);
  const auto row_of = [&](size_t i) {
    return neighbors.row(static_cast<size_t>(lists.queries[begin + i * all / used]));
  };
  for (size_t i = 0; i < used; ++i)
    prefetch_row(reinterpret_cast<const char*>(row_of(i)), neighbors.width * sizeof(int32_t));
  scratch.named.resize(used * neighbors.width + 1);
  size_t count = 0;
  uint16_t largest = 1;
  scratch.times[static_cast<size_t>(key)] = 1;  // so that it is not new
  for (size_t i = 0; i < used; ++i) {
    const int32_t* row = row_of(i);
    for (size_t r = 0; r < neighbors.width && row[r] >= 0; ++r) {
      uint16_t& times = scratch.times[static_cast<size_t>(row[r])];
      scratch.named[count] = row[r];
      count += !times++;
      largest = std::max(largest, times);
    }
  }
  scratch.times[static_cast<size_t>(key)] = 0;
  scratch.named.resize(count);
  keep_most_named(settings.candidates, n, largest, scratch);
  fetch_early(geometry, scratch.named.data(), scratch.named.size());
}

// Prunes `from` to scratch.chosen.
void choose(const Kernels& kernels, const Geometry& geometry, int32_t key, const std::vector<int32_t>& from,
            size_t most, Scratch& scratch) {
  scratch.chosen.clear();
  prune(kernels, geometry, key, from, most, true, scratch.prune, scratch.chosen);
}

// Makes `chosen` the key's links from queries; its other links stay as far as there is room.
void store(Graph& graph, size_t key, const std::vector<int32_t>& chosen) {
  int32_t* row = graph.mutable_row(key);
  const std::vector<int32_t> others(row + graph.kept[key], row + graph.count(key));
  int32_t* end = std::copy(chosen.begin(), chosen.end(), row);
  for (int32_t id : others) {
    if (end == row + graph.degree) break;
    if (std::find(chosen.begin(), chosen.end(), id) == chosen.end()) *end++ = id;
  }
  std::fill(end, row + graph.degree, -1);
  graph.kept[key] = static_cast<uint16_t>(chosen.size());
}

}  // namespace

Grouped group_by_target(const std::vector<std::vector<int32_t>>& chosen, size_t first_source, size_t n) {
  Grouped grouped;
  std::vector<size_t> counts(n + 1, 0);
  for (const auto& row : chosen)
    for (int32_t target : row) ++counts[static_cast<size_t>(target) + 1];
  std::partial_sum(counts.begin(), counts.end(), counts.begin());
  grouped.sources.resize(counts.back());
  for (size_t t = 0; t < n; ++t) {
    if (counts[t + 1] == counts[t]) continue;
    grouped.targets.push_back(static_cast<int32_t>(t));
    grouped.begin.push_back(counts[t]);
  }
  grouped.begin.push_back(counts.back());
  for (size_t i = 0; i < chosen.size(); ++i)
    for (int32_t target : chosen[i])
      grouped.sources[counts[static_cast<size_t>(target)]++] = static_cast<int32_t>(first_source + i);
  return grouped;
}

void project(const Kernels& kernels, const Geometry& geometry, const Neighbors& neighbors, size_t from,
             const BuildSettings& settings, Graph& graph) {
  const size_t n = graph.n;
  const Lists lists = lists_of_keys(neighbors, n, settings.pivots);
  std::vector<Scratch> scratch(static_cast<size_t>(settings.threads));
  std::vector<std::vector<int32_t>> chosen(n - from);
  parallel_for(settings.threads, static_cast<int64_t>(n - from), 64,
               [&](int64_t first, int64_t last, int worker) {
                 Scratch& own = scratch[static_cast<size_t>(worker)];
                 const auto key_of = [from](int64_t i) { return static_cast<int32_t>(from + static_cast<size_t>(i)); };
                 collect(geometry, neighbors, lists, key_of(first), settings, n, own);
                 for (int64_t i = first; i < last; ++i) {
                   std::swap(own.named, own.current);  // the next key's candidates are fetched during this one's work
                   if (i + 1 < last) collect(geometry, neighbors, lists, key_of(i + 1), settings, n, own);
                   choose(kernels, geometry, key_of(i), own.current, settings.query_degree, own);
                   chosen[static_cast<size_t>(i)] = own.chosen;
                 }
               });
  for (size_t key = from; key < n; ++key) store(graph, key, chosen[key - from]);
  const Grouped back = group_by_target(chosen, from, n);
  parallel_for(settings.threads, static_cast<int64_t>(back.targets.size()), 64,
               [&](int64_t first, int64_t last, int worker) {
                 Scratch& own = scratch[static_cast<size_t>(worker)];
                 for (int64_t t = first; t < last; ++t) {
                   const size_t key = static_cast<size_t>(back.targets[t]);
                   own.named.assign(graph.row(key), graph.row(key) + graph.kept[key]);
                   own.named.insert(own.named.end(), back.sources.begin() + back.begin[t],
                                    back.sources.begin() + back.begin[t + 1]);
                   make_distinct(back.targets[t], own.named);
                   if (t + 1 < last) {
                     const size_t next = back.begin[t + 1];
                     fetch_early(geometry, back.sources.data() + next, back.begin[t + 2] - next);
                   }
                   choose(kernels, geometry, back.targets[t], own.named, settings.query_degree, own);
                   store(graph, key, own.chosen);
                 }
               });
}

}  // namespace ra_bench
