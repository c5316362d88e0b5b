// Best-first search of a graph.
#pragma once

#include "codes.hpp"
#include "graph.hpp"

namespace ra_bench {

// Working space of one thread, kept between searches; and what the last search did.
struct Beam {
  std::vector<uint64_t> pool;  // best first; see pack() in search.cpp
  size_t size = 0;
  std::vector<uint64_t> visited;  // one bit a key
  std::vector<int32_t> fresh;     // neighbours not visited before
  std::vector<float> scores;
  std::vector<uint64_t> unsorted;   // fresh keys that are good enough for the pool
  std::vector<uint64_t> batch;      // the same, sorted
  std::vector<size_t> ranks;        // where they belong
  std::vector<Candidate> expanded;  // filled where asked for
  int64_t dots = 0, expansions = 0;

  float score(size_t i) const;
  int32_t id(size_t i) const { return 0x7fffffff - static_cast<int32_t>((pool[i] >> 1) & 0x7fffffff); }
};

// A point to search for. With `code` the search goes by the keys' codes, and its scores lack an addend that is the
// same for all keys.
struct Target {
  const float* vector;
  float extra;
  const CodeQuery* code = nullptr;
};

// Leaves in beam.pool the keys nearest to `target` that a search from `starts` (distinct ids) finds: the pool
// holds up to `capacity` keys; those within its first `ef` are expanded. With ef >= n nothing is missed that
// can be reached.
void search_graph(const Kernels& kernels, const Geometry& geometry, const Graph& graph, const Target& target,
                  const int32_t* starts, size_t num_starts, size_t capacity, size_t ef, bool keep_expanded,
                  Beam& beam);

// The keys at which a search for `query` starts: the seeds of the nearest centroid, and the entry. Distinct.
void find_starts(const Kernels& kernels, const Graph& graph, const float* query, Beam& beam,
                 std::vector<int32_t>& starts);

}  // namespace ra_bench
