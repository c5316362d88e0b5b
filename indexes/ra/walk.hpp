// The way through the graph, best first, of the query rows of a token together: a key that one of them comes to is
// scored for all, in one reading of its code.
#pragma once

#include <algorithm>
#include <vector>

#include "codes.hpp"
#include "order.hpp"
#include "queue.hpp"
#include "search.hpp"

namespace ra_bench {

// How far a walk goes: it expands the best `ef` keys that each query meets. Where codes tell which those are, the best
// `reranked` of them are scored by their rows at the end.
struct Effort {
  size_t k = 100;
  size_t ef = 300;

  size_t reranked(size_t n) const {
    return ef >= n ? n : std::min(n, std::max(2 * k + 64, ef / 4));  // codes put few of the k best further back
  }
};

constexpr size_t kMostTogether = 8;  // queries of one walk

// What one query is to find: the k best keys that the walk passes into `ids` (k), best first, -1 after the last.
struct Task {
  const float* query;  // (d)
  int32_t* ids;
};

struct Tasks {
  const Rows* keys;
  const Graph* graph;
  const Codes* codes;  // what the walk goes by; where they are empty, the keys themselves
  Effort effort;
  Task each[kMostTogether];
  size_t count = 0;
};

// Working space of a thread, kept between walks; and what the last one did.
struct Walk {
  struct OfQuery {
    Queue queue;
    CodeQuery code;
    std::vector<int32_t> starts;
    int64_t exact = 0;  // keys scored by their rows
  };

  OfQuery of_query[kMostTogether];
  int64_t dots = 0, expansions = 0;  // keys scored, each for all queries; keys expanded
  std::vector<uint8_t> visited;      // (n): whether a key was met, and whether it was expanded
  std::vector<int32_t> fresh;        // keys not met before
  std::vector<float> scores;         // (queries, apart): of the fresh keys
  size_t apart = 0;
  std::vector<int32_t> rows;         // keys to be scored by their rows
  std::vector<float> row_scores;
  std::vector<Candidate> best;
  Sorter sorter;
  Beam beam;  // for find_starts
};

void walk_graph(const Kernels& kernels, const Tasks& tasks, Walk& walk);

}  // namespace ra_bench
