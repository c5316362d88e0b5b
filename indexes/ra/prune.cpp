#include "prune.hpp"

#include <algorithm>

namespace ra_bench {
namespace {

constexpr size_t kBlock = 8;  // an occluder is mostly among the first chosen

bool is_occluded(const Kernels& kernels, const Geometry& geometry, const Candidate& candidate,
                 const std::vector<int32_t>& chosen, PruneScratch& scratch) {
  kernels.widen_row(geometry.keys, static_cast<size_t>(candidate.id), scratch.vector.data());
  const float extra = geometry.extra_of(static_cast<size_t>(candidate.id));
  float near[kBlock];
  for (size_t from = 0; from < chosen.size(); from += kBlock) {
    const size_t count = std::min(kBlock, chosen.size() - from);
    geometry.nearness(kernels, scratch.vector.data(), extra, chosen.data() + from, count, near);
    for (size_t i = 0; i < count; ++i)
      if (near[i] > candidate.near) return true;
  }
  return false;
}

}  // namespace

void prune(const Kernels& kernels, const Geometry& geometry, const std::vector<Candidate>& candidates,
           size_t most, bool fill, PruneScratch& scratch, std::vector<int32_t>& chosen) {
  scratch.vector.resize(geometry.keys.d);
  scratch.skipped.clear();
  for (const Candidate& candidate : candidates) {
    if (chosen.size() >= most) return;
    if (is_occluded(kernels, geometry, candidate, chosen, scratch)) scratch.skipped.push_back(candidate.id);
    else chosen.push_back(candidate.id);
  }
  if (!fill) return;
  for (int32_t id : scratch.skipped) {
    if (chosen.size() >= most) return;
    chosen.push_back(id);
  }
}

void sort_unique(int32_t node, std::vector<Candidate>& candidates) {
  std::sort(candidates.begin(), candidates.end());
  // The same id always has the same nearness to one node, so repeats are neighbours.
  const auto same = [](const Candidate& a, const Candidate& b) { return a.id == b.id; };
  candidates.erase(std::unique(candidates.begin(), candidates.end(), same), candidates.end());
  candidates.erase(std::remove_if(candidates.begin(), candidates.end(),
                                  [node](const Candidate& c) { return c.id == node; }),
                   candidates.end());
}

}  // namespace ra_bench
