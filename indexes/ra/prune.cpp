#include "prune.hpp"

#include <algorithm>

#include "rounded.hpp"

namespace ra_bench {
namespace {

// How near the keys `ids` are to `node`, into scratch.near.
void measure(const Kernels& kernels, const Geometry& geometry, int32_t node, const int32_t* ids, size_t count,
             PruneScratch& scratch) {
  const size_t x = static_cast<size_t>(node);
  if (geometry.rounded) return geometry.rounded->nearness(node, ids, count, scratch.near.data());
  kernels.widen_row(geometry.keys, x, scratch.vector.data());
  geometry.nearness(kernels, scratch.vector.data(), geometry.extra_of(x), ids, count, scratch.near.data());
}

void start(const std::vector<int32_t>& ids, size_t d, PruneScratch& scratch) {
  scratch.vector.resize(d);
  if (scratch.near.size() < ids.size()) {
    scratch.near.resize(ids.size());
    for (Nearby* some : {&scratch.left, &scratch.skipped}) {
      some->ids.resize(ids.size());
      some->near.resize(ids.size());
    }
  }
  std::copy(ids.begin(), ids.end(), scratch.left.ids.begin());
  scratch.left.count = ids.size();
  scratch.skipped.count = 0;
}

// Skips the keys left that are nearer to `by` than to the node. All of them at once: a candidate's row is then read
// once for each key that is chosen while it lasts, not for each that is chosen before it.
void skip_occluded(const Kernels& kernels, const Geometry& geometry, int32_t by, PruneScratch& scratch) {
  Nearby &left = scratch.left, &skipped = scratch.skipped;
  measure(kernels, geometry, by, left.ids.data(), left.count, scratch);
  size_t stay = 0, go = skipped.count;
  for (size_t i = 0; i < left.count; ++i) {  // every key is written to both: no jump depends on which
    const int32_t id = left.ids[i];
    const float near = left.near[i];
    const bool is_occluded = scratch.near[i] > near;
    left.ids[stay] = skipped.ids[go] = id;
    left.near[stay] = skipped.near[go] = near;
    stay += !is_occluded;
    go += is_occluded;
  }
  left.count = stay;
  skipped.count = go;
}

// Takes the nearest key out of those left, the first one among equals.
int32_t take_nearest(Nearby& left) {
  constexpr size_t kLanes = 8;  // maxima of their own, so that the compiler may use vectors
  const float* near = left.near.data();
  float largest[kLanes];
  std::fill_n(largest, kLanes, near[0]);
  size_t i = 0;
  for (; i + kLanes <= left.count; i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) largest[lane] = std::max(largest[lane], near[i + lane]);
  for (; i < left.count; ++i) largest[0] = std::max(largest[0], near[i]);
  const float most = *std::max_element(largest, largest + kLanes);
  size_t best = 0;
  while (best + 1 < left.count && near[best] < most) ++best;
  const int32_t id = left.ids[best];
  left.ids[best] = left.ids[--left.count];
  left.near[best] = left.near[left.count];
  return id;
}

void fill_up(size_t places, PruneScratch& scratch, std::vector<int32_t>& chosen) {
  const Nearby& skipped = scratch.skipped;
  scratch.sorted.clear();
  for (size_t i = 0; i < skipped.count; ++i) scratch.sorted.push_back({skipped.near[i], skipped.ids[i]});
  places = std::min(places, skipped.count);
  std::partial_sort(scratch.sorted.begin(), scratch.sorted.begin() + static_cast<std::ptrdiff_t>(places),
                    scratch.sorted.end());
  for (size_t i = 0; i < places; ++i) chosen.push_back(scratch.sorted[i].id);
}

}  // namespace

void prune(const Kernels& kernels, const Geometry& geometry, int32_t node, const std::vector<int32_t>& ids,
           size_t most, bool fill, PruneScratch& scratch, std::vector<int32_t>& chosen) {
  if (chosen.size() >= most) return;
  start(ids, geometry.keys.d, scratch);
  Nearby& left = scratch.left;
  if (geometry.rounded)  // these rows are not read yet
    for (int32_t id : chosen) geometry.rounded->fetch(id);
  measure(kernels, geometry, node, ids.data(), ids.size(), scratch);
  std::copy_n(scratch.near.begin(), ids.size(), left.near.begin());
  for (int32_t id : chosen) skip_occluded(kernels, geometry, id, scratch);
  while (left.count && chosen.size() < most) {
    chosen.push_back(take_nearest(left));
    if (chosen.size() < most) skip_occluded(kernels, geometry, chosen.back(), scratch);
  }
  if (fill && chosen.size() < most) fill_up(most - chosen.size(), scratch, chosen);
}

void fetch_early(const Geometry& geometry, const int32_t* ids, size_t count) {
  if (!geometry.rounded) return;
  for (size_t i = 0; i < count && ids[i] >= 0; ++i) geometry.rounded->fetch_early(ids[i]);
}

void make_distinct(int32_t node, std::vector<int32_t>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  ids.erase(std::remove(ids.begin(), ids.end(), node), ids.end());
}

}  // namespace ra_bench
