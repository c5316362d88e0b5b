// Occlusion pruning: few links that point in different directions.
#pragma once

#include "graph.hpp"

namespace ra_bench {

// Keys that may yet be chosen, or no longer, and how near each is to the node.
struct Nearby {
  std::vector<int32_t> ids;
  std::vector<float> near;
  size_t count = 0;
};

struct PruneScratch {
  std::vector<float> vector, near;
  Nearby left, skipped;
  std::vector<Candidate> sorted;
};

// Chooses up to `most` of the keys `ids` into `chosen`, which may hold links that are kept already and take part; `ids`
// are distinct and without `node`. The nearest to the node comes first, of equally near ones the first of `ids`, and a key is skipped if one
// chosen before it is nearer to it than the node is (the rule of relative neighbourhood graphs; RoarGraph section 4.2).
// With `fill`, the places left over go to the skipped ones, nearest first.
void prune(const Kernels& kernels, const Geometry& geometry, int32_t node, const std::vector<int32_t>& ids,
           size_t most, bool fill, PruneScratch& scratch, std::vector<int32_t>& chosen);

// Has what prune() reads of these keys fetched, while another key is pruned: up to `count` of them, or the first -1.
void fetch_early(const Geometry& geometry, const int32_t* ids, size_t count);

// Drops `node` and repeated ids.
void make_distinct(int32_t node, std::vector<int32_t>& ids);

}  // namespace ra_bench
