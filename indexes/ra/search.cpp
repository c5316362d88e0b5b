#include "search.hpp"

#include <algorithm>
#include <cstring>

namespace ra_bench {
namespace {

// Keys expanded at once: their links and vectors are fetched together, and the pool is passed over once.
constexpr size_t kTogether = 4;

// A pool entry is one integer, so that one comparison orders it: the score in the high half (as an integer
// of the same order), then the id, the smaller one first among equals, and 1 in the last bit until expanded.
inline uint64_t pack(float score, int32_t id) {
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  bits ^= (bits >> 31) ? 0xffffffffu : 0x80000000u;
  return (static_cast<uint64_t>(bits) << 32) | (static_cast<uint64_t>(0x7fffffff - id) << 1) | 1;
}

inline float unpack_score(uint64_t entry) {
  uint32_t bits = static_cast<uint32_t>(entry >> 32);
  bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

// Sorts a few entries, largest first. Quadratic, but its jumps can be predicted, unlike those of other sorts.
inline void sort_batch(const uint64_t* from, size_t size, uint64_t* sorted) {
  for (size_t i = 0; i < size; ++i) {
    const uint64_t entry = from[i];
    size_t larger = 0;
    for (size_t j = 0; j < size; ++j) larger += from[j] > entry;
    sorted[larger] = entry;
  }
}

// How many entries of the pool are larger. No branch depends on data, and calls for several entries overlap.
inline size_t rank_of(const uint64_t* pool, size_t size, uint64_t entry) {
  const uint64_t* base = pool;
  while (size > 1) {
    const size_t half = size / 2;
    base += half &
            (size_t{0} - static_cast<size_t>(base[half - 1] > entry));  // GCC turns `? half : 0` into a jump
    size -= half;
  }
  return static_cast<size_t>(base - pool) + (size == 1 && *base > entry);
}

// Merges the sorted batch into the sorted pool of at most `capacity`; returns the best place that changed.
// One pass for the whole batch: a search spends more time on its pool than on dot products otherwise.
inline size_t merge(size_t added, size_t capacity, Beam& beam) {
  uint64_t* pool = beam.pool.data();
  const uint64_t* batch = beam.batch.data();
  size_t* ranks = beam.ranks.data();
  for (size_t i = 0; i < added; ++i) ranks[i] = rank_of(pool, beam.size, batch[i]);
  while (added && ranks[added - 1] + added > capacity) --added;  // these fall out at once
  if (!added) return capacity;
  beam.size = std::min(beam.size + added, capacity);
  size_t end = beam.size - added;  // of the old entries that stay and have not moved yet
  for (size_t i = added; i-- > 0;) {
    const size_t begin = ranks[i];
    std::memmove(pool + begin + i + 1, pool + begin, (end - begin) * sizeof(uint64_t));
    pool[begin + i] = batch[i];
    end = begin;
  }
  return ranks[0];
}

// Scores the `count` fresh keys and puts them into the pool; returns the best place that changed.
inline size_t score_fresh(const Kernels& kernels, const Geometry& geometry, const Target& target,
                          size_t count, size_t capacity, Beam& beam) {
  if (target.code) {
    const Codes& codes = *geometry.codes;
    const int8_t* levels = target.code->levels.data();
    code_kernels().score(codes.rows, codes.stride, codes.steps.data(), &levels, &target.code->middle, 1,
                         beam.fresh.data(), count, beam.scores.data(), count);
    for (size_t i = 0; i < count; ++i)
      beam.scores[i] = beam.scores[i] * target.code->scale +
                       target.extra * geometry.extra_of(static_cast<size_t>(beam.fresh[i]));
  } else {
    geometry.nearness(kernels, target.vector, target.extra, beam.fresh.data(), count, beam.scores.data());
  }
  beam.dots += static_cast<int64_t>(count);
  const uint64_t worst = beam.size == capacity ? beam.pool[capacity - 1] : 0;
  uint64_t* unsorted = beam.unsorted.data();
  size_t added = 0;
  for (size_t i = 0; i < count; ++i) {
    unsorted[added] = pack(beam.scores[i], beam.fresh[i]);
    added += unsorted[added] > worst;
  }
  sort_batch(unsorted, added, beam.batch.data());
  return merge(added, capacity, beam);
}

inline void reset(const Graph& graph, size_t capacity, size_t num_starts, Beam& beam) {
  beam.visited.assign((graph.n + 63) / 64, 0);
  if (beam.pool.size() < capacity + 1) beam.pool.resize(capacity + 1);
  const size_t most = std::max(kTogether * graph.degree, num_starts) + 1;
  if (beam.fresh.size() < most) {
    beam.fresh.resize(most);
    beam.scores.resize(most);
    beam.unsorted.resize(most);
    beam.batch.resize(most);
    beam.ranks.resize(most);
  }
  beam.size = 0;
  beam.dots = beam.expansions = 0;
  beam.expanded.clear();
}

// Appends the neighbours of `id` that were not visited before, and marks them; returns how many there are
// now.
inline size_t gather_fresh(const Graph& graph, int32_t id, size_t count, Beam& beam) {
  const int32_t* to = graph.row(static_cast<size_t>(id));
  int32_t* fresh = beam.fresh.data();
  uint64_t* visited = beam.visited.data();
  for (size_t j = 0; j < graph.degree && to[j] >= 0; ++j) {
    uint64_t& word = visited[to[j] >> 6];
    const uint64_t bit = uint64_t{1} << (to[j] & 63);
    fresh[count] = to[j];
    count += !(word & bit);
    word |= bit;
  }
  return count;
}

}  // namespace

float Beam::score(size_t i) const { return unpack_score(pool[i]); }

void search_graph(const Kernels& kernels, const Geometry& geometry, const Graph& graph, const Target& target,
                  const int32_t* starts, size_t num_starts, size_t capacity, size_t ef, bool keep_expanded,
                  Beam& beam) {
  reset(graph, capacity, num_starts, beam);
  uint64_t* visited = beam.visited.data();
  for (size_t i = 0; i < num_starts; ++i) {
    beam.fresh[i] = starts[i];
    visited[starts[i] >> 6] |= uint64_t{1} << (starts[i] & 63);
  }
  score_fresh(kernels, geometry, target, num_starts, capacity, beam);
  size_t cursor = 0;  // no entry before it awaits expansion
  while (true) {
    int32_t together[kTogether];
    size_t chosen = 0;
    for (; cursor < std::min(beam.size, ef) && chosen < kTogether; ++cursor) {
      uint64_t& entry = beam.pool[cursor];
      if (!(entry & 1)) continue;
      entry ^= 1;
      together[chosen] = beam.id(cursor);
      prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(together[chosen++]))),
                   graph.degree * 4);
      if (keep_expanded) beam.expanded.push_back({unpack_score(entry), together[chosen - 1]});
    }
    if (!chosen) return;
    beam.expansions += static_cast<int64_t>(chosen);
    size_t count = 0;
    for (size_t i = 0; i < chosen; ++i) count = gather_fresh(graph, together[i], count, beam);
    for (size_t i = cursor, ahead = 0; i < beam.size && ahead < kTogether;
         ++i) {  // likely the next to be expanded
      if (!(beam.pool[i] & 1)) continue;
      prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(beam.id(i)))),
                   graph.degree * 4);
      ++ahead;
    }
    if (count) cursor = std::min(cursor, score_fresh(kernels, geometry, target, count, capacity, beam));
  }
}

void find_starts(const Kernels& kernels, const Graph& graph, const float* query, Beam& beam,
                 std::vector<int32_t>& starts) {
  starts.assign(1, graph.entry);
  if (!graph.num_centroids) return;
  beam.scores.resize(std::max(beam.scores.size(), graph.num_centroids));
  const Rows centroids{graph.centroids.data(), kFloat32, graph.num_centroids, graph.dim};
  kernels.dot(query, centroids, graph.every_centroid.data(), graph.num_centroids, beam.scores.data());
  const auto best =
      std::max_element(beam.scores.begin(), beam.scores.begin() + graph.num_centroids) - beam.scores.begin();
  const int32_t* seeds = graph.seeds.data() + static_cast<size_t>(best) * graph.seeds_each;
  for (size_t s = 0; s < graph.seeds_each && seeds[s] >= 0; ++s)
    if (seeds[s] != graph.entry) starts.push_back(seeds[s]);
}

}  // namespace ra_bench
