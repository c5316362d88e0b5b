// Occlusion pruning: few links that point in different directions.
#pragma once

#include "graph.hpp"

namespace ra_bench {

struct PruneScratch {
  std::vector<float> vector, near;
  std::vector<int32_t> skipped;
};

// Chooses up to `most` of `candidates`, which are sorted nearest to the node first, into `chosen`, which may
// hold links that are kept already and take part. A candidate is skipped if one chosen before it is nearer
// to it than the node is (the rule of relative neighbourhood graphs; RoarGraph section 4.2). With `fill`,
// the places left over go to the skipped ones, in order.
void prune(const Kernels& kernels, const Geometry& geometry, const std::vector<Candidate>& candidates,
           size_t most, bool fill, PruneScratch& scratch, std::vector<int32_t>& chosen);

// Sorts candidates nearest first and drops repeated ids and `node` itself.
void sort_unique(int32_t node, std::vector<Candidate>& candidates);

}  // namespace ra_bench
