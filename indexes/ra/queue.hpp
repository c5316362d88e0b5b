// The keys that one query of a walk has met and that are good enough, best first. Scores fall into buckets, and inside
// a bucket there is no order: a sorted pool, which construction uses for its short searches, took half of a query's time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "code_kernels.hpp"
#include "graph.hpp"

namespace ra_bench {

constexpr size_t kBuckets = 1024;

// The lowest bucket that still holds one of the best `wanted` keys; rises as better ones come.
struct Bound {
  size_t wanted;
  int32_t bucket = 0;
  size_t above = 0;  // keys in buckets from `bucket` on

  // Keys have come to the buckets (count of them), and `held` counts them already.
  void count(const int32_t* buckets, size_t count, const uint32_t* held) {
    int32_t added = 0;
    for (size_t i = 0; i < count; ++i) added += buckets[i] >= bucket;
    above += static_cast<size_t>(added);
    while (above - held[bucket] >= wanted) above -= held[bucket++];
  }
};

// Scores fall into buckets of equal width; those of the starts tell where the good ones lie.
struct Scale {
  float low = 0, per_unit = 0;

  Scale() = default;
  Scale(const float* scores, size_t count) {
    const auto ends = std::minmax_element(scores, scores + count);
    const float spread = std::max(*ends.second - *ends.first, 1e-6f + 1e-6f * std::fabs(*ends.second));
    low = *ends.first - 2 * spread;
    per_unit = static_cast<float>(kBuckets) / (5 * spread);
  }

  int32_t bucket(float score) const {
    const float place = (score - low) * per_unit;
    return static_cast<int32_t>(std::min(std::max(0.0f, place), static_cast<float>(kBuckets - 1)));
  }

  // Scores below it belong to buckets below, but for rounding.
  float least(int32_t bucket) const {
    return bucket ? low + static_cast<float>(bucket) / per_unit : -std::numeric_limits<float>::infinity();
  }
};

class Queue {
 public:
  // Empties the queue, which then expands the best `ef` keys and keeps the best `best`. Its memory stays.
  void reset(size_t ef, size_t best, const Scale& scale) {
    scale_ = scale;
    keep_ = {std::max(ef, best)};
    expand_ = {ef};
    best_ = {best};
    top_ = 0;
    size_ = 0;
    std::fill(waiting_, waiting_ + kBuckets, -1);
    std::fill(held_, held_ + kBuckets, 0u);
  }

  // Takes in those of the fresh keys that are good enough.
  void push(const CodeKernels& kernels, const int32_t* fresh, const float* fresh_scores, size_t count) {
    if (ids_.size() < size_ + count) grow(count);
    float* scores = scores_.data() + size_;
    const size_t good = kernels.keep_good(scale_.least(keep_.bucket), count, fresh, fresh_scores, ids_.data() + size_, scores);
    int32_t* buckets = buckets_.data();
    for (size_t i = 0; i < good; ++i) buckets[i] = scale_.bucket(scores[i]);
    for (size_t i = 0; i < good; ++i) {
      const int32_t b = buckets[i];
      next_[size_ + i] = waiting_[b];
      waiting_[b] = static_cast<int32_t>(size_ + i);
      ++held_[b];
      top_ = std::max(top_, b);
    }
    size_ += good;
    best_.count(buckets, good, held_);
    keep_.count(buckets, good, held_);
    expand_.count(buckets, good, held_);
  }

  // The best key that awaits expansion, or -1 where none is good enough.
  int32_t pop() {
    while (waiting_[top_] < 0) {
      if (top_ <= expand_.bucket) return -1;
      --top_;
    }
    if (top_ < expand_.bucket) return -1;
    const auto entry = static_cast<size_t>(waiting_[top_]);
    waiting_[top_] = next_[entry];
    return ids_[entry];
  }

  // Fetches the links of `most` keys that are likely next.
  void look_ahead(const Graph& graph, size_t most) const {
    size_t ahead = 0;
    const int32_t last = std::max(expand_.bucket, top_ - 15);
    for (int32_t b = top_; ahead < most && b >= last; --b)
      for (int32_t e = waiting_[b]; e >= 0 && ahead < most; e = next_[static_cast<size_t>(e)], ++ahead)
        prefetch_row(reinterpret_cast<const char*>(graph.row(static_cast<size_t>(ids_[static_cast<size_t>(e)]))),
                     graph.degree * 4);
  }

  // The keys that are among the best, and some as good as the last of them, with their scores.
  void take_best(std::vector<Candidate>& out) const {
    out.resize(size_);
    size_t found = 0;
    for (size_t i = 0; i < size_; ++i) {  // no branch depends on a score
      out[found] = {scores_[i], ids_[i]};
      found += scale_.bucket(scores_[i]) >= best_.bucket;
    }
    out.resize(found);
  }

 private:
  void grow(size_t count) {
    const size_t room = 2 * (size_ + count);
    ids_.resize(room);
    next_.resize(room);
    scores_.resize(room);
    buckets_.resize(room);
  }

  Scale scale_;
  Bound keep_{0}, expand_{0}, best_{0};
  int32_t top_ = 0;
  size_t size_ = 0;
  std::vector<int32_t> ids_, next_;  // (size): keys, and the next one of its bucket
  std::vector<float> scores_;        // (size)
  std::vector<int32_t> buckets_;     // where the keys that come in belong
  int32_t waiting_[kBuckets];        // the first key of a bucket that awaits expansion, -1 for none
  uint32_t held_[kBuckets];          // keys of a bucket, expanded or not
};

}  // namespace ra_bench
