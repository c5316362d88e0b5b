// A query's way through the graph, best first. Its queue puts scores into buckets and keeps no order inside a
// bucket: a sorted pool, which construction uses for its short searches, took half of a query's time.
#pragma once

#include "search.hpp"

namespace ra_bench {

// How far a query walks: it expands the best `ef` keys that it meets, and keeps the best max(ef, k).
struct Effort {
  size_t k = 100;
  size_t ef = 300;
};

constexpr size_t kBuckets = 1024;

// Working space of one thread, kept between searches; and what the last one did.
struct Walk {
  std::vector<uint64_t> visited;        // one bit a key
  std::vector<int32_t> fresh, buckets;  // keys not visited before, and where their scores belong
  std::vector<float> fresh_scores;
  std::vector<int32_t> ids, next;       // (size): keys that were good enough; the next one of its bucket
  std::vector<float> scores;            // (size)
  size_t size = 0;
  int32_t waiting[kBuckets];            // the first key of a bucket that awaits expansion, -1 for none
  uint32_t held[kBuckets];              // keys of a bucket, expanded or not
  std::vector<int32_t> starts;
  Beam beam;  // for find_starts
  std::vector<Candidate> best;
  int64_t dots = 0, expansions = 0;
};

// The k best keys that a walk for `query` (d) passes into `ids` (k), best first, -1 after the last.
void walk_graph(const Kernels& kernels, const Rows& keys, const Graph& graph, const float* query,
                const Effort& effort, Walk& walk, int32_t* ids);

}  // namespace ra_bench
