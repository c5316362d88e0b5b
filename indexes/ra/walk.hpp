// A query's way through the graph, best first. Its queue puts scores into buckets and keeps no order inside a
// bucket: a sorted pool, which construction uses for its short searches, took half of a query's time.
#pragma once

#include <algorithm>

#include "codes.hpp"
#include "order.hpp"
#include "search.hpp"

namespace ra_bench {

// How far a query walks: it expands the best `ef` keys that it meets. Where codes tell which those are, the best
// `reranked` of them are scored by their rows at the end.
struct Effort {
  size_t k = 100;
  size_t ef = 300;

  size_t reranked(size_t n) const {
    return ef >= n ? n : std::min(n, std::max(2 * k + 64, ef / 4));  // codes put few of the k best further back
  }
};

constexpr size_t kBuckets = 1024;

// Working space of one thread, kept between searches; and what the last one did.
struct Walk {
  std::vector<uint8_t> visited;         // a byte a key with a bit a walk: the first walk's serves all that go in turn
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
  Sorter sorter;
  CodeQuery code_query;
  int64_t dots = 0, expansions = 0, exact = 0;  // keys scored, keys expanded, keys scored by their rows
};

// What one walk of several is to find: the k best keys that it passes into `ids` (k), best first, -1 after the last.
struct Task {
  const Rows* keys;
  const Graph* graph;
  const Codes* codes;  // what the walk goes by; where they are empty, the keys themselves
  const float* query;  // (d)
  Effort effort;
  int32_t* ids;
};

constexpr size_t kWalksTogether = 4;
static_assert(kWalksTogether <= 8, "each has a bit of a byte of `visited`");

// Walks for `count` (at most kWalksTogether) tasks in turn, so that one waits for memory while the others work.
// What walk i did is left in walks[i].
void walk_graphs(const Kernels& kernels, const Task* tasks, size_t count, Walk* walks);

}  // namespace ra_bench
