#include "search.hpp"

#include <algorithm>
#include <cstring>

namespace ra_bench {
namespace {

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

// How many entries of the pool are larger. No branch depends on data: mispredictions cost more than the steps.
inline size_t rank_of(const uint64_t* pool, size_t size, uint64_t entry) {
  const uint64_t* base = pool;
  while (size > 1) {
    const size_t half = size / 2;
    base += (base[half - 1] > entry) ? half : 0;
    size -= half;
  }
  return static_cast<size_t>(base - pool) + (size == 1 && *base > entry);
}

// Scores the `count` fresh keys and puts them into the pool; returns the best place that changed.
inline size_t score_fresh(const Kernels& kernels, const Geometry& geometry, const Target& target, size_t count,
                          size_t capacity, Beam& beam) {
  geometry.nearness(kernels, target.vector, target.extra, beam.fresh.data(), count, beam.scores.data());
  beam.dots += static_cast<int64_t>(count);
  uint64_t* pool = beam.pool.data();
  size_t best = capacity;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t entry = pack(beam.scores[i], beam.fresh[i]);
    const bool full = beam.size == capacity;
    if (full && entry < pool[capacity - 1]) continue;
    const size_t at = rank_of(pool, beam.size, entry);
    const size_t end = full ? capacity - 1 : beam.size;
    std::memmove(pool + at + 1, pool + at, (end - at) * sizeof(uint64_t));
    pool[at] = entry;
    beam.size = end + 1;
    best = std::min(best, at);
  }
  return best;
}

inline void reset(const Graph& graph, size_t capacity, size_t num_starts, Beam& beam) {
  beam.visited.assign((graph.n + 63) / 64, 0);
  if (beam.pool.size() < capacity + 1) beam.pool.resize(capacity + 1);
  const size_t most = std::max(graph.degree, num_starts);
  if (beam.fresh.size() < most + 1) {
    beam.fresh.resize(most + 1);
    beam.scores.resize(most + 1);
  }
  beam.size = 0;
  beam.dots = beam.expansions = 0;
  beam.expanded.clear();
}

}  // namespace

void search_graph(const Kernels& kernels, const Geometry& geometry, const Graph& graph, const Target& target,
                  const int32_t* starts, size_t num_starts, size_t capacity, size_t ef, bool keep_expanded, Beam& beam) {
  reset(graph, capacity, num_starts, beam);
  uint64_t* visited = beam.visited.data();
  for (size_t i = 0; i < num_starts; ++i) {
    beam.fresh[i] = starts[i];
    visited[starts[i] >> 6] |= uint64_t{1} << (starts[i] & 63);
  }
  score_fresh(kernels, geometry, target, num_starts, capacity, beam);
  size_t cursor = 0;  // no entry before it awaits expansion
  while (cursor < std::min(beam.size, ef)) {
    uint64_t& entry = beam.pool[cursor];
    if (!(entry & 1)) {
      ++cursor;
      continue;
    }
    entry ^= 1;
    const int32_t id = beam.id(cursor);
    ++beam.expansions;
    if (keep_expanded) beam.expanded.push_back({unpack_score(entry), id});
    const int32_t* to = graph.row(static_cast<size_t>(id));
    size_t count = 0;
    for (size_t j = 0; j < graph.degree && to[j] >= 0; ++j) {
      uint64_t& word = visited[to[j] >> 6];
      const uint64_t bit = uint64_t{1} << (to[j] & 63);
      beam.fresh[count] = to[j];
      count += !(word & bit);
      word |= bit;
    }
    if (!count) continue;
    // Its links will likely be wanted next, whatever these keys' scores are.
    if (cursor + 1 < beam.size) prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(beam.id(cursor + 1)))), graph.degree * 4);
    cursor = std::min(cursor, score_fresh(kernels, geometry, target, count, capacity, beam));
  }
}

void find_starts(const Kernels& kernels, const Graph& graph, const float* query, Beam& beam, std::vector<int32_t>& starts) {
  starts.assign(1, graph.entry);
  if (!graph.num_centroids) return;
  beam.scores.resize(std::max(beam.scores.size(), graph.num_centroids));
  const Rows centroids{graph.centroids.data(), kFloat32, graph.num_centroids, graph.dim};
  kernels.dot(query, centroids, graph.every_centroid.data(), graph.num_centroids, beam.scores.data());
  const auto best = std::max_element(beam.scores.begin(), beam.scores.begin() + graph.num_centroids) - beam.scores.begin();
  const int32_t* seeds = graph.seeds.data() + static_cast<size_t>(best) * graph.seeds_each;
  for (size_t s = 0; s < graph.seeds_each && seeds[s] >= 0; ++s)
    if (seeds[s] != graph.entry) starts.push_back(seeds[s]);
}

}  // namespace ra_bench
